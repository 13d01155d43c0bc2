"""The adapters and indexes that a server serves.

A change makes a new set of adapters; a running request keeps its old set.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from PIL import Image

from adapt.backbones.base import Backbone
from adapt.backbones.load import load_backbone
from adapt.backbones.sources import is_here
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError, nearest
from adapt.common.shown import brief, unseen
from adapt.formats import PEFT_CONFIG, name_of_adapter
from adapt.formats.adapter import read_header
from adapt.loading import backbone_key, class_names_of, load, located
from adapt.models.base import is_native
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.image_model import ImageModel
from adapt.models.many import SideBySide
from adapt.models.native_vlm import ChatModel
from adapt.models.unadapted import unadapted
from adapt.models.vision_encoder import VisionModel
from adapt.models.wrap import Model
from adapt.retrieval.index import Index, IndexHeader, load_index
from adapt.serving.worker import apart

logger = logging.getLogger("adapt")
_MOST_CLASSES = 5_000  # in an adapter loaded by a request: other requests wait while the class texts are encoded
_READY = 64  # combinations of adapters that are cached; clients choose them, so the number is bounded


class NoSuchAdapter(AdaptError):
    """The error for a request that names an adapter or an index that does not exist."""


class NotAllowed(AdaptError):
    """The error for a request to make a change to the loaded adapters that the server does not allow."""


class TooManyAdapters(AdaptError):
    """The error for a request to load an adapter when the maximum number of adapters is already loaded."""


ServedModel = AdaptedModel | VisionModel | ChatModel


@dataclass(frozen=True)
class Served:
    """An immutable set of served adapters by name, with a default adapter and a cache of adapter combinations."""

    models: dict[str, ServedModel]
    default: str
    _together: dict[tuple[str, ...], SideBySide] = field(default_factory=dict)

    def named(self, name: str) -> ServedModel:
        """Return the adapter `name`. Raises NoSuchAdapter if there is none."""
        if not self.models:
            raise NoSuchAdapter("there are only indexes here: send images and texts to /search")
        if name not in self.models:
            raise NoSuchAdapter(f"there is no adapter {brief(name)}; {nearest(name, self.models)}")
        return self.models[name]

    def speaker(self, name: str) -> ChatModel:
        """Return the adapter `name`, which answers in words. Raises AdaptError if it does not, or if there is none."""
        model = self.named(name)
        if not is_native(model):
            raise AdaptError(
                f"{name} does not answer in words: send images to /predict, or images and texts to /v1/embeddings"
            )
        return model

    def embedder(self, name: str) -> AdaptedModel | VisionModel:
        """Return the adapter `name`, which embeds images. Raises AdaptError if it does not, or if there is none."""
        model = self.named(name)
        if is_native(model):
            raise AdaptError(f"{name} answers in words, and embeds nothing: send conversations to /v1/chat/completions")
        return model

    def together(self, names: Sequence[str]) -> SideBySide:
        """Return a predictor that runs the named adapters side by side; methods that learn at test time are reset."""
        key = tuple(names)
        models = [self.named(name) for name in key]
        for name, model in zip(key, models, strict=True):
            if is_native(model) and not model.classifies:
                raise AdaptError(f"{name} answers in words: send conversations with its name to /v1/chat/completions")
            if not model.class_names:
                raise AdaptError(f"{name} has no classes: send images and texts with its name to /v1/embeddings")
        if len(set(key)) < len(key):
            raise AdaptError(f"an adapter is named twice in {', '.join(key)}: name each adapter once")
        together = self._together.get(key)
        if together is None:
            together = SideBySide(models)
            if not together.remembers and len(self._together) < _READY:
                together = self._together.setdefault(key, together)
        return together


@dataclass(frozen=True)
class ServedIndex:
    """An index, the model that encodes its queries, and whether this is an adapter that is served as well."""

    index: Index
    model: ImageModel
    by_adapter: bool


class ServedAdapters:
    """The adapters of a server, which can be loaded, unloaded and switched while requests are answered.

    Each of `given` is a path or `NAME=PATH`, and the first adapter is the default. If there is a `folder`, requests may
    load adapters from this folder, up to `most` adapters in total. Without a folder, requests can only reload adapters.
    Adapters with the same backbone share one copy of the backbone. `indexes` are given as adapters are; each is
    searched by the first adapter that fits it, or else by its backbone. Raises AdaptError if an adapter cannot be
    loaded or neither chats nor has features of images, if nothing fits an index, or if two have the same name.
    """

    def __init__(
        self,
        given: Iterable[str],
        folder: Path | None = None,
        backbone: Backbone | None = None,
        device: str = AUTO,
        most: int = 64,
        indexes: Iterable[str] = (),
    ) -> None:
        self.folder = None if folder is None else folder.resolve()
        if self.folder is not None and not self.folder.is_dir():
            raise AdaptError(f"--folder {folder} is not a folder: give a folder of adapters, or leave out --folder")
        self._backbone, self._device, self._most = backbone, device, most
        self._shared: WeakValueDictionary[str, Backbone] = WeakValueDictionary()
        self._changing = threading.Lock()
        # the path of each adapter and index, and the stamp of its files when they were read
        self._files: dict[str, tuple[Path, object]] = {}
        models = {name: self._of_file(name, path) for name, path in _named(given).items()}
        self.now = Served(models, next(iter(models), ""))
        self.indexes: dict[str, ServedIndex] = {}
        for name, path in _named(indexes, models).items():
            self._add_index(name, path)
        if not (models or self.indexes):
            raise AdaptError("there is nothing to serve: give the path of at least one adapter, or an --index")

    def index(self, name: str) -> ServedIndex:
        """Return the index `name`. Raises NoSuchAdapter if there is none."""
        if name not in self.indexes:
            raise NoSuchAdapter(f"there is no index {brief(name)}; {nearest(name, self.indexes)}")
        return self.indexes[name]

    def load(self, path: str, name: str | None = None) -> str:
        """Load the adapter at `path` in the server's folder, and return the name under which the adapter is served.

        The name is `name`, or the adapter's own name by default. The first of a server becomes its default. Raises
        NotAllowed without a folder, for a `path` outside the folder, a backbone that is not downloaded, or too many
        classes, and TooManyAdapters if the server is full.
        """
        place = self._within(path)
        with self._changing:
            name = _checked(name_of_adapter(place) if name is None else name, {*self.now.models, *self.indexes})
            if len(self.now.models) >= self._most:
                raise TooManyAdapters(
                    f"{self._most} adapters are loaded, which is the maximum: unload one of them first"
                )
            self._check_nothing_is_fetched(place)
            if (count := len(class_names_of(place))) > _MOST_CLASSES:  # encoding them would delay all requests
                raise NotAllowed(
                    f"{brief(place.name)} has {count:,} classes, and requests may load adapters with at most "
                    f"{_MOST_CLASSES:,}: start the server with it"
                )
            self.now = Served(self.now.models | {name: self._of_file(name, place)}, self.now.default or name)
        return name

    def reload(self) -> dict[str, Any]:
        """Load the adapters and indexes again whose files have changed; return names as `reloaded` and `unchanged`.

        An index whose adapter was reloaded or unloaded is matched with the present adapters. What cannot be loaded or
        matched without a download stays as it was, and its error is in `failed`, by name.
        """
        reloaded, unchanged, failed = list[str](), list[str](), dict[str, str]()
        with self._changing:
            for again, names in (self._adapter_again, [*self.now.models]), (self._index_again, [*self.indexes]):
                for name in names:
                    try:
                        (reloaded if again(name) else unchanged).append(name)
                    except AdaptError as error:
                        failed[name] = str(error)
        logger.info("reloaded: %s", ", ".join(reloaded) or ("none" if failed else "none, as no file has changed"))
        for name, message in failed.items():
            logger.warning("%s stays as it was: %s", name, message)
        return {"reloaded": reloaded, "unchanged": unchanged, "failed": failed}

    def _adapter_again(self, name: str) -> bool:
        """Load an adapter again if its files have changed, and return whether they have."""
        path, before = self._files[name]
        if _stamp(located(path)) == before:
            return False
        self._check_nothing_is_fetched(path)
        self.now = Served(self.now.models | {name: self._of_file(name, path)}, self.now.default)
        return True

    def _index_again(self, name: str) -> bool:
        """Load an index again if its file has changed or its adapter is gone, and return whether this is so."""
        (path, before), old = self._files[name], self.indexes[name]
        gone = old.by_adapter and not any(old.model is each for each in self.now.models.values())
        if _stamp(path, "index") == before and not gone:
            return False
        self._add_index(name, path, old.model.backbone)
        return True

    def unload(self, name: str) -> None:
        """Unload the adapter `name`; current requests are still answered. Raises AdaptError for the default adapter."""
        self._writable()
        with self._changing:
            self.now.named(name)
            if name == self.now.default:
                raise AdaptError(
                    f"{name} is the default adapter, which cannot be unloaded: make another adapter the default first"
                )
            self.now = Served({key: model for key, model in self.now.models.items() if key != name}, self.now.default)
            del self._files[name]

    def switch(self, name: str) -> None:
        """Make the adapter `name` the default adapter, which answers requests that do not name an adapter."""
        self._writable()
        with self._changing:
            self.now.named(name)
            self.now = Served(self.now.models, name)

    def _writable(self) -> Path:
        if self.folder is None:
            raise NotAllowed("this server does not change its adapters: start it with --folder FOLDER to allow that")
        return self.folder

    def _within(self, path: str) -> Path:
        """Return the path of a file or folder in the server's folder, with symbolic links resolved."""
        folder = self._writable()
        try:
            place = (folder / path).resolve()
            exists = place.exists()
        except (OSError, ValueError):  # not a valid file name
            place, exists = folder, False
        if not place.is_relative_to(folder):
            raise NotAllowed(f"{brief(path)} is not in the folder that adapters may be loaded from")
        if not exists:
            raise NoSuchAdapter(f"there is no adapter {brief(path)} in the folder that adapters may be loaded from")
        return place

    def _check_nothing_is_fetched(self, path: Path) -> None:
        """Raise NotAllowed if an adapter's backbone would have to be downloaded, which requests must not cause."""
        place = located(path)
        if self._backbone is not None or backbone_key(place) in self._shared:
            return
        if place.is_dir():
            needed = "the backbone that its peft configuration names" if (place / PEFT_CONFIG).is_file() else None
        else:
            name = read_header(place).backbone
            needed = None if name is None or is_here(name) else f"the backbone {brief(name)}"
        if needed is not None:
            raise NotAllowed(
                f"{brief(path.name)} needs {needed}, which is not loaded, and a request downloads none: start the "
                "server with an adapter of that backbone, or with --backbone"
            )

    def _of_file(self, name: str, path: Path) -> ServedModel:
        stamp = _stamp(located(path))  # before it is read, so that a file that changes meanwhile is read again
        model = apart(self._loaded, path)
        self._files[name] = path, stamp
        return model

    def _add_index(self, name: str, path: Path, backbone: Backbone | None = None) -> None:
        """Serve the index at `path`; if no adapter fits it, with `backbone`, or else with the one that it names."""
        stamp = _stamp(path, "index")
        self.indexes[name] = apart(self._searched, path, backbone or self._backbone)
        self._files[name] = path, stamp

    def _loaded(self, path: Path) -> ServedModel:
        key = None if self._backbone is not None else backbone_key(path)
        model = load(path, self._backbone or self._shared.get(key or ""), device=self._device)
        if not is_native(model) and not isinstance(model, ImageModel):
            raise AdaptError(
                f"{path} neither chats nor has features of images: give an adapter of a CLIP, of a model of images "
                "alone, or of a native vision-language model"
            )
        if key is not None:
            self._shared.setdefault(key, model.backbone)
        if isinstance(model, ImageModel) and model.class_names:
            model.predict(Image.new("RGB", (64, 64)))  # encodes the class texts now, not in the first request
        return model

    def _searched(self, path: Path, backbone: Backbone | None) -> ServedIndex:
        index = load_index(path)
        for model in self._encoders(index.header, backbone):
            if isinstance(model, ImageModel):
                with suppress(AdaptError):
                    index.check(model)
                    return ServedIndex(index, model, any(model is each for each in self.now.models.values()))
        advice = "the adapter that it was made with" if index.header.adapter else f"it anew for {index.header.backbone}"
        raise AdaptError(f"nothing here fits the index {path}: serve {advice}")

    def _encoders(self, header: IndexHeader, backbone: Backbone | None) -> Iterator[Model]:
        """Yield the adapters, and then without one their backbones, and the index's own."""
        adapters = [model for model in self.now.models.values() if isinstance(model, ImageModel)]
        yield from adapters
        if not header.adapter:
            yield from (unadapted(model.backbone.turning(True), ("object",)) for model in adapters)
            backbone = backbone or load_backbone(header.backbone, self._device)
            yield unadapted(backbone.turning(True), ("object",))


def _stamp(place: Path, what: str = "adapter") -> object:
    """Return what changes with the files of an adapter or an index. Raises AdaptError if there are none."""
    try:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        return [(file.name, (status := file.stat()).st_mtime_ns, status.st_size, status.st_ino) for file in files]
    except OSError as error:
        raise AdaptError(f"there is no {what} at {place}: {error.strerror or error}") from error


def _named(given: Iterable[str], taken: Collection[str] = ()) -> dict[str, Path]:
    """Return the path of each of `given`, a path or `NAME=PATH`, by its name. Raises AdaptError for a `taken` name."""
    named: dict[str, Path] = {}
    for each in given:
        name, mark, path = each.partition("=")
        if not (mark and name) or "/" in name or os.path.exists(each):  # a path alone
            name, path = name_of_adapter(Path(each)), each
        named[_checked(name, {*taken, *named})] = Path(path)
    return named


def _checked(name: str, taken: Collection[str]) -> str:
    if not name.strip() or "/" in name or unseen(name):
        raise AdaptError(f"an adapter cannot be called {brief(name)}: give a visible name without / as NAME=PATH")
    if name in taken:
        raise AdaptError(f"the name {name} is given twice: give one of the two another name, as NAME=PATH")
    return name
