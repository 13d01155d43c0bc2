"""An index: unit-length features of texts, images or pairs, and what they are of, in one checked file; exact search.

The file is a `.safetensors` with `features` `(n, e)` in fp32 and `entries`, what they are called as JSON in UTF-8. Its
metadata say with which backbone, and under which adapter, they were encoded: another one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from adapt import plain
from adapt.data.item import Item
from adapt.disk import replacing
from adapt.errors import AdaptError
from adapt.formats import tensor_file
from adapt.methods.base.space import Space, space_of
from adapt.methods.base.traits import owns_prompts
from adapt.models.base import evaluating, pixel_batches
from adapt.models.classifier import AdaptedModel
from adapt.validation import explain

Kind = Literal["texts", "images", "pairs"]
TEXTS_AT_ONCE, IMAGES_AT_ONCE = 512, 64
_WHAT = tensor_file.What("index", "make it again by `adapt index`")


class IndexHeader(BaseModel):
    """What the file says of its features."""

    model_config = ConfigDict(extra="forbid")

    index_format: Literal["1"] = "1"
    kind: Kind
    backbone: str
    """Its name; "" where it has none."""
    fingerprint: str
    reading: str
    """How inputs are prepared for it, as JSON."""
    adapter: str = ""
    """The checksum of the adapter under which they were encoded; "" for the backbone by itself."""


@dataclass(frozen=True)
class Index:
    """`features` `(n, e)` of unit length, on the CPU, of as many `entries`: texts, paths of images, or what pairs of
    both are of, by their entities or else paths."""

    header: IndexHeader
    entries: tuple[str, ...]
    features: Tensor

    def __len__(self) -> int:
        return len(self.entries)

    def nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The cosines `(b, k)` of unit-length `queries` `(b, e)` with the nearest entries, and their places `(b, k)`.

        Of all entries, exactly; the nearest first, and k is `count` or as many as there are.
        """
        return (queries.to(self.features) @ self.features.T).topk(min(count, len(self)), dim=-1)

    def check(self, model: AdaptedModel) -> None:
        """AdaptError unless the features are by `model`'s backbone, and under its adapter, and as wide as its own.

        Or by the backbone alone that the adapter stands for.
        """
        self._check_origin(model)
        width = (space_of(model.method) or Space.of(model.backbone)).size
        if self.features.shape[-1] != width:
            raise AdaptError(
                f"the index holds features of {self.features.shape[-1]:,} values, and those of "
                f"{model.backbone.describe()} have {width:,}: it was made by hand; make it again by `adapt index`"
            )

    def _check_origin(self, model: AdaptedModel) -> None:
        old = space_of(model.method)
        if old is not None and self._lies_in(old) and not self.header.adapter:
            return
        if not self._lies_in(Space.of(model.backbone)):
            stands_for = "" if old is None else f", nor is {old.backbone or 'the one'} that its adapter stands for"
            raise AdaptError(
                f"the index holds features by {self.header.backbone or 'another backbone'}, and "
                f"{model.backbone.describe()} is not the same, or prepares its inputs otherwise{stands_for}: load that "
                "one, or make the index again by `adapt index`"
            )
        adapter, under = identity_of(model), f"under {model.method.name}"
        if adapter == self.header.adapter:
            return
        if not self.header.adapter:
            raise AdaptError(
                f"the index was made by the backbone alone, and the question comes {under}: leave the adapter out, or "
                "make the index under it"
            )
        made, asked = ("another", under) if adapter else ("an", "by the backbone alone")
        raise AdaptError(
            f"the index was made under {made} adapter, and the question comes {asked}: give the one of the index"
        )

    def _lies_in(self, space: Space) -> bool:
        return (self.header.fingerprint, self.header.reading) == (space.fingerprint, space.reading)

    def save(self, path: str | Path) -> Path:
        """Writes the file, atomically."""
        text = torch.frombuffer(bytearray(plain.dump(list(self.entries)).encode()), dtype=torch.uint8)
        with replacing(path) as temporary:
            tensor_file.write({"features": self.features, "entries": text}, temporary, self.header.model_dump())
        return Path(path)


