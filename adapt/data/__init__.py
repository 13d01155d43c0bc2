"""Data: readers, few-shot sampling, decoding, loading, and the cache of image features.

What there is stands in `__init__.pyi`, and is imported when it is first used: reading a split takes no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
