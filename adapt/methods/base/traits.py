"""Traits of methods: abilities that only some methods have, each a class beside `Method` in the class statement.

`class AnoVL(Method, DrawsMaps)` draws maps. Code that needs maps calls `trait(method, DrawsMaps)`, which also looks
into the parts of a composition. Two parts with the same trait are refused, unless `Compose` has it too and combines
them. The largest, `Grid`, comes last: settings that are tuned on the data, and the logits under each value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, NoReturn, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from adapt.common.errors import AdaptError, nearest
from adapt.common.plain import JsonObject
from adapt.common.validation import with_changes
from adapt.data.bags import bag_sum
from adapt.methods.base.step import Encoded, ImageStep

if TYPE_CHECKING:
    from adapt.backbones.tower import Block, Tower
    from adapt.methods.base.method import Method
    from adapt.methods.base.places import Place
    from adapt.methods.base.space import Space
    from adapt.methods.base.training import Training

Imported = tuple[dict[str, Tensor], dict[str, object]]  # tensors of a published checkpoint, and settings
LEARNER = "prompt_learner."  # where published checkpoints that hold all of CLIP keep a method's tensors


class Trait(ABC):  # noqa: B024  # abstract members belong to each trait
    """The base class of all traits, which are abilities that only some methods have."""

    of_each_part: ClassVar[bool] = False
    """Whether several components of a composition may have the trait, because it is read from each component."""


T = TypeVar("T", bound=Trait)


def trait(method: Method, kind: type[T]) -> T | None:
    """Return the method, or the component method of a composition, that has the trait `kind`, or else None."""
    carriers: Iterable[object] = (method, *method.parts.values())
    return next((part for part in carriers if isinstance(part, kind)), None)


def has_trait(method: Method | type[Method], kind: type[Trait]) -> bool:
    """Return whether a method, or every method of a class, has the trait `kind`."""
    return issubclass(method, kind) if isinstance(method, type) else trait(method, kind) is not None


class LearnedTokens(Trait):
    """The trait of methods that put learned tokens into prompts, so that a template cannot replace the prompts."""

    @property
    def owns_prompts(self) -> bool:
        """Whether the method, with its current settings, puts learned tokens into the prompts."""
        return True

    ctx: Tensor

    @property
    def learned_tokens(self) -> dict[str, Tensor]:
        """The learned text tokens `(..., d)` by parameter name, by default `ctx`, whose nearest words can be listed."""
        return {"ctx": self.ctx}


class OwnTerms(Trait):
    """The trait of methods that add terms to the task's loss if so set, and otherwise leave it as it is."""

    of_each_part = True

    @property
    @abstractmethod
    def has_own_terms(self) -> bool:
        """Whether the method, with its current settings, adds terms to the task's loss."""


class AveragesPrompts(Trait):
    """The trait of methods that average prompt features by the rule `prompt_average`, not by a normalised mean."""

    prompt_average: ClassVar[Literal["mean", "raw"]]
    """`mean`: the mean of unit-length features, not normalised; `raw`: the mean of the tower's outputs."""


class Explains(Trait):
    """The trait of methods that explain their answers by descriptors of the classes, such as "whiskers"."""

    @abstractmethod
    def descriptors(self, class_name: str) -> Sequence[str]:
        """Return the descriptors (short phrases) in the prompts of a class, in the order of the prompts."""


class Grades(Trait):
    """The trait of methods whose logits represent a number (regression), such as a quality score."""

    @abstractmethod
    def score(self, logits: Tensor) -> Tensor:
        """Return the predicted numbers `(b,)` that the logits `(b, n)` represent."""


class DrawsMaps(Trait):
    """The trait of methods that localise anomalies in images."""

    config: Any

    @property
    def normal_class(self) -> str:
        """The name of the class for images without an anomaly, by default the setting `normal`."""
        return str(self.config.normal)

    @property
    def decides(self) -> bool:
        """Whether logits say which images are abnormal; not after too few good images, which give maps alone."""
        return True

    @abstractmethod
    def anomalies(self, step: ImageStep) -> Tensor:
        """Return the anomaly score of each pixel in a batch of images, larger for a more abnormal one, `(b, h, w)`."""

    def threshold(self, pixels: bool = False) -> Tensor | None:
        """Return the score above which an image is abnormal, or with `pixels` the maximum of its map; None for none."""
        return None

    def p_values(self, step: ImageStep) -> Tensor | None:
        """Return how many good images score as high as each image of a batch, at most, as shares `(b,)`.

        None for a method that learns from no good images, and where none was kept apart or left out.
        """
        return None


class Stream(Trait):
    """The trait of methods whose prediction for an image depends on earlier images in a stream."""

    @abstractmethod
    def memory(self) -> object:
        """Return an empty memory for a new stream of images."""


