"""Traits: abilities of only some methods, each a class beside `Method` in the class statement.

`class AnoVL(Method, DrawsMaps)` draws maps. Code that needs maps calls `trait(method, DrawsMaps)`, which also looks
into the parts of a composition. Two parts with the same trait are refused, unless `Compose` has it too and combines
them.
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


Imported = tuple[dict[str, Tensor], dict[str, object]]  # tensors of a published checkpoint, and settings


class Trait(ABC):  # noqa: B024  # abstract members belong to each trait
    """The base of all traits."""

    of_each_part: ClassVar[bool] = False
    """Whether any number of parts of a composition may have it, because only the parts are asked for it."""


T = TypeVar("T", bound=Trait)


def trait(method: Method, kind: type[T]) -> T | None:
    """Return the method, or the part of a composition, that has the trait `kind`, or None if there is none."""
    carriers: Iterable[object] = (method, *method.parts.values())
    return next((part for part in carriers if isinstance(part, kind)), None)


def has_trait(method: Method | type[Method], kind: type[Trait]) -> bool:
    """Return whether a method, or every method of a class, has the trait `kind`."""
    return issubclass(method, kind) if isinstance(method, type) else trait(method, kind) is not None


class LearnedTokens(Trait):
    """Prompts contain learned tokens, so a template cannot replace them."""

    @property
    def owns_prompts(self) -> bool:
        """Whether the method, with its present settings, puts learned tokens into the prompts."""
        return True

    @property
    @abstractmethod
    def learned_tokens(self) -> dict[str, Tensor]:
        """The learned text tokens `(..., d)` by parameter name, for a list of their nearest words."""


class AveragesPrompts(Trait):
    """A class's feature is not the normalised mean of its prompts' unit-length features, but a `prompt_average`."""

    prompt_average: ClassVar[Literal["mean", "raw"]]
    """`mean`: the mean of unit-length features, not normalised; `raw`: the mean of the tower's outputs."""


class Explains(Trait):
    """Descriptors of the classes explain the answers."""

    @abstractmethod
    def descriptors(self, class_name: str) -> Sequence[str]:
        """Return the descriptor in each prompt of a class, in the order of the prompts."""


class Grades(Trait):
    """Logits stand for a number (regression), such as a quality score."""

    @abstractmethod
    def score(self, logits: Tensor) -> Tensor:
        """Return the numbers `(b,)` that logits `(b, n)` stand for."""


class DrawsMaps(Trait):
    """The method localises anomalies in images."""

    @property
    @abstractmethod
    def normal_class(self) -> str:
        """The class of images without an anomaly."""

    @abstractmethod
    def anomalies(self, step: ImageStep) -> Tensor:
        """Return the anomaly scores of the pixels of a batch of images, from 0 to 1: `(b, h, w)`."""


class Stream(Trait):
    """The answer to an image depends on the images before it."""

    @abstractmethod
    def memory(self) -> Any:
        """Return an empty memory for a new stream of images."""


class StandsAlone(Trait):
    """The method cannot be a part of a composition."""

    of_each_part = True


class EncodesImages(StandsAlone):
    """The method has an image model of its own, which encodes images in place of the vision tower."""

    @abstractmethod
    def image_features(self, images: Tensor) -> Tensor:
        """Return features `(b, e)` of images `(b, 3, h, w)`. The caller normalises the features."""


class PoolsPairs(Trait):
    """The feature of an image-text pair is not the mean of the image's feature and the text's feature."""

    @abstractmethod
    def pool(self, features: Tensor, text_features: Tensor) -> Tensor:
        """Return features `(b, e)` of image-text pairs, from the unit-length features `(b, e)` of images and of texts.

        The caller normalises the pairs' features.
        """


class GroupsEntities(Trait):
    """Records of the same entity follow each other in training batches (record linkage)."""

    @property
    @abstractmethod
    def together(self) -> int:
        """The number of records of the same entity that follow each other."""


