"""An index for exact search: unit-length features of texts, images or pairs, with their names, in one file.

The file is a `.safetensors` with `features` `(n, e)` in fp32 and `entries`, the names as JSON in UTF-8. Its metadata
record the backbone and the adapter that encoded the features; queries by other models are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from adapt.common import plain
from adapt.common.disk import replacing
from adapt.common.errors import AdaptError
from adapt.common.progress import Progress
from adapt.common.validation import explain
from adapt.data.decoding.images import in_batches, picture_batches
from adapt.data.decoding.pictures import turns
from adapt.data.item import Item
from adapt.formats import tensor_file
from adapt.methods.base import ImageStep
from adapt.methods.base.space import Space, space_of
from adapt.methods.base.traits import Composes, Projects, has_trait, trait
from adapt.models.base import evaluating
from adapt.models.image_model import ImageModel

Kind = Literal["texts", "images", "pairs"]
TEXTS_AT_ONCE, IMAGES_AT_ONCE = 512, 64
_WHAT = tensor_file.What("index", "make the index again with `adapt index`")

_NEARLY_ALIKE = 1e-6  # sines of angles below which linear interpolation is used


class IndexHeader(BaseModel, extra="forbid"):
    """The metadata of a search index, such as the backbone and the adapter with which the features were computed."""

    index_format: Literal["1"] = "1"
    kind: Kind
    backbone: str
    """Its name; "" if it has none."""
    fingerprint: str
    reading: str
    """The preparation of inputs, as JSON."""
    adapter: str = ""
    """The checksum of the adapter; "" for the backbone without one."""
    dim: int | None = Field(default=None, ge=1)
    """The number of values that were kept of each feature; None if all were kept."""


@dataclass(frozen=True)
class Index:
    """A search index with unit-length `features` `(n, e)` on the CPU, and n `entries` (texts, paths or entities)."""

    header: IndexHeader
    entries: tuple[str, ...]
    features: Tensor

    def __len__(self) -> int:
        return len(self.entries)

    def shortened(self, dim: int) -> Index:
        """Return an index with only the first `dim` values of each feature, normalised again.

        Raises AdaptError if the features have fewer values.
        """
        if dim > self.features.shape[-1]:
            raise AdaptError(f"--dim is {dim}; expected at most {self.features.shape[-1]}, the values of a feature")
        return replace(
            self,
            header=self.header.model_copy(update={"dim": dim}),
            features=F.normalize(self.features[:, :dim], dim=-1),
        )

    def nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return cosines `(b, k)` of unit-length `queries` `(b, e)` to the nearest features, and the features' indices.

        The search is exact, and the nearest feature comes first. k is the smaller of `count` and the size of the index.
        For an index of shortened features, queries are shortened alike.
        """
        size = self.features.shape[-1]
        if queries.shape[-1] < size:
            raise AdaptError(
                f"a query has {queries.shape[-1]:,} values, and the features of the index have {size:,}: encode the "
                "query as the index was made, without use.dim"
            )
        if self.header.dim is not None:
            queries = F.normalize(queries[:, : self.header.dim], dim=-1)
        return (queries.to(self.features) @ self.features.T).topk(min(count, len(self)), dim=-1)

    def check(self, model: ImageModel) -> None:
        """Raise AdaptError unless `model` has the backbone, preprocessing and adapter with which the index was made.

        If the index was made without an adapter, `model` may also have an adapter that projects features into the
        embedding space of the index's backbone.
        """
        old = space_of(model.method)
        projects = old is not None and self._lies_in(old) and not self.header.adapter
        if not (projects or self._lies_in(Space.of(model.backbone))):
            projected = "" if old is None else f", and so does {old.backbone or 'the backbone'} of the adapter's space"
            raise AdaptError(
                f"the index was made with {self.header.backbone or 'another backbone'}, but "
                f"{model.backbone.describe()} is a different backbone, or preprocesses inputs differently{projected}: "
                "load the backbone of the index, or make the index again with `adapt index`"
            )
        adapter = self.header.adapter if projects else identity_of(model)
        if adapter != self.header.adapter:
            made = ("with another" if adapter else "with an") if self.header.adapter else "without an"
            query = f"with {model.method.name}" if adapter else "without an adapter"
            raise AdaptError(
                f"the index was made {made} adapter, but the query is encoded {query}: encode the query in the same "
                "way as the index, or make the index again with `adapt index`"
            )
        width = _size(model)
        if self.features.shape[-1] != min(width, self.header.dim or width):
            raise AdaptError(
                f"the index has features of dimension {self.features.shape[-1]:,}, but the features of "
                f"{model.backbone.describe()} have dimension {width:,}: {_WHAT.advice}"
            )

    def _lies_in(self, space: Space) -> bool:
        return (self.header.fingerprint, self.header.reading) == (space.fingerprint, space.reading)

    def save(self, path: str | Path) -> Path:
        """Write the index atomically to a file at `path`, and return the path."""
        text = torch.frombuffer(bytearray(plain.dump(list(self.entries)).encode()), dtype=torch.uint8)
        with replacing(path) as temporary:
            header = {key: str(value) for key, value in self.header.model_dump(exclude_none=True).items()}
            tensor_file.write({"features": self.features, "entries": text}, temporary, header)
        return Path(path)


