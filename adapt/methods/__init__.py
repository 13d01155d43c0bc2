"""One paper, one file. A method is found by its file: `coop.py` holds the method called `coop`.

Methods of other people are found by an entry point in the group `adapt.methods` of an installed package, whose name is
the method's, or are told of by `register`. `adapt.methods.CoOp` and the like are imported when first used, so that
listing names costs nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from adapt.errors import AdaptError, nearest

if TYPE_CHECKING:
    from adapt.methods.base import Method

GROUP = "adapt.methods"
_NOT_METHODS = {"base"}
_registered: dict[str, type[Method]] = {}
M = TypeVar("M", bound="type[Method]")


def names() -> list[str]:
    """The names of all methods: those of the files in this package, of installed packages, and registered ones."""
    return sorted({*_files(), *_entry_points(), *_registered})


def find(name: str) -> type[Method]:
    """The method class called `name`. Raises AdaptError with the nearest names, or where a package cannot be loaded."""
    if name in _files():
        module = importlib.import_module(f"{__name__}.{name}")
        return next(cls for cls in classes_of(module) if cls.name == name)
    if name in _registered:
        return _registered[name]
    if name in _entry_points():
        return _loaded(_entry_points()[name])
    raise AdaptError(
        f"unknown method {name!r}; {nearest(name, names())}. One of your own is known by `adapt --plugin FILE`, "
        "`adapt.methods.register`, or once its package is installed"
    )


def register(cls: M) -> M:
    """Makes a method of one's own known by its name in this process; also as a decorator.

    Raises AdaptError where it is no method, has no name, or another method has its name.
    """
    _check(cls)
    taken = cls.name in _files() or cls.name in _entry_points()
    if taken or _registered.get(cls.name, cls) is not cls:
        raise AdaptError(f"there is a method called {cls.name!r} already: give {cls.__name__} another name")
    _registered[cls.name] = cls
    return cls


@contextmanager
def known(cls: type[Method]) -> Iterator[None]:
    """Inside, a method of one's own is known by its name, if it was not before."""
    before = dict(_registered)
    if not (cls.name in _files() or cls.name in _entry_points()):
        register(cls)
    try:
        yield
    finally:
        _registered.clear()
        _registered.update(before)


def classes_of(module: Any) -> list[type[Method]]:
    """The method classes that `module` itself defines and names: others are what those are made from."""
    from adapt.methods.base import Method

    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Method)]
    return [cls for cls in found if cls.__module__ == module.__name__ and "name" in vars(cls)]


def _files() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_METHODS]


def _entry_points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if found.setdefault(point.name, point).value != point.value:
            other = found[point.name].value
            raise AdaptError(f"two packages have a method called {point.name!r}, {other} and {point.value}: keep one")
    return found


def _loaded(point: EntryPoint) -> type[Method]:
    try:
        cls = point.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises
        raise AdaptError(
            f"the method {point.name!r} of {point.value} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    _check(cls)
    if cls.name != point.name:
        raise AdaptError(f"the method of {point.value} is called {cls.name!r}, and its entry point {point.name!r}")
    return cls


def _check(cls: Any) -> None:
    from adapt.methods.base import FAMILIES, Method, MethodConfig

    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise AdaptError(f"{cls!r} is no method: expected a class made from adapt.methods.base.Method")
    name = getattr(cls, "name", None)
    if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name)):
        raise AdaptError(
            f"{cls.__name__} is called {name!r}: give the class a `name` of small letters, digits and _, by which "
            "recipes and adapters call it"
        )
    if not (isinstance(cls.Config, type) and issubclass(cls.Config, MethodConfig)):
        raise AdaptError(
            f"{name}: Config is {cls.Config!r}; expected a class made from adapt.methods.base.MethodConfig"
        )
    if not set(cls.serves) or set(cls.serves) - set(FAMILIES):
        raise AdaptError(f"{name}: serves is {cls.serves!r}; expected some of {', '.join(FAMILIES)}")


def __getattr__(attribute: str) -> Any:
    if not attribute.startswith("_"):
        for name in _files():
            for cls in classes_of(importlib.import_module(f"{__name__}.{name}")):
                if cls.__name__ == attribute:
                    return cls
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
