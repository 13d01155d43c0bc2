"""One paper, one file. A method is found by its file: `coop.py` holds the method called `coop`.

`adapt.methods.CoOp` and the like are imported when first used, so that listing names costs nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from adapt.errors import AdaptError, nearest

if TYPE_CHECKING:
    from adapt.methods.base import Method

_NOT_METHODS = {"base", "peft_layers"}


def names() -> list[str]:
    """The names of all methods: those of the files in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_METHODS)


def find(name: str) -> type[Method]:
    """The method class called `name`. Raises AdaptError with the nearest names."""
    if name not in names():
        raise AdaptError(f"unknown method {name!r}; {nearest(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return next(cls for cls in _classes(module) if cls.name == name)


def _classes(module: Any) -> list[type[Method]]:
    """The method classes that `module` itself defines."""
    from adapt.methods.base import Method

    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Method)]
    return [cls for cls in found if cls.__module__ == module.__name__ and cls is not Method]


def __getattr__(attribute: str) -> Any:
    if not attribute.startswith("_"):
        for name in names():
            for cls in _classes(importlib.import_module(f"{__name__}.{name}")):
                if cls.__name__ == attribute:
                    return cls
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
