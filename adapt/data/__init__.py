"""Data sets: readers, few-shot sampling, decoding and loading of images, and the cache of image features.

The names are listed in `__init__.pyi`, and imported on first use: reading a split does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