class LearnsOverlaps(Trait):
    """The method can learn from the overlap of an image region with the box of the object that it shows."""

    @property
    @abstractmethod
    def of_overlaps(self) -> bool:
        """Whether the method learns from overlaps with its present settings."""


class LearnsShares(Trait):
    """`prepare` learns from soft labels (`training.shares`), so the method learns every task that has soft labels."""

    of_each_part = True


class SkipsBlocks(Trait):
    """The method never executes some blocks of the backbone."""

    @property
    @abstractmethod
    def skipped(self) -> frozenset[str]:
        """The names of the skipped blocks, such as vision.3."""


class InsideBlocks(Trait):
    """The method has tensors that act inside the blocks of a tower."""

    of_each_part = True
    absent: frozenset[str] = frozenset()
    """The blocks that another part of a composition skips, such as vision.3; they get no tensors."""

    def present(self, tower: Tower) -> Iterator[tuple[int, Block]]:
        """Yield the index of each block of `tower` that is not absent, and the block itself."""
        for index, block in enumerate(tower.blocks):
            if f"{tower.name}.{index}" not in self.absent:
                yield index, block


class ChoosesOnValidation(Trait):
    """Training chooses one of the method's settings on validation images."""

    @property
    @abstractmethod
    def chosen_on_validation(self) -> str | None:
        """The name of the setting that is chosen on validation images, or None if the user set it."""


class ReadsPublished(Trait):
    """The method can read the checkpoints that the paper's authors published."""

    of_each_part = True

    @classmethod
    @abstractmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        """Return this method's tensors from a published checkpoint's `state`, and the settings that the tensors imply.

        `given` are settings from the caller, which the tensors do not reveal. Raises KeyError for a missing tensor.
        """


def unpublished(method: type[Method]) -> AdaptError:
    """Return the error for a method without readable published checkpoints."""
    return AdaptError(f"adapt cannot read published {method.name} checkpoints: train an adapter instead")


class ChecksAdapter(Trait):
    """The method checks an adapter file beyond names, shapes and types."""

    def check_settings(self) -> None:
        """Raise AdaptError if settings in an adapter file refer to another file. Called before the method is built."""

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Raise AdaptError if tensors from `source`, with the right names, shapes and types, hold unusable values."""


class Reports(Trait):
    """Training records figures of the method for people to read."""

    @classmethod
    def lines(cls, metrics: Mapping[str, Any]) -> Iterable[str]:
        """Return lines of text about this method's figures among all `metrics`."""
        return ()

    @classmethod
    def draw(cls, run: Path) -> None:
        """Draw plots of the results in a run directory, and save them in the same directory."""


def skipped_blocks(method: Method) -> frozenset[str]:
    """Return the names of the blocks that a method skips, such as vision.3."""
    skips = trait(method, SkipsBlocks)
    return frozenset() if skips is None else skips.skipped


def chosen_setting(method: Method) -> str | None:
    """Return the name of the setting that a method chooses on validation images, or None if there is none."""
    chooses = trait(method, ChoosesOnValidation)
    return None if chooses is None else chooses.chosen_on_validation


def owns_prompts(method: Method) -> bool:
    """Return whether a method's prompts contain learned tokens."""
    learns = trait(method, LearnedTokens)
    return learns is not None and learns.owns_prompts


def normal_label(method: Method, class_names: Sequence[str]) -> int:
    """Return the number of the normal class. Raises AdaptError if the method has none, or the classes lack it."""
    maps = trait(method, DrawsMaps)
    if maps is None:
        raise AdaptError(
            f"{method.name} classifies images and draws no anomaly maps: use a method that does, such as anovl"
        )
    name = maps.normal_class
    if name not in class_names:
        raise AdaptError(
            f"{method.name}: no class is called {name!r}; {nearest(name, class_names)}. Set method.normal to the class "
            "of normal images, and method.states to the descriptions of each class"
        )
    return class_names.index(name)
