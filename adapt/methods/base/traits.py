"""Traits: what only some methods have, each a class beside `Method` in the method's own line.

`class AnoVL(Method, DrawsMaps)` draws maps; who needs maps asks `trait(method, DrawsMaps)`, which looks into the parts
of a composition. Two parts with one trait are refused, unless `Compose` has the trait itself and combines them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from torch import Tensor

from adapt.errors import AdaptError, nearest

if TYPE_CHECKING:
    from adapt.backbones.tower import Block, Tower
    from adapt.methods.base.method import Method
    from adapt.methods.base.step import ImageStep


class Trait(ABC):  # noqa: B024  # what is abstract is each trait's own
    """The base of all traits."""

    of_each_part: ClassVar[bool] = False
    """Whether any number of parts of a composition may have it, because only parts are asked for it."""


T = TypeVar("T", bound=Trait)


def trait(method: Method, kind: type[T]) -> T | None:
    """Return the method, or the part of it, that has a trait; None where none has."""
    carriers: Iterable[object] = (method, *method.parts.values())
    return next((part for part in carriers if isinstance(part, kind)), None)


def has_trait(method: Method | type[Method], kind: type[Trait]) -> bool:
    """Return whether a method, or every method of a class, has a trait."""
    return issubclass(method, kind) if isinstance(method, type) else trait(method, kind) is not None


class LearnedTokens(Trait):
    """Learned tokens have places in the prompts, so that a template would not do."""

    @property
    def owns_prompts(self) -> bool:
        """Whether this method's settings put tokens into the prompts."""
        return True

    @property
    @abstractmethod
    def learned_tokens(self) -> dict[str, Tensor]:
        """The learned text tokens `(..., d)` by parameter name, whose nearest words a person may read."""


class AveragesPrompts(Trait):
    """The features of a class's prompts are averaged in another way than as the mean of unit-length ones, scaled back
    to unit length."""

    prompt_average: ClassVar[Literal["mean", "raw"]]
    """`mean`: the mean of unit-length features, as it is; `raw`: the mean of what the tower gives."""


class Explains(Trait):
    """Answers are explained by descriptors of the classes."""

    @abstractmethod
    def descriptors(self, class_name: str) -> Sequence[str]:
        """Return what each prompt of a class says of it, in the prompts' order."""


class Grades(Trait):
    """Logits stand for a number, such as a grade of quality."""

    @abstractmethod
    def score(self, logits: Tensor) -> Tensor:
        """Return the numbers `(b,)` that logits `(b, n)` stand for."""


class DrawsMaps(Trait):
    """Localises anomalies in images."""

    @property
    @abstractmethod
    def normal_class(self) -> str:
        """The class of images without an anomaly."""

    @abstractmethod
    def anomalies(self, step: ImageStep) -> Tensor:
        """Return how anomalous each pixel of a batch of images is, from 0 to 1: `(b, h, w)`."""


class Stream(Trait):
    """The answer to an image depends on the images before it."""

    @abstractmethod
    def memory(self) -> Any:
        """Return a new memory of a stream of images."""


class StandsAlone(Trait):
    """The method cannot be a part of a composition."""

    of_each_part = True


class EncodesImages(StandsAlone):
    """Images go through a model of the method's own in place of the vision tower."""

    @abstractmethod
    def image_features(self, images: Tensor) -> Tensor:
        """Return features `(b, e)` of images `(b, 3, h, w)`, of any length: the model gives them unit length."""


class PoolsPairs(Trait):
    """An image and its text become one feature in another way than as their mean."""

    @abstractmethod
    def pool(self, features: Tensor, text_features: Tensor) -> Tensor:
        """Return the features `(b, e)` of pairs, given unit-length ones of images and of texts `(b, e)`.

        They get unit length afterwards.
        """


class GroupsEntities(Trait):
    """Records of one entity follow each other in training."""

    @property
    @abstractmethod
    def together(self) -> int:
        """How many records of one entity stand in a row."""


