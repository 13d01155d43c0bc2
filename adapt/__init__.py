"""adapt: parameter-efficient adaptation of frozen vision-language models from a few labelled images."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# imported when first used: `adapt --help` answers at once, though torch takes seconds
_EXPORTS = {
    "AdaptError": "adapt.errors",
    "AdaptedModel": "adapt.models.classifier",
    "Backbone": "adapt.backbones.base",
    "Classifier": "adapt.estimator",
    "fit": "adapt.training.fit",
    "load": "adapt.loading",
    "load_backbone": "adapt.backbones.load",
    "load_many": "adapt.loading",
    "predict_many": "adapt.models.many",
    "recommend": "adapt.choosing.recommend",
    "split_attention": "adapt.backbones.split_attention",
    "wrap": "adapt.models.wrap",
}
_SUBPACKAGES = (
    "backbones",
    "choosing",
    "data",
    "evaluation",
    "formats",
    "methods",
    "models",
    "protocols",
    "testing",
    "training",
)

__all__ = [
    "AdaptError",
    "AdaptedModel",
    "Backbone",
    "Classifier",
    "data",
    "fit",
    "load",
    "load_backbone",
    "load_many",
    "methods",
    "predict_many",
    "recommend",
    "split_attention",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"adapt.{name}")
    raise AttributeError(f"module 'adapt' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is to use, imported yet or not."""
    return sorted({*__all__, *_SUBPACKAGES, "__version__"})
