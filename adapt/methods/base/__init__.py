"""The interface of methods, the batches that they see, and the training that is passed to them.

The names are listed in `__init__.pyi`, and imported on first use: what a task says of learning does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