class OverSet(Trait):
    """The trait of methods that answer a set of images together, so that each answer depends on the other images.

    `infer` of such a method answers each image by itself.
    """

    @property
    @abstractmethod
    def smallest(self) -> int:
        """The number of images in the smallest set that can be answered together."""

    @abstractmethod
    def infer_set(self, step: ImageStep) -> Tensor:
        """Return the logits `(n, c)` of a set of images, from a step with the features `(n, e)` of all images."""

    def doubt(self, step: ImageStep) -> str:
        """Return why answers about this set may be worse than answers image by image, or "" without such a reason."""
        return ""


class StandsAlone(Trait):
    """The trait of methods that cannot be combined with other methods in a composition."""

    of_each_part = True


class EncodesImages(StandsAlone):
    """The trait of methods with an image model of their own, which encodes images in place of the vision tower."""

    @abstractmethod
    def image_features(self, images: Tensor) -> Tensor:
        """Return the features `(b, e)` of images `(b, 3, h, w)` from the method's own image model, not normalised."""


class Projects(Trait):
    """The trait of methods that project features of both towers, perhaps into another backbone's feature space."""

    @property
    @abstractmethod
    def space(self) -> Space | None:
        """The backbone feature space into which the method projects; None if the method learns a new space."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Return the projections `(..., d)` of image or text features `(..., e)`, not yet normalised."""


class Composes(Trait):
    """The trait of methods by which words change what an image asks for (composed retrieval)."""

    @abstractmethod
    def composed(self, step: ImageStep, text: str) -> Tensor:
        """Return the features `(b, e)` of the images of a step as `text` changes them, not normalised.

        Raises AdaptError if the text is too long.
        """


class PoolsPairs(Trait):
    """The trait of methods whose features of image-text pairs are not the mean of image and text features."""

    @abstractmethod
    def pool(self, features: Tensor, text_features: Tensor) -> Tensor:
        """Return features `(b, e)` of image-text pairs, from the unit-length features `(b, e)` of images and of texts.

        The caller normalises the pairs' features.
        """


class PoolsBags(Trait):
    """The trait of methods whose features of a bag, an item of several images, are not the mean of the images'."""

    @abstractmethod
    def weights(self, features: Tensor, counts: Tensor, view_names: Sequence[str] = ()) -> Tensor:
        """Return the weight `(m,)` of each image, from the unit-length features `(m, e)` of the images of bags.

        `counts` `(b,)` are the numbers of images, which stand one bag after another, with the names of their views.
        """

    def pool_bags(self, features: Tensor, counts: Tensor, view_names: Sequence[str] = ()) -> Tensor:
        """Return the features `(b, e)` of bags, weighted sums of their images', which the caller normalises."""
        return bag_sum(self.weights(features, counts, view_names)[:, None] * features, counts)

    def check_views(self, views: Iterable[tuple[str, str]], learned: Collection[str] = ()) -> None:
        """Raise AdaptError for an image that cannot be weighed, of those that are given with the names of their views.

        `learned` are the names of the views to learn from, before training.
        """


class GroupsEntities(Trait):
    """The trait of methods whose training batches keep records of the same entity together (record linkage)."""

    @property
    @abstractmethod
    def together(self) -> int:
        """The number of records of the same entity that are adjacent in a batch."""


class LearnsOverlaps(Trait):
    """The trait of methods that can learn from the overlap of an image region with the box of the object in it."""

    @property
    @abstractmethod
    def of_overlaps(self) -> bool:
        """Whether the method, with its current settings, learns from overlaps of image regions with object boxes."""


class LearnsShares(Trait):
    """The trait of methods whose `prepare` learns soft labels, and several an image, and so every task with either."""

    of_each_part = True


class LearnsUnseen(Trait):
    """The trait of methods that learn classes without a training image, by their texts."""


class LearnsUnlabelled(Trait):
    """The trait of methods that learn from unlabelled images, beside labelled images or in place of them."""

    reads_labels: ClassVar[bool] = True
    """Whether the method reads labels. If not, labelled images are not needed, and count as unlabelled ones."""

    @property
    def reads_unlabelled(self) -> bool:
        """Whether the method, with its current settings, learns from unlabelled images."""
        return True


class OwnClassifier(Trait):
    """The trait of methods with a classifier of their own, whose logits need no features of the classes."""

    gives_odds: ClassVar[bool] = False
    """Whether each logit is the log-odds of its class, where an image may have several."""


class SkipsBlocks(Trait):
    """The trait of methods that never execute some blocks of the backbone."""

    @property
    @abstractmethod
    def skipped(self) -> frozenset[str]:
        """The names of the skipped blocks, such as vision.3."""


class ReadsHeads(Trait):
    """The trait of methods that read the attention heads of a native vision-language model, by a backbone `heads:`."""

    of_each_part = True


