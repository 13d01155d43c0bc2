"""An old model's index under a newer model's queries: recall at 1 by projections that were learned from texts (XBT)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.backbones.sources import bundled
from adapt.data import Item
from adapt.data.emoji.archive import UNSEEN_STYLE
from adapt.data.emoji.bundled import concept_names
from adapt.features import item_features
from adapt.methods import XBT, ZeroShot
from adapt.retrieval.slerp import slerp
from benchmarks.drawings import drawings, per_cent
from benchmarks.text import Row

OLD, NEW = "mini-clip-half", "mini-clip"
SEEDS = (1, 2, 3)  # of which half of the texts is learned from
SHARES = tuple(step / 10 for step in range(11))
TEMPLATE = "a photo of a {}."
CASES: dict[str, dict[str, Any]] = {"Procrustes": {}, "perceptron": {"hidden": 256}}
Recalls = Callable[["Gallery"], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Gallery:
    """Drawings, and the names of the concepts that are drawn, by both backbones."""

    items: tuple[Item, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item.class_name for item in self.items))

    @cached_property
    def own(self) -> Tensor:
        """Which drawings `(names, drawings)` are of a name."""
        return torch.tensor([[item.class_name == name for item in self.items] for name in self.names])

    @cached_property
    def texts(self) -> dict[str, Tensor]:
        return {name: alone(name).text_features(self.put) for name in (OLD, NEW)}

    @cached_property
    def put(self) -> list[str]:
        return [TEMPLATE.replace("{}", name) for name in self.names]

    @cached_property
    def images(self) -> dict[str, Tensor]:
        return {name: item_features(alone(name), self.items, workers=2) for name in (OLD, NEW)}

    def recalls(self, texts: Tensor, images: Tensor, of: str) -> tuple[Tensor, Tensor]:
        """What is found first, 0 or 1: of each name `(n,)` and of each drawing `(m,)`, in the index of a backbone."""
        return first(texts, self.images[of], self.own), first(images, self.texts[of], self.own.T)

    def projected(self, model: AdaptedModel) -> tuple[Tensor, Tensor]:
        """The new backbone's features, of names and of drawings, in the old one's space."""
        with torch.no_grad():
            found = (model.method.project(each) for each in (self.texts[NEW], self.images[NEW]))
            texts, images = (F.normalize(each, dim=-1) for each in found)
        return texts, images


def first(queries: Tensor, gallery: Tensor, own: Tensor) -> Tensor:
    """Whether the nearest of the gallery is one of a query's own, as 0 or 1."""
    nearest = (queries @ gallery.T).argmax(-1, keepdim=True)
    return own.gather(1, nearest)[:, 0].double()


@cache
def alone(name: str) -> AdaptedModel:
    """A bundled backbone by itself."""
    model = adapt.wrap(adapt.load_backbone(name), ZeroShot()).eval()
    assert isinstance(model, AdaptedModel)
    return model


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Names to drawings and drawings to names, of concepts held out and in the unseen style; in per cent."""
    held_out, galleries = set(concept_names()[1]), dict[str, Gallery]()
    split = drawings("emoji-concepts")
    galleries["held-out concepts"] = Gallery(tuple(i for i in split.items() if i.class_name in held_out))
    galleries["unseen style"] = Gallery(split.test)
    for case, name in (("old queries, old index", OLD), ("new queries, new index", NEW)):
        yield _row(case, galleries, [partial(_by, name)])
    known = Gallery(tuple(i for i in split.items() if i.class_name not in held_out and i.domain == UNSEEN_STYLE))
    names = concept_names()[0]
    for kind, texts in {"names": names, "names and words": (*names, *_words(held_out))}.items():
        for case, settings in CASES.items():
            progress(f"{case}, {kind}")
            models = [_learned(texts, seed, settings) for seed in SEEDS]
            counted = f"{len(texts) // 2:,} {kind}"
            yield _row(f"{case}, {counted}", galleries, [_through(model) for model in models])
            if not settings:
                shares = [_chosen(model, known) for model in models]
                title = f"and SLERP, {', '.join(f'{a}/{b}' for a, b in shares)}, {counted}"
                yield _row(title, galleries, [_through(*each) for each in zip(models, shares, strict=True)])


def _learned(texts: Sequence[str], seed: int, settings: dict[str, Any]) -> AdaptedModel:
    half = random.Random(seed).sample(sorted(texts), len(texts) // 2)
    items = tuple(Item("", number, "", text=text) for number, text in enumerate(half))
    model = adapt.wrap(alone(NEW).backbone, XBT(old=OLD, template=TEMPLATE, **settings))
    adapt.fit(model, items, seed=seed, progress=False)
    return model.eval()


def _by(name: str, gallery: Gallery) -> tuple[Tensor, Tensor]:
    return gallery.recalls(gallery.texts[name], gallery.images[name], name)


def _through(model: AdaptedModel, shares: tuple[float, float] = (1.0, 1.0)) -> Recalls:
    """New queries in the old index, `shares` of the way from the old ones, of texts and of images."""

    def recalls(gallery: Gallery) -> tuple[Tensor, Tensor]:
        texts, images = gallery.projected(model)
        between = slerp(gallery.texts[OLD], texts, shares[0]), slerp(gallery.images[OLD], images, shares[1])
        return gallery.recalls(*between, OLD)

    return recalls


def _chosen(model: AdaptedModel, known: Gallery) -> tuple[float, float]:
    """The shares, of texts and of images, that find most on drawings of other concepts."""
    tried = [[float(each.mean()) for each in _through(model, (share, share))(known)] for share in SHARES]
    texts, images = (max(zip(found, SHARES, strict=True))[1] for found in zip(*tried, strict=True))
    return texts, images


def _words(held_out: set[str]) -> list[str]:
    """What a list of common words is here: those of the new backbone's tokenizer, without any of a held-out name."""
    vocabulary = json.loads((bundled(NEW) / "tokenizer.json").read_text())["model"]["vocab"]
    taken = {word for name in held_out for word in name.split()}
    words = {token.removeprefix("\u0120") for token in vocabulary if token.startswith("\u0120")}
    return sorted(word for word in words - taken if word.isascii() and word.isalpha() and len(word) > 2)


def _row(case: str, galleries: dict[str, Gallery], found: Sequence[Recalls]) -> Row:
    cells: Row = {}
    for title, gallery in galleries.items():
        by_seed = [recalls(gallery) for recalls in found]
        for way, name in enumerate(("names to drawings", "drawings to names")):
            cells[f"{title}, {name}"] = per_cent([each[way] for each in by_seed])
    return {"case": case} | cells | {"text": " | ".join(map(str, cells.values()))}
