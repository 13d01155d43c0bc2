"""What is asked of a model about images (`Query`), what turns its logits into answers, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, log
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from torch import Tensor

from adapt.common.errors import AdaptError, nearest
from adapt.common.plain import JsonObject
from adapt.data.bags import BagPooling
from adapt.models.sets import RESIDUAL, Sets, check_level

if TYPE_CHECKING:
    from adapt.backbones.box_texts import NamedBox
    from adapt.models.watch import Sighting


@dataclass(frozen=True)
class Answers:
    """Settings that turn logits into answers: a `blend` with zero-shot logits, a `temperature`, and a `logit_bias`.

    For class weights on frozen features, a blend of logits equals a blend of weights (Wortsman et al., Robust
    Fine-tuning of Zero-shot Models, CVPR 2022: WiSE-FT). For a method that edits a tower, the blend is our reading of
    WiSE-FT, and needs a second pass through the frozen tower. Zero-shot logits have the method's logit scale. The
    temperature calibrates probabilities without changing the predicted class (Guo et al., ICML 2017).

    Raises AdaptError for a blend outside [0, 1], a temperature that is not positive, or a bias that is not finite.
    """

    blend: float = 1.0
    template: tuple[str, ...] = ()
    """The templates of the zero-shot classifier."""
    temperature: float = 1.0
    logit_bias: float | None = None
    """The bias of the logits in multi-label classification, where the sigmoid of each logit is the probability of its
    class. None in single-label classification, by softmax."""

    pooling: BagPooling = "features"
    """What is averaged over the images of a bag, an item of several images: their features, or their logits."""

    sets: Sets | None = None
    """The calibrated sets of classes, if any."""

    def __post_init__(self) -> None:
        if not 0 <= self.blend <= 1:
            raise AdaptError(f"blend is {self.blend}; expected the weight of the adapted model's logits, from 0 to 1")
        if self.pooling not in get_args(BagPooling):
            raise AdaptError(f"pooling is {self.pooling!r}; {nearest(self.pooling, get_args(BagPooling))}")
        if not 0 < self.temperature < float("inf"):
            raise AdaptError(f"temperature is {self.temperature}; expected a positive number")
        if self.logit_bias is not None and not isfinite(self.logit_bias):
            raise AdaptError(f"logit_bias is {self.logit_bias}; expected a finite number")

    @property
    def several(self) -> bool:
        """Whether an image can have any number of classes (multi-label classification)."""
        return self.logit_bias is not None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the class probabilities `(b, n)` for logits `(b, n)`."""
        return logits.sigmoid() if self.several else logits.softmax(-1)

    def of(self, step: Any) -> Tensor:
        """Return the logits `(b, n)` of a batch after the zero-shot blend, the logit bias and the temperature."""
        return self.adjusted(step.model.method.infer(step), step)

    def adjusted(self, logits: Tensor, step: Any) -> Tensor:
        """Return the `logits` `(b, n)` that a method inferred for a batch after blend, logit bias and temperature."""
        if self.blend < 1:
            classes = step.frozen_class_features(self.template)
            logits = self.blend * logits + (1 - self.blend) * step.cosine_logits(classes, step.frozen_features)
        logits = logits if self.logit_bias is None else logits + self.logit_bias
        return logits if self.temperature == 1 else logits / self.temperature


PLAIN = Answers()


class ImageOfBag(NamedTuple):
    """The contribution of one image of a bag: the `probability` of the bag's class by this image alone, and its weight.

    `weight` is the weight of the image's features in those of the bag, from 0 to 1.
    """

    probability: float
    weight: float
    image: str = ""
    """The name of the image, if known."""


class Disagreement(NamedTuple):
    """How the members of an average disagree about an image; both are 0 if all give the same probabilities.

    `share` is the share of members whose best class is not that of the average (of several classes an image: whose
    classes of at least 0.5 are others). `nats` is the mutual information of member and class, from 0 to ln m for m
    members: the entropy of the mean minus the mean entropy (of several classes an image, summed over the classes).
    """

    share: float
    nats: float

    @classmethod
    def among(cls, members: Tensor) -> Iterator[Disagreement]:
        """Return the disagreement about each image, from the log-probabilities of `ImageStep.members`."""
        several, mean = members.dim() == 4, members.logsumexp(0) - log(len(members))
        best, others = ((x[..., 0].exp() >= HALF if several else x.argmax(-1, True)) for x in (mean, members))
        entropy, entropies = ((-x.exp() * x).flatten(-2 if several else -1).sum(-1) for x in (mean, members))
        nats = (entropy - entropies.mean(0)).clamp(min=0)
        return map(cls, (others != best).any(-1).float().mean(0).tolist(), nats.tolist())


class Map(NamedTuple):
    """Scores `(h, w)` of the pixels `(3, h, w)` that the backbone reads, on the CPU: how abnormal, or how decisive."""

    scores: Tensor
    pixels: Tensor


NOT_FINITE = (
    "the model's output is not finite, as values of the adapter or the backbone overflow: train again with a lower "
    "learning rate, or use a precision with a wider range, such as bf16 or fp32"
)


