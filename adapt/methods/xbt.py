"""XBT: backward-compatible embeddings, by a projection into an old backbone's space learned from texts.

Papers: Jang and Lim, Towards Cross-modal Backward-compatible Representation Learning for Vision-Language Models,
ICCV 2025 (XBT), which has no code; the closed form is the orthogonal Procrustes map that a later paper on post-hoc
alignment compares with it.
Our reading: only the abstract of XBT was available. A perceptron (`hidden`) added to the closed form stands for its
first stage, which learns a projection from texts under noise; form, sizes, rates and loss are ours. Its second stage,
which adapts the new model with images and texts, is left out, so the new model stays frozen.

The old index of image features stays valid for queries by the new backbone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import ImageEncoder
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.data.item import Item
from adapt.methods.base import ImageStep, Method, MethodConfig, Space, Training, contrast
from adapt.methods.base.own_steps import minimise
from adapt.methods.base.traits import Projects, Reports, StandsAlone
from adapt.methods.close import noisy
from adapt.methods.zero_shot import Templates
from adapt.prompts import readable, several


class XBTConfig(MethodConfig):
    old: str = Field(min_length=1)
    """The backbone of the old index, by a name that `adapt backbones` lists."""
    template: Templates = "{}"
    """One template for texts, or several; for class names, "a photo of a {}." may be better."""
    fewest: int | None = Field(default=None, ge=1)
    """The least number of texts; null requires as many as an old feature has values."""
    hidden: int | None = Field(default=None, ge=1)
    """The width of a perceptron trained with the matrix on noisy text features; null keeps the closed form."""
    noise: float | None = Field(default=None, ge=0)
    """Standard deviation of the noise; null means 0.04 for 768 values, and the same total noise for fewer (CLOSE)."""
    epochs: int = Field(default=10, ge=1)
    """The epochs of the perceptron's training."""
    batch_size: int = Field(default=512, ge=2)
    """The texts in a batch of that training."""
    lr: float = Field(default=1e-3, gt=0)
    """The learning rate of that training."""
    space: Space | None = None
    """The old backbone's space; training sets it, and a trained adapter does not need the old backbone."""


