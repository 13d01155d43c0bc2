"""Which class is of what is as it should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapt.errors import AdaptError, nearest


def normal_label(method: Any, class_names: Sequence[str]) -> int:
    """The number of the class that a method calls normal. AdaptError where none is, and for a method that asks not."""
    name = method.normal_class
    if name is None:
        raise AdaptError(f"{method.name} says what an image is, not where: take a method of maps, as anovl")
    if name not in class_names:
        raise AdaptError(
            f"{method.name}: no class is called {name!r}; {nearest(name, class_names)}. Set method.normal to the class "
            "of what is as it should be, and method.states to what is said of each class"
        )
    return class_names.index(name)
