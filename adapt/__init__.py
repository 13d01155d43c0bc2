"""adapt: parameter-efficient adaptation of frozen vision-language models from a few labelled images.

The public names are listed in `__init__.pyi`, for editors and type checkers too, and are imported on first use, so that
`adapt --help` responds at once although torch takes seconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