class XBT(Method[ImageStep], Projects, Reports, StandsAlone):
    """A projection into an older backbone's feature space, by `weight` `(e, d)` and, if `hidden` is set, an MLP."""

    name = "xbt"
    title = "XBT, by Procrustes or by our reading of its abstract (Jang and Lim, ICCV 2025)"
    Config = XBTConfig
    touches = frozenset({"text", "vision"})  # both towers' features change space
    tasks = frozenset({"classes", "pairs", "records", "images"})
    takes_steps = False
    example = {"old": "mini-clip", "fewest": 1}

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        size, hidden, device = backbone.embed_dim, self.config.hidden, backbone.device
        old_size = size if self.space is None else self.space.size  # the identity, until the old size is known
        self.weight = nn.Parameter(torch.eye(size, old_size, device=device))
        if hidden is not None:
            self.fc1 = nn.Linear(size, hidden, device=device)
            self.fc2 = nn.Linear(hidden, old_size, device=device)
            nn.init.zeros_(self.fc2.weight)  # so that it starts as the closed form
            nn.init.zeros_(self.fc2.bias)

    @property
    def space(self) -> Space | None:
        space: Space | None = self.config.space
        return space

    def project(self, features: Tensor) -> Tensor:
        features = F.normalize(features.to(self.weight.dtype), dim=-1)
        projected = features @ self.weight
        if self.config.hidden is None:
            return projected
        correction: Tensor = self.fc2(F.gelu(self.fc1(features)))
        return projected + correction

    def prepare(self, training: Training) -> None:
        old, texts = training.alone(self.config.old).classifier, texts_of(training.items("train"))
        space = Space.of(old.backbone)
        if self.space not in (None, space):
            raise AdaptError(
                f"xbt: method.space describes another backbone than {self.config.old}: remove method.space from the "
                "settings, because training sets method.space"
            )
        if len(texts) < (fewest := self.config.fewest or space.size):
            raise AdaptError(
                f"xbt: the data has {len(texts):,} different texts, and a feature of {self.config.old} has "
                f"{space.size:,} values: give at least {fewest:,} captions or class names of any kind, ideally five "
                "times as many texts, or lower method.fewest"
            )
        self.config = self.config.model_copy(update={"space": space})
        self.build(training.classifier.backbone, training.model.class_names)
        texts = [template.replace("{}", text) for text in texts for template in several(self.config.template)]
        rows, targets = (model.text_features(texts).float().cpu() for model in (training.alone().classifier, old))
        with torch.no_grad():
            self.weight.copy_(procrustes(rows, targets))
        if self.config.hidden is not None:
            device = self.weight.device
            self._learn(rows.to(device), targets.to(device), old.backbone.logit_scale)

    def _learn(self, rows: Tensor, targets: Tensor, scale: float) -> None:
        """Train the projection to map noisy text features `(n, e)` to the old backbone's text features `(n, d)`."""
        config = self.config
        noise = 0.04 * sqrt(768 / rows.shape[-1]) if config.noise is None else config.noise

        def loss(chosen: Tensor) -> Tensor:
            projected = F.normalize(self.project(noisy(rows[chosen], noise)), dim=-1)
            cosines = projected @ targets[chosen].T
            return 1 - cosines.diagonal().mean() + contrast(scale * cosines)

        minimise(loss, self.parameters(), len(rows), config.epochs, config.batch_size, config.lr)

    @classmethod
    def lines(cls, metrics: JsonObject) -> Iterable[str]:
        """Yield lines on recall at 1 in the old backbone's index, for text-to-image and image-to-text retrieval."""
        if "compatible" not in metrics:
            return
        measured = metrics["compatible"]
        if measured is None:
            yield "compatible unknown: the validation set has no images with texts or classes"
            return
        for way in ("text_to_image", "image_to_text"):
            shares = {case: f"{100 * share:.1f} %" for case, share in measured[way].items()}
            better = "yes" if measured[way]["new in old"] > measured[way]["old in old"] else "no"
            yield (
                f"compatible {better:3} {way.replace('_', ' ')}: recall at 1 of new queries in the old index "
                f"{shares['new in old']}, of old queries {shares['old in old']}, in a new index {shares['new in new']}"
            )
        yield f"           on {measured['images']:,} held-out images"

    @torch.no_grad()
    def finish(self, training: Training) -> None:
        """Measure whether new queries retrieve better from the old backbone's index than the old backbone's queries."""
        training.note(compatible=self._compared(training) if any(item.path for item in training.items("val")) else None)

    def _compared(self, training: Training) -> dict[str, object]:
        labels, device = training.labels("val"), self.weight.device
        place = {text: number for number, text in enumerate(texts_of(training.items("val")))}
        own = torch.zeros(len(place), len(labels), dtype=torch.bool)
        for item, label in zip(training.items("val"), labels, strict=True):
            own[place[_words(item)]] |= labels == label
        by: dict[str, tuple[Tensor, Tensor]] = {}
        texts = [several(self.config.template)[0].replace("{}", text) for text in place]
        for name, plain in (("old", training.alone(self.config.old)), ("new", training.alone())):
            of_texts = plain.classifier.text_features(texts).to(device).float()
            by[name] = of_texts, plain.features("val").to(device)
        projected = tuple(F.normalize(self.project(each), dim=-1) for each in by["new"])
        cases = {"new in old": (projected, by["old"]), "old in old": (by["old"],) * 2, "new in new": (by["new"],) * 2}
        return {
            "images": len(labels),
            "text_to_image": {name: _first(query[0], held[1], own) for name, (query, held) in cases.items()},
            "image_to_text": {name: _first(query[1], held[0], own.T) for name, (query, held) in cases.items()},
        }


def texts_of(items: Sequence[Item]) -> list[str]:
    """Return the distinct texts of `items`, with the class name in place of a missing text."""
    return list(dict.fromkeys(map(_words, items)))


def _words(item: Item) -> str:
    return item.text or readable(item.answer)


def _first(queries: Tensor, gallery: Tensor, own: Tensor) -> float:
    """Return recall at 1 of queries `(q, d)` in a `gallery` `(g, d)`, where `own` `(q, g)` marks the correct items."""
    nearest = (queries @ gallery.T).argmax(-1, keepdim=True).cpu()
    return float(own.gather(1, nearest).double().mean())


def procrustes(rows: Tensor, targets: Tensor) -> Tensor:
    """Return the orthogonal matrix `(e, d)` that maps `rows` `(n, e)` as closely as possible to `targets` `(n, d)`.

    The columns of the matrix are orthonormal. If d is larger than e, the rows of the matrix are orthonormal instead.
    """
    left, _, right = torch.linalg.svd(rows.double().T @ targets.double(), full_matrices=False)
    return (left @ right).to(rows.dtype)
