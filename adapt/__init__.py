"""adapt: parameter-efficient adaptation of frozen vision-language models from a few labelled images.

`__init__.pyi` lists the public names, for editors and type checkers too. They are imported on first use, so that
`adapt --help` responds at once although torch takes seconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
