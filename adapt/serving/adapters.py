"""The adapters that are served: a set that changes as a whole, while requests go on with the one they began with."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from PIL import Image

from adapt.adapter_names import name_of_adapter
from adapt.backbones.base import Backbone
from adapt.backbones.sources import is_here
from adapt.devices import AUTO
from adapt.errors import AdaptError, nearest
from adapt.formats import peft_layout
from adapt.formats.header import read_header
from adapt.loading import backbone_key, class_names_of, load, located
from adapt.models.classifier import AdaptedModel
from adapt.models.many import SideBySide
from adapt.serving.threads import apart
from adapt.shown import brief, unseen

_MOST_CLASSES = 5_000  # of an adapter that a request loads: their texts are encoded while others wait for answers
_READY = 64  # choices of adapters that are kept ready; whoever asks chooses


class NoSuchAdapter(AdaptError):
    """A name that no served adapter has."""


class NotAllowed(AdaptError):
    """A change that the server was not started for."""


class TooManyAdapters(AdaptError):
    """One more than the server was started for."""


@dataclass(frozen=True)
class Served:
    """The adapters at one moment, by name, one of them the default. Answers of some of them together are kept ready."""

    models: dict[str, AdaptedModel]
    default: str
    _together: dict[tuple[str, ...], SideBySide] = field(default_factory=dict)

    def together(self, names: Sequence[str]) -> SideBySide:
        """Those adapters side by side. One that remembers what it was asked begins anew for each request."""
        key = tuple(names)
        for name in key:
            if name not in self.models:
                raise NoSuchAdapter(f"no adapter {brief(name)} is loaded; {nearest(name, self.models)}")
        if len(set(key)) < len(key):
            raise AdaptError(f"{', '.join(key)}: one adapter is named twice; name each of them once")
        known = self._together.get(key)
        if known is None:
            known = SideBySide([self.models[name] for name in key])
            if not known.remembers and len(self._together) < _READY:
                known = self._together.setdefault(key, known)
        return known


class ServedAdapters:
    """Loads, unloads and switches adapters while they are asked.

    `given` are paths, or `NAME=PATH`, of which the first is the default. Of `folder`, where there is one, adapters may
    be loaded later, up to `most` in all; without one the set stays as it is. Those that name one backbone share it.
    Raises AdaptError for an adapter that cannot be loaded or does not classify, and for two of one name.
    """

    def __init__(
        self,
        given: Iterable[str],
        folder: Path | None = None,
        backbone: Backbone | None = None,
        device: str = AUTO,
        most: int = 64,
    ) -> None:
        self.folder = None if folder is None else folder.resolve()
        if self.folder is not None and not self.folder.is_dir():
            raise AdaptError(f"--folder {folder} is no folder: give one that holds adapters, or leave it out")
        self._backbone, self._device, self._most = backbone, device, most
        self._shared: WeakValueDictionary[str, Backbone] = WeakValueDictionary()
        self._changing = threading.Lock()
        models: dict[str, AdaptedModel] = {}
        for each in given:
            name, path = _named(each)
            _check_free(name, models)
            models[name] = apart(self._loaded, path)
        if not models:
            raise AdaptError("there is no adapter to serve: give at least one")
        self.now = Served(models, next(iter(models)))

    def load(self, path: str, name: str | None = None) -> str:
        """Adds the adapter at `path`, relative to the folder, by `name` or its own; returns the name.

        Raises NotAllowed without a folder, for a path that leads out of it, and for a backbone that would have to be
        fetched, or very many classes; TooManyAdapters where no more may be loaded.
        """
        found = self._within(path)
        name = _checked(name_of_adapter(found) if name is None else name)
        with self._changing:
            _check_free(name, self.now.models)
            if len(self.now.models) >= self._most:
                raise TooManyAdapters(f"{self._most} adapters may be loaded, and are: unload one of them first")
            self._check_nothing_is_fetched(found)
            _check_classes(found)
            self.now = Served(self.now.models | {name: apart(self._loaded, found)}, self.now.default)
        return name

    def unload(self, name: str) -> None:
        """Takes one out; requests that have begun are still answered. Raises AdaptError for the default one."""
        self._writable()
        with self._changing:
            self.now.together([name])
            if name == self.now.default:
                raise AdaptError(f"{name} is the default: make another one the default first")
            self.now = Served({key: model for key, model in self.now.models.items() if key != name}, self.now.default)

    def switch(self, name: str) -> None:
        """Makes one the default, which answers where a request names none."""
        self._writable()
        with self._changing:
            self.now.together([name])
            self.now = Served(self.now.models, name)

    def _writable(self) -> Path:
        if self.folder is None:
            raise NotAllowed("the adapters stay as they were given: start with --folder FOLDER to change them")
        return self.folder

    def _within(self, path: str) -> Path:
        """The file or folder at `path` of the folder, links followed."""
        folder = self._writable()
        try:
            found = (folder / path).resolve()
            exists = found.exists()
        except (OSError, ValueError):  # what no file can be called
            found, exists = folder, False
        if not found.is_relative_to(folder):
            raise NotAllowed(f"{brief(path)} is not under the folder that adapters may be loaded from")
        if not exists:
            raise NoSuchAdapter(f"there is no adapter {brief(path)} in the folder that adapters may be loaded from")
        return found

    def _check_nothing_is_fetched(self, path: Path) -> None:
        """NotAllowed where the adapter's backbone is neither loaded nor on this machine: who asks is not who serves."""
        place = located(path)
        if self._backbone is not None or backbone_key(place) in self._shared:
            return
        if place.is_dir():
            told = "names a backbone in peft's way" if (place / peft_layout.CONFIG).is_file() else None
        else:
            name = read_header(place).backbone
            told = None if name is None or is_here(name) else f"is of the backbone {brief(name)}"
        if told is not None:
            raise NotAllowed(
                f"{brief(path.name)} {told}, which is not loaded, and a request fetches none: start the server with an "
                "adapter of it, or with --backbone"
            )

    def _loaded(self, path: Path) -> AdaptedModel:
        key = None if self._backbone is not None else backbone_key(path)
        model = load(path, self._backbone or self._shared.get(key or ""), device=self._device)
        if not isinstance(model, AdaptedModel) or not model.class_names:
            raise AdaptError(f"{path} does not classify images by names of classes: adapters that do are served")
        if key is not None:
            self._shared.setdefault(key, model.backbone)
        model.predict(Image.new("RGB", (64, 64)))  # the texts of the classes are encoded now, not in the first request
        return model


def _check_classes(path: Path) -> None:
    """NotAllowed for an adapter of so many classes that their texts would hold up everybody's answers."""
    count = len(class_names_of(path))
    if count > _MOST_CLASSES:
        raise NotAllowed(
            f"{brief(path.name)} has {count:,} classes, and a request loads adapters of at most {_MOST_CLASSES:,}: "
            "start the server with it"
        )


def _named(given: str) -> tuple[str, Path]:
    """The name and the path in `NAME=PATH`, or in a path, whose folders may be called such as `train.lr=0.01`."""
    name, mark, path = given.partition("=")
    if not (mark and name) or "/" in name or os.path.exists(given):
        name, path = name_of_adapter(Path(given)), given
    return _checked(name), Path(path)


def _checked(name: str) -> str:
    if not name.strip() or "/" in name or unseen(name):
        raise AdaptError(f"an adapter cannot be called {brief(name)}: give it a name without / as NAME=PATH")
    return name


def _check_free(name: str, models: dict[str, AdaptedModel]) -> None:
    if name in models:
        raise AdaptError(f"two adapters are called {name}: give one of them another name, as NAME=PATH")