def finite(logits: Tensor) -> Tensor:
    """Return `logits` unchanged. Raises AdaptError if any logit is NaN or infinite."""
    if not logits.isfinite().all():
        raise AdaptError(NOT_FINITE)
    return logits


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image: the most probable class or answer, and the best classes with their probabilities.

    If the highest probability is below the requested threshold, the class is `none`, but `probability` and `top` are
    still the values of the best classes. If a method could decide nothing, `none` is all there is, with probability 0.
    """

    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...]
    """The best classes with their probabilities, the most probable first."""
    label: int | None = None
    """The index of the class in the model's `class_names`; None for `none`, and for an answer in words."""
    number: float | None = None
    """The number that the method predicts (regression), such as a quality score, or None."""
    class_names: tuple[str, ...] | None = None
    """In multi-label classification, all classes with at least the threshold's probability: the first ones of `top`."""
    features: Tensor | None = field(default=None, compare=False, repr=False)
    """Unit-length features of the image `(e,)` on the CPU, if wanted."""
    images: tuple[ImageOfBag, ...] | None = None
    """For an item of several images, what each image says by itself, in their order."""
    set: tuple[str, ...] | None = None
    """The set of classes at the level that was asked for, the most probable first; empty if none is probable enough."""
    interval: tuple[float, float] | None = None
    """The ends of the interval of the number (regression) at the level that was asked for."""
    p_value: float | None = None
    """The share of good images that score as high as this one, at most, by a method that learned from good images."""
    map: Map | None = field(default=None, compare=False, repr=False)
    """Where the image looks abnormal, or what the answer rests on, if wanted."""
    drawn: JsonObject | None = field(default=None, compare=False)
    """What is told of the map: its pictures, and by which `scale` and `offset` values of one are scores."""
    boxes: tuple[NamedBox, ...] | None = None
    """Boxes in pixels of the image as it is read: those that an answer in words has in the form of the model's family,
    or those of the windows about which a classifier is sure, if wanted."""
    disagreement: Disagreement | None = None
    """How the members of an average disagree; None for an adapter by itself."""
    sighting: Sighting | None = field(default=None, compare=False, repr=False)
    """What the adapter's watch, if it has one, saw of the image, which `adapt.models.watch.Windows` compares."""

    def plain(self) -> JsonObject:
        """Return the prediction as data for JSON, without features and with the class name under the key `class`.

        What is told of a map stands there, and not the map.
        """
        top = [{"class": name, "probability": probability} for name, probability in self.top]
        own = {"class": self.class_name, "label": self.label, "probability": self.probability, "number": self.number}
        classes = {} if self.class_names is None else {"classes": list(self.class_names)}
        images = {} if self.images is None else {"images": [each._asdict() for each in self.images]}
        more: JsonObject = {} if self.set is None else {"set": list(self.set)}
        more |= {} if self.interval is None else {"interval": list(self.interval)}
        more |= {} if self.p_value is None else {"p_value": self.p_value}
        more |= {} if self.drawn is None else {"map": self.drawn}
        more |= {} if self.boxes is None else {"boxes": [box.plain() for box in self.boxes]}
        more |= {} if self.disagreement is None else {"disagreement": self.disagreement._asdict()}
        more |= {} if self.sighting is None else {"strangeness": self.sighting.strangeness}
        return {**own, **classes, **images, **more, "top": top}


NONE = "none"  # the class of an image without a probable enough class
HALF = 0.5  # the default threshold of multi-label classification


@dataclass(frozen=True)
class Query:
    """What is asked of a model about images: the number of classes, a probability threshold, features, a question.

    `options` are the answers among which the question is answered, in the place of words.
    `sets` is the level of the sets of classes, or intervals of numbers, that are wanted. By default each image is
    answered by itself. `items` are sequences of images of one thing, and `together` makes all images one set, or sets
    of about `at_a_time` images.
    `explain` asks for an `Explanation` of each prediction, and `maps` for the map of each image: where it looks
    abnormal or, with `explain`, what the answer rests on. `boxes` looks for the classes in windows of each image
    (see `adapt.models.windows`).

    Raises AdaptError for a `top_k` below 1, for a `threshold` outside [0, 1], for `sets` outside (0, 1), for sets
    beside a threshold or a question, which have no guarantee, or of images that are answered some at a time, for maps
    of images that are not answered each by itself, for boxes with anything but a threshold and `top_k`, and for
    options without a question.
    """

    top_k: int = 5
    threshold: float | None = None
    features: bool = False
    question: str | None = None
    items: bool = False
    together: bool = False
    at_a_time: int | None = None
    explain: bool = False
    sets: float | None = None
    maps: bool = False
    boxes: bool = False
    options: Sequence[str] | None = None

    def __post_init__(self) -> None:
        others = self.question is not None or self.sets is not None or self.features or self.items or self.together
        if self.boxes and (others or self.explain or self.maps):
            raise AdaptError(
                "boxes are of the classes in windows of each image by itself: leave out question, sets, features, "
                "items, together, explain and maps, or leave out boxes"
            )
        if self.maps and (self.items or self.together):
            raise AdaptError("maps are of each image by itself: leave out items and together, or leave out maps")
        if self.options is not None and self.question is None:
            raise AdaptError(f"the options {', '.join(self.options)} answer no question: give a question too")
        if self.sets is not None:
            check_level(self.sets)
            if self.question is not None:
                raise AdaptError("sets are of the classes that were calibrated, without a question: leave one out")
            if self.at_a_time is not None or self.explain or self.threshold is not None:
                raise AdaptError(
                    "sets with a guarantee have no threshold and no reasons, and are of each image by itself or of all "
                    "together: leave out threshold, explain and at_a_time, or leave out sets"
                )
        if not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 1:
            raise AdaptError(f"top_k is {self.top_k!r}; expected the number of returned classes, 1 or more")
        known = self.threshold is None or isinstance(self.threshold, Real)
        if not known or (self.threshold is not None and not 0 <= self.threshold <= 1):
            raise AdaptError(
                f"threshold is {self.threshold!r}; expected the least probability of a predicted class, from 0 to 1"
            )