class LearnsOverlaps(Trait):
    """May learn from how much a region overlaps with the box of its object."""

    @property
    @abstractmethod
    def of_overlaps(self) -> bool:
        """Whether it does with these settings."""


class LearnsShares(Trait):
    """`prepare` learns from `training.shares`: every task is learned whose items belong to classes by shares."""

    of_each_part = True


class SkipsBlocks(Trait):
    """Some blocks of the backbone are never executed."""

    @property
    @abstractmethod
    def skipped(self) -> frozenset[str]:
        """The names of these blocks, such as vision.3."""


class InsideBlocks(Trait):
    """Keeps tensors for the inside of blocks."""

    of_each_part = True
    absent: frozenset[str] = frozenset()
    """The blocks that another part of a composition skips, such as vision.3: nothing is kept for their inside."""

    def present(self, tower: Tower) -> Iterator[tuple[int, Block]]:
        """Yield the index and the block for each block of `tower` that is not absent."""
        for index, block in enumerate(tower.blocks):
            if f"{tower.name}.{index}" not in self.absent:
                yield index, block


class ChoosesOnValidation(Trait):
    """Steps choose a setting on validation images."""

    @property
    @abstractmethod
    def chosen_on_validation(self) -> str | None:
        """The name of the setting; None where it is given, so that nothing is chosen."""


class ReadsPublished(Trait):
    """Reads the checkpoints that the paper's authors published."""

    of_each_part = True

    @classmethod
    @abstractmethod
    def published(cls, state: dict[str, Tensor], given: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return this method's tensors in the state of a published checkpoint, and the settings that follow from them.

        `given` are settings that the caller knows, for what the tensors do not tell. Raises KeyError for a tensor that
        is missing.
        """


def unpublished(method: type[Method]) -> AdaptError:
    """Return the refusal to read published checkpoints of a method."""
    return AdaptError(f"there are no published {method.name} checkpoints that adapt knows how to read")


class ChecksAdapter(Trait):
    """An adapter's file must satisfy more than names, shapes and types."""

    def check_settings(self) -> None:
        """Raise AdaptError if the settings of a file do not stand for themselves. Called before the method is built."""

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Raise AdaptError if tensors of `source`, which fit in name, shape and type, hold what cannot be used."""


class Reports(Trait):
    """Training notes figures of the method's own, for people to read."""

    @classmethod
    def lines(cls, metrics: Mapping[str, Any]) -> Iterable[str]:
        """Return the lines that say what training noted among all `metrics`."""
        return ()

    @classmethod
    def draw(cls, run: Path) -> None:
        """Draw the figures that a run's directory holds, into that directory."""


def skipped_blocks(method: Method) -> frozenset[str]:
    """Return the names of the blocks that a method never executes, such as vision.3."""
    skips = trait(method, SkipsBlocks)
    return frozenset() if skips is None else skips.skipped


def chosen_setting(method: Method) -> str | None:
    """Return the setting that a method chooses on validation images; None where it chooses none."""
    chooses = trait(method, ChoosesOnValidation)
    return None if chooses is None else chooses.chosen_on_validation


def owns_prompts(method: Method) -> bool:
    """Return whether learned tokens have places in a method's prompts."""
    learns = trait(method, LearnedTokens)
    return learns is not None and learns.owns_prompts


def normal_label(method: Method, class_names: Sequence[str]) -> int:
    """Return the number of the class without anomalies. Raises AdaptError where the method or the classes have none."""
    maps = trait(method, DrawsMaps)
    if maps is None:
        raise AdaptError(f"{method.name} says what an image is, not where: take a method of maps, as anovl")
    name = maps.normal_class
    if name not in class_names:
        raise AdaptError(
            f"{method.name}: no class is called {name!r}; {nearest(name, class_names)}. Set method.normal to the class "
            "of what is as it should be, and method.states to what is said of each class"
        )
    return class_names.index(name)
