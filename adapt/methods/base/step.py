"""Batches as methods see them in training and at test time ("steps"), and the terms of a batch's loss.

A step computes results if they are needed, and only once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.common.devices import moved
from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.bags import Bags, bag_mean
from adapt.engine import vision
from adapt.methods.base.class_loss import CROSS_ENTROPY
from adapt.prompts import Prompt, Texts, texts_key

if TYPE_CHECKING:
    from adapt.data.item import Item
    from adapt.methods.base.method import Method
    from adapt.methods.base.objective import Objective
    from adapt.models.base import Adapted
    from adapt.models.image_model import ImageModel


T = TypeVar("T")
Same = TypeVar("Same", bound="Step")
Terms = dict[str, Tensor]  # the terms of a loss by name, which add up


def reads_one_image(method: Method) -> AdaptError:
    """Return an AdaptError which says that `method` cannot read items of several images."""
    return AdaptError(
        f"{method.name} reads one image of each item: train with pooling=logits, by which each image is learned and "
        "answered by itself, or use another method"
    )


class Encoded(NamedTuple):
    """A batch of the backbone's unit-length image features `(b, e)`, which replace the images.

    `views` `(b, v, e)` contains the features of v random views of each image, for a method that reads views. With
    `counts` `(b,)`, the features `(m, e)` are of the images of bags, which have so many images each, and `view_names`.
    """

    features: Tensor
    views: Tensor | None = None
    counts: Tensor | None = None
    view_names: tuple[str, ...] = ()

    @classmethod
    def of_bags(cls, bags: Sequence[tuple[Tensor, tuple[str, ...]]]) -> Encoded:
        """Return a batch of bags from the features `(k, e)` of each bag's images, and the names of their views."""
        features, names = zip(*bags, strict=True)
        counts = torch.tensor([each.shape[0] for each in features])
        return cls(torch.cat(features), counts=counts, view_names=tuple(chain(*names)))


class BlockInputs(NamedTuple):
    """A batch of precomputed tokens `(b, l, d)` at the input of vision block `block`, which replace the images.

    Such a batch requires a method that edits no earlier block. `pixels` `(b, 3, h, w)` are the images, if kept.
    """

    block: int
    tokens: Tensor
    pixels: Tensor | None = None


class Step:
    """A batch of data set items with labels, for which a method computes logits and a loss."""

    task: Objective | None = None
    """The task of the items; None for a step made by hand, whose loss is its own cross-entropy."""
    items: Sequence[Item] = ()
    """The items of the complete batch, in the order of the labels."""
    whole: Callable[[Tensor], Tensor] | None = None
    """A function from the rows of this process to those of all processes, if the batch is divided among several."""

    def __init__(self, model: Adapted[Any], inputs: Any, labels: Tensor | None = None) -> None:
        self.model, self.inputs, self._labels = model, inputs, labels

    def of(self, task: Objective, items: Sequence[Item]) -> Self:
        """Set the items and the task of this batch, and return the batch."""
        self.task, self.items = task, items
        return self

    @cached_property
    def labels(self) -> Tensor | None:
        """The labels of the items, `(b,)` or `(b, n)` depending on the task; None if the labels are unknown."""
        labels = self._labels
        if labels is None and self.task is not None:
            labels = self.task.labels(self.items, self.model.class_names)
        return None if labels is None else moved(labels, self.model.backbone.device)

    @cached_property
    def values(self) -> Tensor | None:
        """The numeric label of each item `(b,)`, such as a quality score; None for a task without numeric labels."""
        values = None if self.task is None else self.task.values(self.items)
        return None if values is None else moved(values.float(), self.model.backbone.device)

    def task_loss(self, logits: Tensor | None = None) -> Terms:
        """Return the loss terms of the task by name. A method may replace these terms or add further terms.

        If `logits` are given, they take the place of the method's.
        """
        if logits is not None:
            other = self.again()
            other.logits = logits
            return other.task_loss()
        task = self.task
        return checked(task.loss(self), f"the task {task.name}") if task else self.class_terms

    @property
    def class_terms(self) -> Terms:
        """The loss of one class per item, by the objective of the training."""
        own = self.model.class_loss
        if own.objective == CROSS_ENTROPY:  # of a native model over the tokens of its answers
            return {"cross_entropy": self.cross_entropy}
        assert self.labels is not None
        return {own.term: own(self.logits, self.labels)}

    @property
    def weight(self) -> float:
        """How much the batch counts among accumulated batches, and among processes: by default as much as any other.

        The loss is a mean over what is counted, such as the tokens of answers.
        """
        return 1.0

    @property
    def right(self) -> Tensor:
        """Whether the class with the largest logit is the correct class, for each item `(b,)`."""
        assert self.labels is not None
        return self.logits.argmax(-1).eq(self.labels)

    @cached_property
    def logits(self) -> Tensor:
        """The method's logits of this batch `(b, n)`."""
        return self.model.method.logits(self)

    @cached_property
    def cross_entropy(self) -> Tensor:
        """The mean cross-entropy in fp32 of the logits with the labels `(b,)`, or with soft labels `(b, n)`."""
        assert self.labels is not None
        return F.cross_entropy(self.logits.float(), self.labels, self.model.class_loss.weights)

    def again(self) -> Self:
        """Return a new object for this batch after the method's tensors changed, keeping frozen-backbone results."""
        return self._with(self.model)

    def _with(self, model: Any) -> Self:
        return self._alike(type(self)(model, self.inputs, self._labels))

    def _alike(self, other: Same) -> Same:
        """Return `other`, a new object for this batch, after copying items and frozen-backbone results into `other`."""
        other.task, other.items, other.whole = self.task, self.items, self.whole
        return other