def check_asked(images: Tensor, texts: Sequence[str], kind: str = "question") -> None:
    """Raise AdaptError unless `images` is `(b, 3, h, w)` and `texts` is a list of b texts, such as questions."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        given = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else repr(images)
        raise AdaptError(f"images are {given}; expected the shape (b, 3, h, w), with one image for each {kind}")
    if isinstance(texts, str) or len(texts) != len(images):
        given = "one string" if isinstance(texts, str) else f"{len(texts)} {kind}s"
        raise AdaptError(f"got {given} about {len(images)} images: give a list with one {kind} for each image")


def predictions(
    logits: Tensor,
    class_names: Sequence[str],
    query: Query,
    answers: Answers = PLAIN,
    features: Tensor | None = None,
    numbers: Tensor | None = None,
    members: Tensor | None = None,
    p_values: Tensor | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each image from logits `(b, n)`; `answers` decides between single-label and multi-label.

    Unit-length image `features` `(b, e)` and `numbers` `(b,)` (regression) are added if given. `members` are those of
    `ImageStep`, whose disagreement is added, and by which crossed sets are. `p_values` `(b,)` are those of `DrawsMaps`.
    """
    count = len(class_names) if answers.several else min(query.top_k, len(class_names))
    every = answers.probabilities(finite(logits).float())
    probabilities, indices = every.topk(count)
    held = _held(every, members, numbers, class_names, answers, query)
    of_each = [None] * len(logits) if features is None else list(features.float().cpu())
    number_of_each = [None] * len(logits) if numbers is None else numbers.tolist()
    apart = iter([] if members is None else Disagreement.among(members))
    shares = iter([] if p_values is None else p_values.tolist())
    threshold = HALF if answers.several and query.threshold is None else query.threshold
    for row, chosen, number, own in zip(probabilities.tolist(), indices.tolist(), number_of_each, of_each, strict=True):
        top = tuple((class_names[index], probability) for index, probability in zip(chosen, row))
        above = tuple(name for name, probability in top if probability >= (threshold or 0.0))
        labels = above if answers.several else None
        shown = top[: max(query.top_k, len(labels or ()))]
        more = {"disagreement": next(apart, None), "p_value": next(shares, None), **next(held, {})}
        yield judged(Prediction(*top[0], shown, chosen[0], number, labels, own, **more), threshold)


def _held(
    every: Tensor, members: Tensor | None, numbers: Tensor | None, names: Sequence[str], answers: Answers, query: Query
) -> Iterator[dict[str, Any]]:
    """Yield the set of each image, its most probable class first, or its interval; nothing if none was asked for."""
    level, sets = query.sets, answers.sets
    if level is None or sets is None:
        return
    if sets.score == RESIDUAL:
        assert numbers is not None
        yield from ({"interval": ends} for ends in sets.around(numbers, level))
        return
    known = members.exp() if members is not None and sets.crossed else every
    held, order = sets.hold(known, level), every.argsort(dim=-1, descending=True, stable=True)
    for row in zip(order.tolist(), held.gather(1, order).tolist(), strict=True):
        yield {"set": tuple(names[label] for label, inside in zip(*row, strict=True) if inside)}


def judged(prediction: Prediction, threshold: float | None) -> Prediction:
    """Return a prediction, with its class replaced by `none` if its probability is below the threshold."""
    if threshold is None or prediction.probability >= threshold:
        return prediction
    return replace(prediction, class_name=NONE, label=None)


def undecided(prediction: Prediction) -> Prediction:
    """Return a prediction without a class, made of logits that say nothing (see `DrawsMaps.decides`)."""
    images = prediction.images and tuple(each._replace(probability=0.0) for each in prediction.images)
    return replace(prediction, class_name=NONE, probability=0.0, top=((NONE, 0.0),), label=None, images=images)


def decided(logits: Tensor, class_names: Sequence[str]) -> tuple[list[str], list[float]]:
    """Return the name and the probability of the most probable class for each row of logits `(b, n)`."""
    best = finite(logits).float().softmax(-1).max(-1)
    return [class_names[label] for label in best.indices.tolist()], best.values.tolist()
