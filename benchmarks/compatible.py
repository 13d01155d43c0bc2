"""A newer model's queries to an old model's index: recall at 1 by projections learned from texts (XBT)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.backbones.sources import bundled
from adapt.data import Item
from adapt.data.emoji.bundled import UNSEEN_STYLE, concept_names
from adapt.methods import XBT, ZeroShot
from adapt.methods.base.space import Projects
from adapt.methods.base.traits import trait
from adapt.models.features import item_features
from adapt.retrieval.index import slerp
from benchmarks.drawings import drawings, per_cent, row_of
from benchmarks.measure import Row

OLD, NEW = "mini-clip-half", "mini-clip"
SEEDS = (1, 2, 3)  # each draws nine tenths of the texts to learn from
SHARES = tuple(step / 10 for step in range(11))
CAPTIONS = "emoji-captions"
CASES: dict[str, dict[str, object]] = {"Procrustes": {}, "perceptron": {"hidden": 256}}
Recalls = Callable[["Gallery"], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Gallery:
    """Images with captions or the names of what is drawn, and their features by both backbones."""

    items: tuple[Item, ...]
    template: str

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(_name, self.items)))

    @cached_property
    def own(self) -> Tensor:
        """Whether each name belongs to each image `(n, m)`."""
        return torch.tensor([[_name(item) == name for item in self.items] for name in self.names])

    @cached_property
    def texts(self) -> dict[str, Tensor]:
        prompts = [self.template.replace("{}", name) for name in self.names]
        return {name: alone(name).text_features(prompts) for name in (OLD, NEW)}

    @cached_property
    def images(self) -> dict[str, Tensor]:
        return {name: item_features(alone(name), self.items, workers=2) for name in (OLD, NEW)}

    def recalls(self, texts: Tensor, images: Tensor, of: str) -> tuple[Tensor, Tensor]:
        """Return whether the first hit is right in a backbone's index: for each name `(n,)` and each image `(m,)`."""
        return first(texts, self.images[of], self.own), first(images, self.texts[of], self.own.T)

    def projected(self, model: AdaptedModel) -> tuple[Tensor, Tensor]:
        """Return the new backbone's features of names and of images in the old one's space."""
        projects = trait(model.method, Projects)
        assert projects is not None
        with torch.no_grad():
            projected = (projects.project(each) for each in (self.texts[NEW], self.images[NEW]))
            texts, images = (F.normalize(each, dim=-1) for each in projected)
        return texts, images


def first(queries: Tensor, gallery: Tensor, own: Tensor) -> Tensor:
    """Return whether the nearest entry of the gallery belongs to the query, as 0 or 1."""
    nearest = (queries @ gallery.T).argmax(-1, keepdim=True)
    return own.gather(1, nearest)[:, 0].double()


@cache
def alone(name: str) -> AdaptedModel:
    """Return a bundled backbone without any adapter."""
    model = adapt.wrap(adapt.load_backbone(name), ZeroShot()).eval()
    assert isinstance(model, AdaptedModel)
    return model


