"""Data: readers, few-shot sampling, decoding, loading, and the cache of image features.

Names are imported when they are first used: reading a split takes no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapt.data.decoding.cache import FeatureCache
    from adapt.data.decoding.image_set import ImageSet
    from adapt.data.decoding.images import open_image
    from adapt.data.decoding.loader import loader
    from adapt.data.readers import (
        load,
        read_captioned_folder,
        read_csv,
        read_descriptors,
        read_domain_folders,
        read_folder,
        read_hugging_face,
        read_names,
        read_published,
        read_split,
        read_torchvision,
    )
    from adapt.data.split import Item, Split

__all__ = [
    "FeatureCache",
    "ImageSet",
    "Item",
    "Split",
    "load",
    "loader",
    "open_image",
    "read_captioned_folder",
    "read_csv",
    "read_descriptors",
    "read_domain_folders",
    "read_folder",
    "read_hugging_face",
    "read_names",
    "read_published",
    "read_split",
    "read_torchvision",
]

_MODULES = {
    "FeatureCache": "decoding.cache",
    "ImageSet": "decoding.image_set",
    "Item": "split",
    "Split": "split",
    "load": "readers",
    "loader": "decoding.loader",
    "open_image": "decoding.images",
    "read_captioned_folder": "readers",
    "read_domain_folders": "readers",
    "read_csv": "readers",
    "read_descriptors": "readers",
    "read_folder": "readers",
    "read_hugging_face": "readers",
    "read_names": "readers",
    "read_published": "readers",
    "read_split": "readers",
    "read_torchvision": "readers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