def load_index(path: str | Path) -> Index:
    """The index at `path`. AdaptError, naming what is wrong, for a file that is none, or is damaged."""
    path = Path(path)
    described, tensors = tensor_file.describe(path, _WHAT), tensor_file.read(path, _WHAT)
    try:
        header = IndexHeader.model_validate(described.metadata)
    except ValidationError as error:
        raise AdaptError(explain(IndexHeader, error, f"{path} is no index")) from None
    features, text = tensors.pop("features", None), tensors.pop("entries", None)
    if features is None or text is None or tensors:
        raise AdaptError(f"{path} is no index: expected the tensors features and entries; {_WHAT.advice}")
    if features.ndim != 2 or features.dtype != torch.float32 or text.ndim != 1 or text.dtype != torch.uint8:
        raise AdaptError(f"{path} is no index: its tensors are of another type or shape; {_WHAT.advice}")
    try:
        entries = plain.parse(text.numpy().tobytes())
        if not (isinstance(entries, list) and all(isinstance(each, str) for each in entries)):
            raise ValueError("expected a list of texts")
    except ValueError as error:
        raise AdaptError(f"the entries of {path} cannot be read: {error}; {_WHAT.advice}") from None
    if len(entries) != len(features) or not entries:
        raise AdaptError(f"{path} has {len(features):,} features of {len(entries):,} entries; {_WHAT.advice}")
    if not torch.allclose(features.norm(dim=-1), torch.ones(len(features)), atol=1e-3):  # also of what is not finite
        raise AdaptError(f"the features of {path} are not of unit length; {_WHAT.advice}")
    return Index(header, tuple(entries), features)


def index_texts(model: AdaptedModel, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> Index:
    """An index of `texts`, as `model` encodes them.

    AdaptError for no text, an empty one, or one that is longer than the text tower reads.
    """
    _check(texts, "text")
    _check_prompts(model)
    parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
    encoded = (model.text_features(part, edited=True) for part in parts)
    return _index("texts", model, texts, encoded, progress)


def index_images(
    model: AdaptedModel, paths: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> Index:
    """An index of the images at `paths`, as `model` encodes them. AdaptError for none, or one that does not decode."""
    _check(paths, "image")
    return _index("images", model, paths, _of_images(model, paths), progress)


def index_pairs(
    model: AdaptedModel, items: Sequence[Item], progress: Callable[[int, int], None] | None = None
) -> Index:
    """An index of pairs, each image with its text one entry, as `model` encodes and pools them (`Method.pool`).

    They are called by their entities, or else paths. AdaptError for none, or what is no pair, and as for images and
    texts.
    """
    entries = [item.unit or item.path for item in items]
    _check(entries, "pair")
    _check_prompts(model)
    if other := next((item for item in items if not (item.paths and item.text)), None):
        raise AdaptError(f"{other.name!r} is no image with its text: give a .csv with path,text, perhaps with entity")

    def encoded() -> Iterator[Tensor]:
        start = 0
        for images in _of_images(model, [item.path for item in items]):
            texts = [item.text for item in items[start : start + len(images)]]
            yield model.pair_features(images, model.text_features(texts, edited=True))
            start += len(images)

    return _index("pairs", model, entries, encoded(), progress)


def _of_images(model: AdaptedModel, paths: Sequence[str]) -> Iterator[Tensor]:
    transform, device = model.backbone.transform(train=False), model.backbone.device
    for pixels in pixel_batches(paths, transform, IMAGES_AT_ONCE, device):
        with evaluating(model), torch.no_grad():
            yield model.image_features(pixels)


def identity_of(model: AdaptedModel) -> str:
    """What stands for the adapter under which `model` encodes; "" where it changes no tower."""
    method = model.method
    if not method.touches:
        return ""
    settings = plain.dump(method.config.model_dump(mode="json"))
    return tensor_file.checksum(method.state_dict(), {"name": method.name, "settings": settings})


def _check_prompts(model: AdaptedModel) -> None:
    if owns_prompts(model.method):
        raise AdaptError(
            f"{model.method.name} learned words of prompts, which other texts do not have: make the index by the "
            "backbone alone, or under an adapter that changes the towers, such as lora"
        )


def _check(entries: Sequence[str], what: str) -> None:
    if not entries:
        raise AdaptError(f"there is no {what} to make an index of")
    for number, entry in enumerate(entries, 1):
        if not entry.strip():
            raise AdaptError(f"{what} {number} of the index is empty: take it out")


def _index(
    kind: Kind,
    model: AdaptedModel,
    entries: Sequence[str],
    encoded: Any,
    progress: Callable[[int, int], None] | None,
) -> Index:
    features: list[Tensor] = []
    done = 0
    for part in encoded:
        features.append(F.normalize(part.float(), dim=-1).cpu())
        done += len(part)
        if progress is not None:
            progress(done, len(entries))
    by = Space.of(model.backbone).model_dump(exclude={"size"})
    header = IndexHeader(kind=kind, adapter=identity_of(model), **by)
    return Index(header, tuple(entries), torch.cat(features))