def load_index(path: str | Path) -> Index:
    """Return the index in the file at `path`. Raises AdaptError if the file is damaged, or is not an index."""
    path = Path(path)
    described, tensors = tensor_file.describe(path, _WHAT), tensor_file.read(path, _WHAT)
    try:
        header = IndexHeader.model_validate(described.metadata)
    except ValidationError as error:
        raise AdaptError(explain(IndexHeader, error, f"{path} is not an index")) from None
    features, text = tensors.pop("features", None), tensors.pop("entries", None)
    if features is None or text is None or tensors:
        raise AdaptError(f"{path} is not an index; expected exactly the tensors features and entries: {_WHAT.advice}")
    if features.ndim != 2 or features.dtype != torch.float32 or text.ndim != 1 or text.dtype != torch.uint8:
        raise AdaptError(f"{path} is not an index; expected float32 features and uint8 entries: {_WHAT.advice}")
    try:
        entries = plain.parse(text.numpy().tobytes())
        if not (isinstance(entries, list) and all(isinstance(each, str) for each in entries)):
            raise ValueError("the tensor entries does not contain a JSON list of texts")
    except ValueError as error:
        raise AdaptError(f"the entries of {path} cannot be read: {error}; {_WHAT.advice}") from None
    if len(entries) != len(features) or not entries:
        raise AdaptError(f"{path} has {len(features):,} features, but {len(entries):,} entries: {_WHAT.advice}")
    if not torch.allclose(features.norm(dim=-1), torch.ones(len(features)), atol=1e-3):  # false for NaN
        raise AdaptError(f"the features in {path} are not normalised to unit length: {_WHAT.advice}")
    return Index(header, tuple(entries), features)


def index_texts(model: ImageModel, texts: Sequence[str], progress: Progress | None = None) -> Index:
    """Return a search index of `texts`, whose features are computed with `model`.

    Raises AdaptError if `texts` is empty, or if a text is empty or too long for the text tower.
    """
    _check(texts, "text")
    model.check_encodes_texts()
    encoded = (model.text_features(part, edited=True) for part in in_batches(texts, TEXTS_AT_ONCE))
    return _index("texts", model, texts, encoded, progress)


def index_images(model: ImageModel, paths: Sequence[str], progress: Progress | None = None) -> Index:
    """Return a search index of the images at `paths`. Raises AdaptError if no image or a broken image is given."""
    _check(paths, "image")
    return _index("images", model, paths, _of_images(model, paths), progress)


def index_pairs(model: ImageModel, items: Sequence[Item], progress: Progress | None = None) -> Index:
    """Return a search index of image-text pairs, with one feature for each pair, pooled by `PoolsPairs.pool`.

    The name of a pair is its entity, or the path of its image if there is no entity. Raises AdaptError if there is no
    pair, if an item is not a pair, and for the errors of `index_images` and `index_texts`.
    """
    entries = [item.unit or item.path for item in items]
    _check(entries, "pair")
    model.check_encodes_texts()
    if other := next((item for item in items if not (item.paths and item.text)), None):
        raise AdaptError(f"{other.name!r} is not an image-text pair: give a .csv with path, text and optionally entity")

    def encoded() -> Iterator[Tensor]:
        start = 0
        for images in _of_images(model, [item.path for item in items]):
            texts = [item.text for item in items[start : start + len(images)]]
            yield model.pair_features(images, model.text_features(texts, edited=True))
            start += len(images)

    return _index("pairs", model, entries, encoded(), progress)


