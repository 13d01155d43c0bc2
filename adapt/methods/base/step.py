"""One batch as a method sees it while it learns or decides: lazily, and each thing is computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.devices import moved
from adapt.errors import AdaptError
from adapt.methods.base.view import DualEncoderView, ModelView
from adapt.prompts import Prompt

if TYPE_CHECKING:
    from adapt.data.item import Item
    from adapt.methods.base.method import Method
    from adapt.tasks.base import Task

T = TypeVar("T")
Same = TypeVar("Same", bound="Step")
Terms = dict[str, Tensor]  # the parts of a loss by name, which add up


class Encoded(NamedTuple):
    """A batch whose image features `(b, e)` are known, of unit length: the images themselves are not there.

    `views` `(b, v, e)` are those of several views of each image, where a method asks for some.
    """

    features: Tensor
    views: Tensor | None = None


class BlockInputs(NamedTuple):
    """A batch whose way through the first blocks is known: what `block` of the vision tower reads `(b, l, d)`.

    Nothing edits the blocks before it. The images themselves are not there.
    """

    block: int
    tokens: Tensor


class Step:
    """One batch of items: their labels, as the task has them, and their logits `(b, n)` once they are asked for."""

    task: Task | None = None
    """The task of the items; None of a step that was made by hand, whose loss is the step's own."""
    items: Sequence[Item] = ()
    """The items of the whole batch, in the order of the labels."""
    whole: Callable[[Tensor], Tensor] | None = None
    """Where the inputs are a share of the batch, one of several processes' own: from rows of the share to all."""

    def __init__(self, model: ModelView, inputs: Any, labels: Tensor | None = None) -> None:
        self.model, self.inputs, self._labels = model, inputs, labels

    def of(self, task: Task, items: Sequence[Item]) -> Self:
        """The same step, of these items and their task."""
        self.task, self.items = task, items
        return self

    @cached_property
    def labels(self) -> Tensor | None:
        """The labels of the items `(b,)` or `(b, n)`, as the task has them; None where nothing is known of them."""
        labels = self._labels
        if labels is None and self.task is not None:
            labels = self.task.labels(self.items, self.model.class_names)
        return None if labels is None else moved(labels, self.model.backbone.device)

    @cached_property
    def values(self) -> Tensor | None:
        """A number that each item has beside its class `(b,)`, such as a grade; None where the task has none."""
        values = None if self.task is None else self.task.values(self.items)
        return None if values is None else moved(values.float(), self.model.backbone.device)

    def task_loss(self) -> Terms:
        """The loss of the task: what training makes smaller where the method adds nothing of its own."""
        terms: Terms = {"cross_entropy": self.cross_entropy} if self.task is None else self.task.loss(self)
        return terms

    @property
    def right(self) -> Tensor:
        """Which items `(b,)` have the largest logit at their label."""
        assert self.labels is not None
        return self.logits.argmax(-1).eq(self.labels)

    @cached_property
    def logits(self) -> Tensor:
        """What the method makes of this batch `(b, n)`."""
        logits: Tensor = self.model.method.logits(self)
        return logits

    @cached_property
    def cross_entropy(self) -> Tensor:
        """The mean cross-entropy of the labels `(b,)`, or of shares of the classes `(b, n)`, in full precision."""
        assert self.labels is not None
        return F.cross_entropy(self.logits.float(), self.labels, self.model.class_weights)

    def again(self) -> Self:
        """The same batch, for a method that has changed since: only what is frozen is kept."""
        return self._alike(type(self)(self.model, self.inputs, self._labels))

    def _alike(self, other: Same) -> Same:
        """`other`, which is of the same batch, with what is known of it."""
        other.task, other.items, other.whole = self.task, self.items, self.whole
        return other


