"""adapt: parameter-efficient adaptation of frozen vision-language models from a few labelled images.

What there is stands in `__init__.pyi`, for editors and type checkers too, and is imported when it is first used:
`adapt --help` answers at once, though torch takes seconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
