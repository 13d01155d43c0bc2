"""The training of a method, in the form in which the method sees it before the first step and after the last."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel
from torch import Tensor, nn

if TYPE_CHECKING:
    import torch

    from adapt.data.item import Item
    from adapt.methods.base.step import Step, Terms
    from adapt.models.base import Adapted
    from adapt.models.image_model import ImageModel


Part = Literal["train", "val", "unlabelled"]
Kept = TypeVar("Kept", bound=BaseModel)


class Training(Protocol):
    """The training run that `prepare` and `finish` of a method receive, possibly without validation images."""

    @property
    def model(self) -> Adapted[Any]:
        """The adapted model that is being trained."""

    @property
    def classifier(self) -> ImageModel[Any]:
        """The adapted dual encoder that is being trained. Raises AdaptError for a backbone of another kind."""

    @property
    def seed(self) -> int:
        """The seed of the training run."""

    seconds: float
    """The time that training took: before the first step, the part that `prepare` adds; after the last, all of it."""

    @property
    def settings(self) -> Any:
        """The recipe's training settings, such as `lr`. Raises AdaptError for a method without gradient steps."""

    def prepare(self) -> None:
        """Prepare the model for the training images, and then the method."""

    def items(self, part: Part) -> Sequence[Item]:
        """Return the items of the data split `part`: images with labels (train, val), or without (unlabelled)."""

    def labels(self, part: Part) -> Tensor:
        """Return the class indices `(n,)` of the items in `part`, train or val; of several classes bool `(n, c)`."""

    def shares(self, part: Part) -> Tensor:
        """Return the soft labels `(n, c)` of the items in `part`: rows sum to 1, or several classes have a 1 each."""

    def values(self, part: Part) -> Tensor:
        """Return the numeric labels `(n,)` of the items in a split. Raises AdaptError if the labels are not numeric."""

    def features(self, part: Part, *, views: int = 0, unit: bool = True, projected: bool = True) -> Tensor:
        """Return image features `(n, e)` of the data split `part`, or `(n, views, e)` of random views of the images.

        The features are computed by the vision tower without edits, cached, and on the CPU. With `unit`, the features
        have unit length. If `projected` is false, the features are the inputs `(..., d)` of the tower's last
        projection, for a method that replaces this projection.
        """

    def alone(self, backbone: str | None = None) -> Training:
        """Return a training run on the same items without a method, on the model's backbone or the named `backbone`.

        Raises AdaptError for an unknown name, and for a backbone that does not compare images with texts.
        """

    def teacher(self, name: str, templates: Sequence[str]) -> ImageModel[Any]:
        """Return a trained model with the classes of this one, to learn its answers.

        `name` is an adapter (a file, the folder of a run or a name on the hub), or a backbone, which answers by the
        hand-written prompts `templates`. Raises AdaptError for an unknown name, and for an adapter that has no features
        of the classes by themselves.
        """

    def reference(self, answer: Callable[[Any], Tensor]) -> Tensor:
        """Return `answer(step)` of all training items, `(n, ...)` on the CPU, by the model that training starts from.

        That is the adapter that training goes on from, or else the backbone without a method. To be called before the
        first step, while the model still has the tensors of the start, also if the run is resumed.
        """

    def steps(self, part: Part) -> Iterator[Step]:
        """Yield the items of the data split `part` in batches, in order and once, with images as at test time.

        With pooling=logits, each image of an item of several is an item by itself, as in training.
        """

    def held_back(self) -> Iterator[Step]:
        """Yield validation batches in an endless loop, with images preprocessed as at test time."""

    def train(
        self,
        title: str,
        *,
        parameters: Iterable[nn.Parameter] | None = None,
        loss: Callable[[Any], Terms] | None = None,
        before: Callable[[int, int], None] = lambda epoch, step: None,
        **changed: Any,
    ) -> float:
        """Run a stage of training, and return its duration in seconds. `changed` overrides settings for this stage.

        The stage trains `parameters` (by default all, in the method's groups) to minimise `loss` (by default the
        method's loss). It calls `before`, ahead of each batch, with the epoch, counted from 0, and the step, counted
        from 1. With `loss`, batches contain images, not cached features.
        """

    def loss(self, step: Step) -> Tensor:
        """Return the training loss of a batch, with the recipe's extra loss terms and in the recipe's precision."""

    def flops(self, towers: Collection[str]) -> float:
        """Return the FLOPs that `towers` currently need for one image and one class, or for one generated answer."""

    def restart(self) -> None:
        """Reinitialise all trained tensors from the seed, with the method's current settings."""

    @property
    def started(self) -> bool:
        """Whether training continues from the tensors of an earlier adapter."""

    @property
    def resumed(self) -> bool:
        """Whether the run is resumed, so that a checkpoint replaces the values of the tensors from `prepare`."""

    def keep(self, name: str, data: BaseModel) -> None:
        """Store `data`, an expensive result of the method, as `name`.json in the run directory for a resumed run."""

    def kept(self, name: str, kind: type[Kept]) -> Kept | None:
        """Return the result stored by `keep` in this or the resumed run, or None. Raises AdaptError for a bad file."""

    def note(self, **figures: object) -> None:
        """Add `figures` (results of the method, by name) to metrics.json in the run directory."""


def rows_of(training: Training, views: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the unit-length features `(n, e)` of all random views of the training images, and their labels `(n,)`.

    Without `views`, they are of the images themselves.
    """
    rows = training.features("train", views=views).flatten(0, -2).to(device)
    return rows, training.labels("train").repeat_interleave(max(views, 1)).to(device)