@dataclass(frozen=True)
class World:
    """Galleries to search in, another one to choose the shares on, and kinds of texts to learn from."""

    galleries: dict[str, Gallery]
    known: Gallery
    texts: dict[str, tuple[str, ...]]


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report recall from texts to images and back, for names and for captions, in per cent."""
    for world in (_of_names("a photo of a {}."), _of_captions("{}")):
        for case, name in (("old queries, old index", OLD), ("new queries, new index", NEW)):
            yield _row(case, world.galleries, [partial(_by, name)])
        for kind, texts in world.texts.items():
            for case, settings in CASES.items():
                progress(f"{case}, {kind}")
                yield from _projections(f"{case}, {9 * len(texts) // 10:,} {kind}", world, texts, settings)


def _of_names(template: str) -> World:
    """Return drawings of concepts that neither backbone was trained on, and drawings in the unseen style."""
    split, (names, others) = drawings("emoji-concepts"), concept_names()
    held_out = set(others)
    new = Gallery(tuple(each for each in split.items() if each.answer in held_out), template)
    known = (each for each in split.items() if each.answer not in held_out and each.domain == UNSEEN_STYLE)
    texts = {"names": names, "names and words": (*names, *_words(held_out))}
    galleries = {"held-out concepts": new, "unseen style": Gallery(split.test, template)}
    return World(galleries, Gallery(tuple(known), template), texts)


def _of_captions(template: str) -> World:
    """Return scenes with captions whose words also occur in the captions to learn from."""
    seen, unseen = drawings(CAPTIONS), drawings(f"{CAPTIONS}@{UNSEEN_STYLE}")
    galleries = {"scenes": Gallery(seen.test, template), "scenes in the unseen style": Gallery(unseen.test, template)}
    captions = tuple(sorted({item.text for item in seen.train}))
    return World(galleries, Gallery(seen.val, template), {"captions": captions})


def _projections(case: str, world: World, texts: Sequence[str], settings: dict[str, object]) -> Iterator[Row]:
    models = [_learned(texts, world.known.template, seed, settings) for seed in SEEDS]
    yield _row(case, world.galleries, [_through(model) for model in models])
    if not settings:
        shares = [_chosen(model, world.known) for model in models]
        title = f"and SLERP, {', '.join(f'{a}/{b}' for a, b in shares)}"
        yield _row(title, world.galleries, [_through(*each) for each in zip(models, shares, strict=True)])


def _learned(texts: Sequence[str], template: str, seed: int, settings: dict[str, object]) -> AdaptedModel:
    some = random.Random(seed).sample(sorted(texts), 9 * len(texts) // 10)
    items = tuple(Item.of(text=text) for text in some)
    model = adapt.wrap(alone(NEW).backbone, XBT(old=OLD, template=template, **settings))
    adapt.fit(model, items, seed=seed, progress=False)
    return model.eval()


def _by(name: str, gallery: Gallery) -> tuple[Tensor, Tensor]:
    return gallery.recalls(gallery.texts[name], gallery.images[name], name)


def _through(model: AdaptedModel, shares: tuple[float, float] = (1.0, 1.0)) -> Recalls:
    """Search the old index with new queries, `shares` of the way from the old ones, for texts and for images."""

    def recalls(gallery: Gallery) -> tuple[Tensor, Tensor]:
        texts, images = gallery.projected(model)
        between = slerp(gallery.texts[OLD], texts, shares[0]), slerp(gallery.images[OLD], images, shares[1])
        return gallery.recalls(*between, OLD)

    return recalls


def _chosen(model: AdaptedModel, known: Gallery) -> tuple[float, float]:
    """Return the shares for texts and for images with the best recall on drawings of other concepts."""
    tried = [[float(each.mean()) for each in _through(model, (share, share))(known)] for share in SHARES]
    texts, images = (max(zip(recall, SHARES, strict=True))[1] for recall in zip(*tried, strict=True))
    return texts, images


def _words(held_out: set[str]) -> list[str]:
    """Return common words: those of the new backbone's tokenizer, without the words of held-out names."""
    vocabulary = json.loads((bundled(NEW) / "tokenizer.json").read_text())["model"]["vocab"]
    taken = {word for name in held_out for word in name.split()}
    words = {token.removeprefix("\u0120") for token in vocabulary if token.startswith("\u0120")}
    return sorted(word for word in words - taken if word.isascii() and word.isalpha() and len(word) > 2)


def _name(item: Item) -> str:
    return item.text or item.answer


def _row(case: str, galleries: dict[str, Gallery], searches: Sequence[Recalls]) -> Row:
    cells = {}
    for title, gallery in galleries.items():
        by_seed = [search(gallery) for search in searches]
        for way, name in enumerate(("texts to images", "images to texts")):
            cells[f"{title}, {name}"] = per_cent([each[way] for each in by_seed])
    return row_of(case, cells)
