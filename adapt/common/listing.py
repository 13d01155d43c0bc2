"""Discovery of classes (such as methods) by name: in the files of a package, by entry points, or by registration."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from adapt.common.errors import AdaptError, nearest

logger = logging.getLogger("adapt")
T = TypeVar("T")


@dataclass(eq=False)
class Listing(Generic[T]):
    """A registry of the subclasses of `base` (such as all methods), by the class attribute `name`.

    A file `coop.py` in the package `package` defines the class called `coop`. Installed packages add classes by entry
    points in the group `group`, and `register` adds a class in this process. Files in `others` define no class. `what`,
    `advice` and the command `listed_by` stand in messages, and `check` refuses a class that is registered.
    """

    package: str
    path: Iterable[str]
    group: str
    base: Callable[[], type[T]]
    what: str
    others: frozenset[str]
    listed_by: str = ""
    advice: str = ""
    check: Callable[[type[T]], None] = lambda cls: None
    _registered: dict[str, type[T]] = field(default_factory=dict, init=False)
    _broken: set[str] = field(default_factory=set, init=False)

    def names(self) -> list[str]:
        """Return the sorted names of all classes, from files of the package, from entry points, and from `register`."""
        return sorted({*self.files(), *self._entry_points(), *self._registered})

    def find(self, name: str) -> type[T]:
        """Return the class called `name`. Raises AdaptError if the name is unknown or the import fails."""
        if name in self.files():
            module = importlib.import_module(f"{self.package}.{name}")
            return next(cls for cls in self.classes_of(module) if cls.name == name)  # type: ignore[attr-defined]
        if name in self._registered:
            return self._registered[name]
        if name in self._entry_points():
            return self._loaded(self._entry_points()[name])
        raise AdaptError(f"unknown {self.what} {name!r}; {nearest(name, self.names(), self.listed_by)}{self.advice}")

    def classes(self, without: Container[str] = ()) -> Iterator[type[T]]:
        """Yield all classes by name, but for those of the files `without`, which are not imported.

        A package that cannot be imported is left out, with a warning the first time.
        """
        for name in self.names():
            if name in without:
                continue
            try:
                yield self.find(name)
            except AdaptError as error:
                if name not in self._broken:
                    logger.warning("%s: it is left out; repair or uninstall the package", error)
                self._broken.add(name)

    def claiming(self, claims: Callable[[type[T]], bool], files: Container[str]) -> Iterator[type[T]]:
        """Yield the classes for which `claims` is true: of `files` and other packages or, if none, of other files."""
        others = [name for name in self.files() if name not in files]
        claimed = False
        for cls in filter(claims, self.classes(others)):
            claimed = True
            yield cls
        if not claimed:
            yield from filter(claims, map(self.find, others))

    def register(self, cls: type[T]) -> type[T]:
        """Register a class under its attribute `name` in this process, and return the class.

        Raises AdaptError if `cls` is not a subclass of the base class, has no valid name, or has a name that is taken.
        """
        name = self._checked(cls)
        point = self._entry_points().get(name)
        taken = name in self.files() or not (point is None or _names(point, cls))
        if taken or self._registered.get(name, cls) is not cls:
            raise AdaptError(f"there is a {self.what} called {name!r} already: give {cls.__name__} another name")
        self._registered[name] = cls
        return cls

    @contextmanager
    def known(self, cls: type[T]) -> Iterator[None]:
        """Register a class for the duration of a `with` block, if no file or entry point defines its name."""
        before = dict(self._registered)
        if not ((name := self._checked(cls)) in self.files() or name in self._entry_points()):
            self.register(cls)
        try:
            yield
        finally:
            self._registered.clear()
            self._registered.update(before)

    def classes_of(self, module: ModuleType) -> list[type[T]]:
        """Return the named subclasses of the base class that `module` itself defines, without imported classes."""
        base = self.base()
        own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
        return [cls for cls in own if cls.__module__ == module.__name__ and "name" in vars(cls)]

    def files(self) -> list[str]:
        """Return the names of the package's modules that each define a class of the same name."""
        return [name for name in _modules(tuple(map(_changed, self.path))) if name not in self.others]

    def _entry_points(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in _installed(self.group, tuple(map(_changed, sys.path))):
            if points.setdefault(point.name, point).value != point.value:
                other = points[point.name].value
                raise AdaptError(
                    f"two packages, {other} and {point.value}, have a {self.what} called {point.name!r}: uninstall one"
                )
        return points

    def _loaded(self, point: EntryPoint) -> type[T]:
        try:
            cls = point.load()
        except (Exception, SystemExit) as error:  # a foreign module may raise anything
            raise AdaptError(
                f"the {self.what} {point.name!r} of {point.value} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if (name := self._checked(cls)) != point.name:
            raise AdaptError(
                f"the {self.what} of {point.value} is called {name!r}, but its entry point is called {point.name!r}: "
                "use the same name"
            )
        loaded: type[T] = cls
        return loaded

    def _checked(self, cls: type) -> str:
        """Return the name of `cls`. Raises AdaptError for a class with another base or with an invalid name."""
        base = self.base()
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise AdaptError(f"{cls!r} is not a {self.what}; expected a subclass of {base.__module__}.{base.__name__}")
        name = getattr(cls, "name", None)
        if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name)):
            raise AdaptError(
                f"{cls.__name__} has the `name` {name!r}; expected lower-case letters, digits and _: change the "
                "attribute `name`, by which recipes and adapters refer to the class"
            )
        self.check(cls)
        return name


def _names(point: EntryPoint, cls: type) -> bool:
    """Return whether an entry point names `cls`, perhaps by another module or with its file run by itself."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    module, _, attribute = point.value.partition(":")
    return attribute == cls.__qualname__ and module.partition(".")[0] in Path(file).with_suffix("").parts


@lru_cache(maxsize=64)
def _installed(group: str, places: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group; reading them takes 25 ms, so they are read again only if `places` changed."""
    return tuple(entry_points(group=group))


@lru_cache(maxsize=64)
def _modules(places: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """Return the names of the modules in directories; they are looked for again only if `places` changed."""
    return tuple(module.name for module in pkgutil.iter_modules([place for place, _ in places]))


def _changed(place: str) -> tuple[str, int]:
    """Return a directory, and when a file or package was last put into it."""
    try:
        return place, Path(place or ".").stat().st_mtime_ns
    except OSError:
        return place, 0