class InsideBlocks(Trait):
    """The trait of methods with tensors that act inside the blocks of a tower."""

    of_each_part = True
    absent: frozenset[str] = frozenset()
    """The blocks that another part of a composition skips, such as vision.3; they get no tensors."""

    def present(self, tower: Tower) -> Iterator[tuple[int, Block]]:
        """Yield each block of `tower` with its index, except blocks that another method of the composition skips."""
        for index, block in enumerate(tower.blocks):
            if f"{tower.name}.{index}" not in self.absent:
                yield index, block


class OwnWeights(Trait):
    """The trait of methods that put trained tensors in the place of frozen weights (`Parameters`).

    Only the library's own forward reads them, and computes their gradients: no fast path serves.
    """

    of_each_part = True


class Merges(Trait):
    """The trait of methods that change nothing but weights inside blocks, which a copy of the backbone can hold."""

    of_each_part = True

    @abstractmethod
    def merged(self) -> dict[Place, Tensor]:
        """Return the changed weight `(out, in)` of each adapted projection. The model is unchanged.

        Raises AdaptError for quantised and interleaved weights.
        """


class ChoosesOnValidation(Trait):
    """The trait of methods with a setting that training chooses on validation images."""

    @property
    @abstractmethod
    def chosen_on_validation(self) -> str | None:
        """The name of the setting that is chosen on validation images, or None if the user has fixed its value."""


class ReadsPublished(Trait):
    """The trait of methods that can read the checkpoints published by the paper's authors."""

    of_each_part = True

    @classmethod
    @abstractmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        """Return this method's tensors from a published checkpoint's `state`, and the settings that the tensors imply.

        `given` contains settings from the caller that the tensors do not imply. Raises KeyError for a missing tensor.
        """