class ImageStep(Step):
    """A batch of images `(b, 3, h, w)`, or of precomputed image features, to classify by class names.

    A batch may contain v views of each image `(b, v, 3, h, w)`, of which the first is the image itself. In a batch of
    bags, which have several images of one thing each, the features are those of the bags.
    """

    model: ImageModel[Any]
    members: Tensor | None = None
    """Logarithms of the probabilities `(m, b, n)` by the members of an average, once the logits are computed; where an
    image can have several classes, those of the presence and of the absence of each, `(m, b, n, 2)`."""

    compared: tuple[Tensor, Tensor] | None = None
    """Distances `(b, rows, columns)` of patches to a memory, and scores `(b,)`, once a method has computed them."""

    def __init__(
        self, model: ImageModel[Any], inputs: Tensor | Encoded | BlockInputs | Bags, labels: Tensor | None = None
    ) -> None:
        super().__init__(model, inputs, labels)
        self._frozen: dict[str, Tensor] = {}
        self.of_classes: dict[Hashable, Any] = {}
        """Results that do not depend on images, by name, stored on first use or set beforehand."""

    def under(self, method: Method) -> Self:
        """Return a step for the same batch under `method`, of the same type, such as a copy tuned on the batch."""
        return self._with(self.model.under(method))

    def _alike(self, other: Same) -> Same:
        if isinstance(other, ImageStep):
            other._frozen = self._frozen
        return super()._alike(other)

    @cached_property
    def memory(self) -> Any:
        """The method's memory of the image stream that contains this batch; a new memory if there is no stream."""
        return self.model.stream().memory if self.model.memory is None else self.model.memory

    @cached_property
    def images(self) -> Tensor:
        """The images `(b, 3, h, w)`. Raises AdaptError for a batch of features or a batch split over processes."""
        if self.whole is not None:
            raise AdaptError(
                f"{self.model.method.name} reads all images of a batch, but each of several processes has only a part "
                "of the images: train with one process"
            )
        return self._images

    @cached_property
    def _images(self) -> Any:
        if self.counts is not None:
            raise reads_one_image(self.model.method)
        if isinstance(self.inputs, list):  # of pictures, which the backbone prepares
            return self.inputs
        if not isinstance(self.inputs, Tensor):
            raise AdaptError(
                f"{self.model.method.name} reads images, but this batch has only image features: give the method's "
                'class `reads = frozenset({"images"})`, so that training does not use the feature cache'
            )
        images = moved(self.inputs, self.model.backbone.device)
        return images[:, 0] if images.ndim == 5 else images

    @cached_property
    def view_features(self) -> Tensor:
        """Unit-length features `(b, v, e)` of the views of each image, of which the first is the image itself.

        Raises AdaptError if the batch does not have the views that the method reads.
        """
        if isinstance(self.inputs, Encoded) and self.inputs.views is not None:
            others = moved(self.inputs.views, self.model.backbone.device)
            return torch.cat([self.features[:, None], others], dim=1)
        if isinstance(self.inputs, Tensor) and self.inputs.ndim == 5:
            if self.inputs.shape[1] != self.model.method.views + 1:
                raise self._wrong_views(self.inputs.shape[1])
            views = moved(self.inputs, self.model.backbone.device)
            return self.model.image_features(views.flatten(0, 1)).unflatten(0, self.inputs.shape[:2])
        raise self._wrong_views(1)

    def _wrong_views(self, given: int) -> AdaptError:
        method = self.model.method
        return AdaptError(
            f"{method.name} reads {method.views + 1} views of each image, but the batch has {given}: call "
            "model.predict, or pass images (b, v, 3, h, w) whose first view is the image itself"
        )

    def frozen_blocks(self, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the input and output `(b, l, d)` of the unadapted backbone's blocks `names`, such as vision.3.

        The tensors have no gradient.
        """
        pairs = self.model.frozen_blocks(self._images, names)
        return {name: (self._of_all(before), self._of_all(after)) for name, (before, after) in pairs.items()}

    @cached_property
    def features(self) -> Tensor:
        """The unit-length features of the images `(b, e)`, computed by the adapted vision tower."""
        return self._of_all(self._own_features)

    @cached_property
    def _own_features(self) -> Tensor:
        """The unit-length features of the items that this process encodes, which may be only a part of the batch."""
        features, counts = self.image_features, self.counts
        names = self.inputs.view_names if isinstance(self.inputs, Encoded | Bags) else ()
        return features if counts is None else self.model.pooled(features, counts, names)

    @cached_property
    def image_features(self) -> Tensor:
        """The unit-length features of each image `(m, e)`, of which a bag has several, by the adapted vision tower."""
        if isinstance(self.inputs, Encoded):
            return self.model.projected(self._encoded(self.inputs))
        return self.model.image_features(self._entering)

    @cached_property
    def counts(self) -> Tensor | None:
        """The number of images of each bag `(b,)`, or None if every item has one image."""
        counts = self.inputs.counts if isinstance(self.inputs, Encoded | Bags) else None
        if isinstance(self.inputs, list) and max(map(len, self.inputs)) > 1:
            counts = torch.tensor([len(own) for own in self.inputs])
        return None if counts is None else moved(counts, self.model.backbone.device)

    @cached_property
    def learned_outputs(self) -> Tensor:
        """The outputs `(b, k, d)` of the vision tower's learned tokens, after the final norm, before the projection.

        The same forward pass computes `features`, if it has not been computed before. Of a bag, they are the mean of
        its images'.
        """
        outputs, self.image_features = self.model.learned_outputs(self._entering)
        return self._of_all(outputs if self.counts is None else bag_mean(outputs, self.counts))

    def _encoded(self, inputs: Encoded) -> Tensor:
        return moved(inputs.features, self.model.backbone.device)

    def _of_all(self, own: Tensor) -> Tensor:
        return own if self.whole is None else self.whole(own)

    @property
    def _entering(self) -> Any:
        """The input of the vision tower for this batch: images, pictures, or precomputed inputs of a later block."""
        if isinstance(self.inputs, Bags):
            return self.inputs.images
        return self.inputs if isinstance(self.inputs, BlockInputs | list) else self._images

    @cached_property
    def local_features(self) -> Tensor:
        """The unadapted backbone's features `(b, rows, columns, e)` of the images' patches, not normalised.

        The features have no gradient; see `adapt.engine.vision`. The same forward pass computes `frozen_features`.
        """
        with torch.no_grad():
            patches, features = vision.local_features(self.model.backbone, self.images)
        self._frozen["features"] = F.normalize(features, dim=-1)
        return patches

    @cached_property
    def image_tokens(self) -> Tensor:
        """The output `(b, l, d)` of the unadapted backbone's last vision block for all tokens, without gradient."""
        return self._of_all(self._own_tokens)

    @cached_property
    def _own_tokens(self) -> Tensor:
        """The output of the last vision block for the images that this process encodes."""
        return self.model.image_tokens(self._images)

    @cached_property
    def class_features(self) -> Tensor:
        """The unit-length text features of the classes `(n, e)`, or `(b, n, e)` if the features depend on images."""
        method = self.model.method
        if method.per_image:
            tokens = self._own_tokens if "tokens" in method.reads else None
            return self._of_all(self.model.class_features(self._own_features, tokens))
        return self._once("class_features", self.model.class_features)

    @cached_property
    def prompt_features(self) -> tuple[Tensor, ...]:
        """The unit-length features `(m, e)` of each class's m prompts, where m may differ between classes."""
        return self._once("prompt_features", self.model.prompt_features)

    def encode(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return unit-length features `(m, e)` of prompts that are not class prompts, from the adapted tower.

        The prompts cannot contain learned tokens that belong to a class or an image.
        """
        return self.model.encode(prompts)

    @property
    def frozen_features(self) -> Tensor:
        """The unadapted backbone's unit-length features of the images `(b, e)`, without gradient."""
        if "features" not in self._frozen:
            with torch.no_grad():
                if isinstance(self.inputs, Encoded):  # no edits act on them
                    own = self._encoded(self.inputs)
                else:
                    own = self.model.backbone_features(self._entering)
                own = own if self.counts is None else F.normalize(bag_mean(own, self.counts), dim=-1)
                self._frozen["features"] = self._of_all(own)
        return self._frozen["features"]

    def frozen_class_features(self, templates: Texts, average: Literal["unit", "raw"] = "unit") -> Tensor:
        """Return the unadapted backbone's class features `(n, e)` for hand-written `templates`, without gradient.

        `templates` can be a function from a class name to the class's own texts. The `average` over templates is
        `unit`, the normalised mean of unit-length features, or `raw`, the mean of the tower's outputs, not normalised.
        """
        key = texts_key(templates), average
        return self._once(key, lambda: self.model.frozen_class_features(templates, average))

    @property
    def frozen_logits(self) -> Tensor:
        """The logits `(b, n)` of the classes by the unadapted backbone."""
        classes, backbone = self.frozen_class_features(self.model.class_loss.template), self.model.backbone
        return backbone.logit_scale * self.frozen_features.float() @ classes.float().T + backbone.logit_bias

    @property
    def scale(self) -> float:
        """The logit scale of the method or else of the backbone, by which cosine similarities are multiplied."""
        return float(self._once("scale", lambda: self.model.method.logit_scale or self.model.backbone.logit_scale))

    @property
    def bias(self) -> float:
        """The backbone's logit bias, which is added to scaled cosine similarities (0 except for SigLIP)."""
        return float(self._once("bias", lambda: self.model.backbone.logit_bias))

    def _once(self, name: Hashable, compute: Callable[[], T]) -> T:
        if name not in self.of_classes:
            self.of_classes[name] = compute()
        known: T = self.of_classes[name]
        return known

    def cosine_logits(self, class_features: Tensor, features: Tensor | None = None) -> Tensor:
        """Return logits `(b, n)` from scaled cosines of images with `class_features` `(n, e)` or `(b, n, e)`.

        Unit-length `features` `(b, e)` can replace the features of the batch's images. The logit scale and bias are the
        properties `scale` and `bias`.
        """
        features = self.features if features is None else features
        # in half precision, scaled cosines of similar classes would round to the same value
        if torch.is_autocast_enabled(features.device.type):
            with torch.autocast(features.device.type, enabled=False):
                return self.cosine_logits(class_features.float(), features.float())
        class_features = class_features.to(features.dtype)
        if class_features.ndim == 3:
            return self.scale * (class_features @ features[..., None])[..., 0] + self.bias
        return self.scale * features @ class_features.T + self.bias


class PairStep(ImageStep):
    """A batch of image-text pairs `[images, texts]`, with images `(b, 3, h, w)` and a text for each image.

    `labels` are numbers that identify the images, or the entities that the images show. An optional third list contains
    a paraphrase of each text, or "" for a text without paraphrase.
    """

    def __init__(self, model: ImageModel[Any], inputs: Sequence[Any], labels: Tensor | None = None) -> None:
        images, texts, *others = inputs
        super().__init__(model, images, labels)
        self.texts: list[str] = list(texts)
        self.rephrased: list[str] = list(others[0] if others else [""] * len(self.texts))

    def _with(self, model: Any) -> Self:
        return self._alike(type(self)(model, [self.inputs, self.texts, self.rephrased], self._labels))

    @cached_property
    def cross_entropy(self) -> Tensor:
        """The contrastive loss of the batch, averaged over the directions image to text and text to image."""
        return contrast(self.without_same(self.logits))

    @property
    def right(self) -> Tensor:
        """Whether each image `(b,)` is nearest to its own text, ignoring other texts that also describe the image."""
        nearest = self.without_same(self.logits).argmax(-1)
        return nearest == torch.arange(len(nearest), device=nearest.device)

    @cached_property
    def text_features(self) -> Tensor:
        """The unit-length features of the texts `(b, e)`, computed by the adapted text tower."""
        return self.model.encode_texts(self.texts)

    @property
    def pair_features(self) -> Tensor:
        """The unit-length features of the pairs `(b, e)`, each computed from an image and its text."""
        return self.model.pair_features(self.features, self.text_features)

    @cached_property
    def same(self) -> Tensor:
        """Whether the text of pair j also describes the image of pair i, as a mask `(b, b)` with a false diagonal.

        An entry is true if the two pairs have equal texts, or the same image or entity.
        """
        assert self.labels is not None
        alike = (self.labels[:, None] == self.labels) | equal_texts(self.texts, self.labels.device)
        return alike.fill_diagonal_(False)

    def without_same(self, logits: Tensor) -> Tensor:
        """Return image-text `logits` `(b, b)`, with -inf where another pair's text also describes the image."""
        return logits.masked_fill(self.same, -torch.inf)


def equal_texts(texts: Sequence[str], device: torch.device) -> Tensor:
    """Return whether texts i and j are equal and not the same one, as a mask `(b, b)` with a false diagonal."""
    number = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    numbers = torch.tensor([number[text] for text in texts], device=device)
    return (numbers[:, None] == numbers).fill_diagonal_(False)


def contrast(logits: Tensor, wrong: Tensor | None = None) -> Tensor:
    """Return the contrastive loss, which is the mean cross-entropy of image-text logits `(b, b)` in both directions.

    Rows are images, columns are texts, and matching pairs are on the diagonal. `wrong` `(b, m)` contains the images'
    logits for m further texts, which match none of the images.
    """
    right = torch.arange(len(logits), device=logits.device)
    with_wrong = logits if wrong is None else torch.cat([logits, wrong], dim=-1)
    return (F.cross_entropy(with_wrong.float(), right) + F.cross_entropy(logits.T.float(), right)) / 2


def total(terms: Terms) -> Tensor:
    """Return the loss, as the sum of its `terms`."""
    first, *others = terms.values()
    return sum(others, first)


def checked(terms: object, owner: str) -> Terms:
    """Return the loss `terms` unchanged. Raises AdaptError, naming `owner`, if `terms` are not a dict of scalars."""
    expected = "expected a dict of terms by name, each a tensor with one number"
    if not isinstance(terms, dict) or not terms:
        raise AdaptError(f"{owner}: the function loss returned {brief(terms)}; {expected}")
    for name, term in terms.items():
        if not (isinstance(name, str) and isinstance(term, Tensor) and term.numel() == 1):
            kind = f"of shape {tuple(term.shape)}" if isinstance(term, Tensor) else brief(term)
            raise AdaptError(f"{owner}: the loss term {name!r} is {kind}; {expected}")
    return terms


def distill(step: ImageStep) -> Tensor:
    """Return the mean cosine distance between adapted and frozen image features, as an extra term of the loss."""
    return 1 - (step.features.float() * step.frozen_features.float()).sum(-1).mean()


def kl(step: Any) -> Tensor:
    """Return the mean cross-entropy of the classes' probabilities with the unadapted backbone's, as an extra term.

    Its gradient is that of the divergence from the backbone's answers, by which RL holds a model to its reference.
    """
    with torch.no_grad():
        frozen = step.frozen_logits.float().softmax(-1)
    return F.cross_entropy(step.logits.float(), frozen)


# the terms that a recipe may add to the loss of any method, by `train.terms`
TERMS: dict[str, Callable[[Any], Tensor]] = {"distill": distill, "kl": kl}