class ImageStep(Step):
    """A batch of images `(b, 3, h, w)`, or their features, to be told apart by the names of classes.

    Several views of each image `(b, v, 3, h, w)` are one batch too, the image itself being the first of them.
    """

    model: DualEncoderView

    def __init__(
        self, model: DualEncoderView, inputs: Tensor | Encoded | BlockInputs, labels: Tensor | None = None
    ) -> None:
        super().__init__(model, inputs, labels)
        self._frozen: dict[str, Tensor] = {}
        self.of_classes: dict[Hashable, Any] = {}
        """What no image changes, by name, once it was asked for; what is there beforehand is taken as it is."""

    def under(self, method: Method) -> ImageStep:
        """The same batch under another method of the same kind, such as a copy that learns from it."""
        return self._alike(ImageStep(self.model.under(method), self.inputs, self._labels))

    def _alike(self, other: Same) -> Same:
        if isinstance(other, ImageStep):
            other._frozen = self._frozen
        return super()._alike(other)

    @cached_property
    def memory(self) -> Any:
        """What the method remembers of the stream that the batch belongs to; a batch by itself is one of its own."""
        return self.model.stream().memory if self.model.memory is None else self.model.memory

    @cached_property
    def images(self) -> Tensor:
        """`(b, 3, h, w)`. AdaptError where the batch has features of images only, or a share of the images."""
        if self.whole is not None:
            raise AdaptError(
                f"{self.model.method.name} reads the images of a batch themselves, of which each of several processes "
                "has a share: train with one process"
            )
        return self._images

    @cached_property
    def _images(self) -> Tensor:
        if not isinstance(self.inputs, Tensor):
            raise AdaptError(
                f"{self.model.method.name} reads images, and this batch has what was made of them: give its class "
                '`reads = frozenset({"images"})`, so that the cache does not stand for them'
            )
        images = moved(self.inputs, self.model.backbone.device)
        return images[:, 0] if images.ndim == 5 else images

    @cached_property
    def view_features(self) -> Tensor:
        """Unit-length features of the views of each image `(b, v, e)`, the image itself first.

        AdaptError where there are none.
        """
        if isinstance(self.inputs, Encoded) and self.inputs.views is not None:
            others = moved(self.inputs.views, self.model.backbone.device)
            return torch.cat([self.features[:, None], others], dim=1)
        if isinstance(self.inputs, Tensor) and self.inputs.ndim == 5:
            if self.inputs.shape[1] != self.model.method.views + 1:
                raise self._wrong_views(self.inputs.shape[1])
            views = moved(self.inputs, self.model.backbone.device)
            features: Tensor = self.model.image_features(views.flatten(0, 1))
            return features.unflatten(0, self.inputs.shape[:2])
        raise self._wrong_views(1)

    def _wrong_views(self, given: int) -> AdaptError:
        method = self.model.method
        return AdaptError(
            f"{method.name} decides on {method.views + 1} views of an image, and was given {given}: call "
            "model.predict, or give the model images (b, v, 3, h, w), each one itself first"
        )

    def frozen_blocks(self, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """What goes into blocks of the backbone, such as vision.3, by itself, and what comes out of them: `(b, l, d)`.

        Without gradient.
        """
        found: dict[str, tuple[Tensor, Tensor]] = self.model.frozen_blocks(self._images, names)
        return {name: (self._of_all(before), self._of_all(after)) for name, (before, after) in found.items()}

    @cached_property
    def features(self) -> Tensor:
        """Unit-length features of the images `(b, e)`, under the method's edits."""
        return self._of_all(self._own_features)

    @cached_property
    def _own_features(self) -> Tensor:
        """Those of the share."""
        if isinstance(self.inputs, Encoded):
            return moved(self.inputs.features, self.model.backbone.device)
        features: Tensor = self.model.image_features(self._entering)
        return features

    def _of_all(self, own: Tensor) -> Tensor:
        return own if self.whole is None else self.whole(own)

    @property
    def _entering(self) -> Tensor | BlockInputs:
        """What the vision tower is given."""
        return self.inputs if isinstance(self.inputs, BlockInputs) else self._images

    @cached_property
    def local_features(self) -> Tensor:
        """Features `(b, rows, columns, e)` of the images' patches, as they are, by the backbone alone.

        See `adapt.engine.values`. Without gradient. What it takes gives `frozen_features` too.
        """
        patches, self._frozen["features"] = self.model.local_features(self.images)
        return patches

    @cached_property
    def image_tokens(self) -> Tensor:
        """What the vision tower's last block makes of the images `(b, l, d)`, by the backbone alone; no gradient."""
        return self._of_all(self._own_tokens)

    @cached_property
    def _own_tokens(self) -> Tensor:
        """Those of the share."""
        tokens: Tensor = self.model.image_tokens(self._images)
        return tokens

    @cached_property
    def class_features(self) -> Tensor:
        """Unit-length features of the classes `(n, e)`, or `(b, n, e)` where they depend on the image."""
        features: Tensor
        method = self.model.method
        if method.per_image:
            tokens = self._own_tokens if "tokens" in method.reads else None
            features = self._of_all(self.model.class_features(self._own_features, tokens))
        else:
            features = self._once("class_features", self.model.class_features)
        return features

    @cached_property
    def prompt_features(self) -> tuple[Tensor, ...]:
        """Unit-length features `(m, e)` of the m prompts of each class, which is not the same number for all."""
        features: tuple[Tensor, ...] = self._once("prompt_features", self.model.prompt_features)
        return features

    def encode(self, prompts: Sequence[Prompt]) -> Tensor:
        """Unit-length features `(m, e)` of other prompts than the classes', under the method's edits of the text tower.

        Learned tokens that belong to a class, or to an image, have no place in them.
        """
        features: Tensor = self.model.encode(prompts)
        return features

    @property
    def frozen_features(self) -> Tensor:
        """Unit-length features of the images `(b, e)` by the backbone alone, without gradient."""
        if isinstance(self.inputs, Encoded):  # which nothing edits
            return self.features
        if "features" not in self._frozen:
            with torch.no_grad():
                self._frozen["features"] = self._of_all(self.model.backbone_features(self._entering))
        return self._frozen["features"]

    def frozen_class_features(self, templates: Sequence[str], average: Literal["unit", "raw"] = "unit") -> Tensor:
        """Features of the classes `(n, e)` by the backbone alone, without gradient.

        Of unit length, and of several templates the mean of unit-length features; or, `raw`, the mean of what the
        tower gives, as it is.
        """
        key = tuple(templates), average
        features: Tensor = self._once(key, lambda: self.model.frozen_class_features(*key))
        return features

    @property
    def scale(self) -> float:
        """What cosines are multiplied by: the method's own scale, or the backbone's."""
        return float(self._once("scale", lambda: self.model.method.logit_scale or self.model.backbone.logit_scale))

    @property
    def bias(self) -> float:
        """What is added to them: SigLIP's bias, or nothing."""
        return float(self._once("bias", lambda: self.model.backbone.logit_bias))

    def _once(self, name: Hashable, compute: Callable[[], T]) -> T:
        if name not in self.of_classes:
            self.of_classes[name] = compute()
        known: T = self.of_classes[name]
        return known

    def cosine_logits(self, class_features: Tensor, features: Tensor | None = None) -> Tensor:
        """Logits `(b, n)`: the images' cosines with `class_features` `(n, e)` or, by image, `(b, n, e)`, scaled.

        `features` `(b, e)` of unit length are by default the images' own. The scale is the method's own or the
        backbone's; SigLIP's bias is added.
        """
        features = self.features if features is None else features
        if torch.is_autocast_enabled(features.device.type):  # a hundredfold cosine would lose what tells classes apart
            with torch.autocast(features.device.type, enabled=False):
                return self.cosine_logits(class_features.float(), features.float())
        class_features = class_features.to(features.dtype)
        if class_features.ndim == 3:
            return self.scale * (class_features @ features[..., None])[..., 0] + self.bias
        return self.scale * features @ class_features.T + self.bias


class PairStep(ImageStep):
    """A batch of images `(b, 3, h, w)` with a text for each, `[images, texts]`.

    `labels` are the numbers of the images, or of the entities that they are of.

    A third list has the texts in other words, "" where there are none.
    """

    def __init__(self, model: DualEncoderView, inputs: Sequence[Any], labels: Tensor | None = None) -> None:
        images, texts, *others = inputs
        super().__init__(model, images, labels)
        self.texts: list[str] = list(texts)
        self.rephrased: list[str] = list(others[0] if others else [""] * len(self.texts))

    def again(self) -> Self:
        return self._of(self.model)

    def under(self, method: Method) -> PairStep:
        return self._of(self.model.under(method))

    def _of(self, model: DualEncoderView) -> Self:
        return self._alike(type(self)(model, [self.inputs, self.texts, self.rephrased], self._labels))

    @cached_property
    def cross_entropy(self) -> Tensor:
        """The contrast of the images with their texts, in both directions."""
        return contrast(self.without_same(self.logits))

    @property
    def right(self) -> Tensor:
        """Which images `(b,)` have their own text nearest, those that are not wrong left out."""
        nearest = self.without_same(self.logits).argmax(-1)
        return nearest == torch.arange(len(nearest), device=nearest.device)

    @cached_property
    def text_features(self) -> Tensor:
        """Unit-length features of the texts `(b, e)`, under the method's edits."""
        features: Tensor = self.model.encode_texts(self.texts)
        return features

    @property
    def pair_features(self) -> Tensor:
        """Unit-length features of the pairs `(b, e)`, an image and its text being one."""
        features: Tensor = self.model.pair_features(self.features, self.text_features)
        return features

    @cached_property
    def same(self) -> Tensor:
        """Which texts `(b, b)` are not wrong for an image though they are another's: alike, or of the same image or
        entity."""
        assert self.labels is not None
        number = {text: place for place, text in enumerate(dict.fromkeys(self.texts))}
        texts = torch.tensor([number[text] for text in self.texts], device=self.labels.device)
        alike = (self.labels[:, None] == self.labels) | (texts[:, None] == texts)
        return alike.fill_diagonal_(False)

    def without_same(self, logits: Tensor) -> Tensor:
        """Logits `(b, b)` of images by texts, in which those that are not wrong do not count."""
        return logits.masked_fill(self.same, -torch.inf)


def contrast(logits: Tensor, wrong: Tensor | None = None) -> Tensor:
    """The mean cross-entropy over both directions of logits `(b, b)`, images by texts, whose diagonal is right.

    `wrong` `(b, m)` are logits of more texts, wrong for every image.
    """
    right = torch.arange(len(logits), device=logits.device)
    of_images = logits if wrong is None else torch.cat([logits, wrong], dim=-1)
    return (F.cross_entropy(of_images.float(), right) + F.cross_entropy(logits.T.float(), right)) / 2