def learned(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors under `prefix` in a published prompt-learning checkpoint, without frozen token embeddings."""
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    return {key: tensor for key, tensor in own.items() if key not in ("token_prefix", "token_suffix")}


def unpublished(cls: type[Method], state: dict[str, Tensor], given: Mapping[str, object]) -> NoReturn:
    """Raise AdaptError: to be the `published` of a method whose checkpoints are not those of the method it extends."""
    raise AdaptError(f"adapt cannot read published {cls.name} checkpoints: train an adapter instead")


class ChecksAdapter(Trait):
    """The trait of methods that check more of an adapter file than the names, shapes and types of its tensors."""

    def check_settings(self) -> None:
        """Raise AdaptError if settings in an adapter refer to another file. Called before the method is built."""

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Raise AdaptError if tensors in `source` with correct names, shapes and types have invalid values."""


class KeepsLabels(ChecksAdapter):
    """The trait of methods whose adapters have a table: the `labels` `(n,)` of training images, and `keys` for each."""

    labels: Tensor
    _classes: int

    def hold(self, keys: Mapping[str, Tensor], labels: Tensor, device: torch.device, trained: bool = False) -> None:
        """Hold `labels` `(n,)`, and tensors `(n, e)` by name, which are parameters if they are `trained`."""
        assert isinstance(self, nn.Module)
        self.register_buffer("labels", labels.to(device))
        for name, own in keys.items():
            if trained:
                setattr(self, name, nn.Parameter(own.to(device)))
            else:
                self.register_buffer(name, own.to(device))

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Raise AdaptError if the labels that the file `source` stores do not fit the number of classes."""
        labels, classes = tensors["labels"], self._classes
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise AdaptError(
                f"the labels in {source} are {int(labels.min())} to {int(labels.max())}, but there are {classes} "
                "classes: download or train the adapter again"
            )


class Reports(Trait):
    """The trait of methods that report additional results of a training run, such as the skipped blocks."""

    @classmethod
    def lines(cls, metrics: JsonObject) -> Iterable[str]:
        """Return lines of text that report this method's results, from all `metrics` of a run."""
        return ()

    @classmethod
    def draw(cls, run: Path) -> None:
        """Plot this method's results from the run directory `run`, and save the plots in this directory."""


class SetAtUse(Trait):
    """The trait of methods with settings that may be changed when they answer, such as the number of visual tokens."""

    at_use: BaseModel
    """The settings, whose class lists them; a method begins with their defaults."""

    def set_at_use(self, changes: Mapping[str, object]) -> None:
        """Change settings by name. Raises AdaptError for an unknown name and a wrong value."""
        settings = with_changes(self.at_use, changes)
        self.check_at_use(settings)
        self.at_use = settings

    def check_at_use(self, settings: Any) -> None:
        """Raise AdaptError for settings of the right types that do not fit the method."""


def skipped_blocks(method: Method) -> frozenset[str]:
    """Return the names of the blocks that a method skips, such as vision.3."""
    skips = trait(method, SkipsBlocks)
    return frozenset() if skips is None else skips.skipped


def chosen_setting(method: Method) -> str | None:
    """Return the name of the setting that training chooses on validation images, or None without such a setting."""
    chooses = trait(method, ChoosesOnValidation)
    return None if chooses is None else chooses.chosen_on_validation


def reads_unlabelled(method: Method) -> bool:
    """Return whether a method, with its current settings, learns from unlabelled images."""
    learns = trait(method, LearnsUnlabelled)
    return learns is not None and learns.reads_unlabelled


def needs_labels(method: Method) -> bool:
    """Return whether a method needs labelled training images."""
    learns = trait(method, LearnsUnlabelled)
    return learns is None or learns.reads_labels


def owns_prompts(method: Method) -> bool:
    """Return whether a method's prompts contain learned tokens."""
    learns = trait(method, LearnedTokens)
    return learns is not None and learns.owns_prompts


def normal_label(method: Method, class_names: Sequence[str]) -> int:
    """Return the index of the class for normal images. Raises AdaptError if there is no such class."""
    maps = trait(method, DrawsMaps)
    if maps is None:
        raise AdaptError(
            f"{method.name} classifies images and draws no anomaly maps: use another method, such as patch_memory"
        )
    name = maps.normal_class
    if name not in class_names:
        raise AdaptError(
            f"{method.name}: no class is called {name!r}; {nearest(name, class_names)}. Set method.normal to the class "
            "of normal images"
        )
    return class_names.index(name)


Trial = tuple[dict[str, Any], Tensor]  # settings, and the logits (n, classes) of the validation images under them


class Choice(NamedTuple):
    """The values to try for one setting, in order, and the usual value, which only a clearly better value replaces."""

    values: Sequence[Any]
    usual: Any
    open_ended: bool = True
    """Whether the setting also accepts values beyond the first and the last, and they would make sense."""

    averaged: bool = False
    """Whether the logits under all values are averaged, where likelihoods would choose: the setting then holds values
    with their shares, of which `Grid.shares` makes one classifier. One setting of a method may be."""


def combinations(choices: Mapping[str, Choice]) -> Iterator[dict[str, object]]:
    """Yield each combination of the settings' values, with the last setting varying fastest; {} for no settings."""
    for values in product(*(choice.values for choice in choices.values())):
        yield dict(zip(choices, values, strict=True))


def configure(method: Method, settings: Mapping[str, object]) -> None:
    """Replace the values of `settings` in the method's config."""
    method.config = method.config.model_copy(update=dict(settings))


class Grid(Trait):
    """The trait of methods with settings that are tuned on the data by `adapt.training.choice`."""

    config: Any
    choices: ClassVar[Mapping[str, Choice]] = {}
    """The settings that the data choose where the config has None, with the values to try."""

    at_answer: ClassVar[frozenset[str]] = frozenset()
    """The settings that change only the answers, so that one fit serves all their values."""

    most_accurate: ClassVar[bool] = True
    """Whether validation images choose the most accurate values, as published, and not the likeliest ones."""

    @property
    def balanced(self) -> bool:
        """Whether classes count equally when settings are compared, however many images each class has."""
        return False

    def grid(self, training: Training) -> dict[str, Choice]:
        """Return the settings that are tuned on the data, with the values to try: the `choices` that are not set."""
        return {name: choice for name, choice in self.choices.items() if getattr(self.config, name) is None}

    def setting(self, name: str) -> float:
        """Return the value of one of the `choices`, which is the usual value until the data have chosen another."""
        value = getattr(self.config, name)
        return float(self.choices[name].usual if value is None else value)

    def shares(self, name: str) -> dict[float, float]:
        """Return the values of a setting that is averaged with their shares, which add up to 1."""
        value = getattr(self.config, name)
        shares = value if isinstance(value, dict) else {self.setting(name): 1.0}
        return {each: share / sum(shares.values()) for each, share in shares.items()}

    def trials(self, training: Training, choices: Mapping[str, Choice], learned: bool = False) -> Iterator[Trial]:
        """Yield each combination of the values in `choices`, with the resulting logits of the validation images.

        The method is fitted to the training images once for each combination of the settings outside `at_answer`. If
        `learned` is true, the method is already fitted, and is not fitted again.
        """
        method: Method = training.model.method
        fits = {name: choice for name, choice in choices.items() if name not in self.at_answer}
        answers = {name: choice for name, choice in choices.items() if name in self.at_answer}
        for settings in combinations(fits):
            configure(method, settings)
            if not learned:
                training.prepare()
            step = ImageStep(training.classifier, Encoded(training.features("val")))
            for others in combinations(answers):
                configure(method, others)
                with torch.no_grad():
                    yield settings | others, method.logits(step)