def prepared(model: ImageModel, paths: Sequence[str]) -> Iterator[Tensor]:
    """Yield batches `(b, 3, h, w)` of the preprocessed images at `paths`."""
    transform = model.backbone.transform(train=False)
    for pictures in picture_batches(paths, IMAGES_AT_ONCE, turned=turns(transform)):
        yield model.batched([transform(picture) for picture in pictures])


def _of_images(model: ImageModel, paths: Sequence[str]) -> Iterator[Tensor]:
    for pixels in prepared(model, paths):
        with evaluating(model), torch.no_grad():
            yield model.image_features(pixels)


def identity_of(model: ImageModel) -> str:
    """Return a checksum of the adapter's tensors and settings, or "" if the adapter changes no features."""
    method = model.method
    if not (method.touches or has_trait(method, Projects)):
        return ""
    settings = plain.dump(method.config.model_dump(mode="json"))
    return tensor_file.checksum(method.state_dict(), {"name": method.name, "settings": settings})


def _size(model: ImageModel) -> int:
    """Return the number of values of a whole feature."""
    return (space_of(model.method) or Space.of(model.backbone)).size


def _check(entries: Sequence[str], what: str) -> None:
    if not entries:
        raise AdaptError(f"there is no {what} to index: give at least one {what}")
    for number, entry in enumerate(entries, 1):
        if not entry.strip():
            raise AdaptError(f"{what} {number} is empty and cannot be indexed: remove the empty entry")


def _index(
    kind: Kind,
    model: ImageModel,
    entries: Sequence[str],
    encoded: Iterable[Tensor],
    progress: Progress | None,
) -> Index:
    features: list[Tensor] = []
    done = 0
    for part in encoded:
        features.append(F.normalize(part.float(), dim=-1).cpu())
        done += len(part)
        if progress is not None:
            progress(done, len(entries))
    by = Space.of(model.backbone).model_dump(exclude={"size"})
    size = features[0].shape[-1]  # fewer than all where the adapter answers with fewer
    header = IndexHeader(kind=kind, adapter=identity_of(model), dim=size if size < _size(model) else None, **by)
    return Index(header, tuple(entries), torch.cat(features))


@torch.no_grad()
def changed(model: ImageModel, images: Tensor, text: str, share: float | None = None) -> Tensor:
    """Return unit-length queries `(b, e)` for what preprocessed images `(b, 3, h, w)` are when a text changes them.

    The method of `model` makes them, if it has the trait `Composes`. Otherwise they lie on the arc to the text, `share`
    of the way, by default half. Raises AdaptError for an empty or too long text, and for a share that does not apply.
    """
    composes = trait(model.method, Composes)
    if composes is None:
        new = index_texts(model, [text]).features
        with evaluating(model):
            old = F.normalize(model.image_features(images).float(), dim=-1).cpu()
        return slerp(old, new, 0.5 if share is None else share)
    _check([text], "text")
    if share is not None:
        raise AdaptError(f"--slerp is {share}, but {model.method.name} goes no way to a text: leave --slerp out")
    with evaluating(model):
        return F.normalize(composes.composed(ImageStep(model, images), text), dim=-1).float().cpu()


def slerp(old: Tensor, new: Tensor, share: float) -> Tensor:
    """Return unit-length features `(..., d)`, interpolated spherically from `old` (`share` 0) to `new` (`share` 1)."""
    angle = (old * new).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (((1 - share) * angle).sin() * old + (share * angle).sin() * new) / sine.clamp_min(_NEARLY_ALIKE)
    return F.normalize(torch.where(sine < _NEARLY_ALIKE, torch.lerp(old, new, share), arc), dim=-1)
