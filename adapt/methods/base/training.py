"""The training of a method, as the method sees it before the first step and after the last."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel
from torch import Tensor, nn

from adapt.methods.base.step import Step, Terms
from adapt.methods.base.view import DualEncoderView, ModelView

if TYPE_CHECKING:
    from adapt.data.item import Item

Part = Literal["train", "val"]
Kept = TypeVar("Kept", bound=BaseModel)


class Training(Protocol):
    """The training that `prepare` and `finish` receive. There may be no validation images."""

    @property
    def model(self) -> ModelView:
        """The adapted model."""

    @property
    def classifier(self) -> DualEncoderView:
        """The model, on a dual encoder. Raises AdaptError if the backbone is of another kind."""

    seed: int
    seconds: float
    """The time that training took: before the first step, the part that `prepare` adds; after the last, all of it."""

    @property
    def settings(self) -> Any:
        """The settings of the steps. Raises AdaptError for a method without steps."""

    def items(self, part: Part) -> Sequence[Item]:
        """Return the images of a part."""

    def labels(self, part: Part) -> Tensor:
        """Return the class numbers of the items `(n,)`."""

    def shares(self, part: Part) -> Tensor:
        """Return the share of each item that belongs to each class `(n, c)`; rows add up to 1."""

    def values(self, part: Part) -> Tensor:
        """Return each item's number `(n,)`, such as a quality score. Raises AdaptError if the task has no numbers."""

    def features(self, part: Part, *, views: int = 0, unit: bool = True, projected: bool = True) -> Tensor:
        """Return features of the images `(n, e)`, or of random views of each `(n, views, e)`, of `unit` length or not.

        They come from the cache, on the CPU, by a vision tower without edits. If not `projected`, they are the input
        of the tower's last projection `(..., d)`, for a method that replaces it.
        """

    def alone(self, backbone: str | None = None) -> Training:
        """Return the same images and texts under a backbone without a method: the model's, or the one of a name.

        Raises AdaptError for an unknown name, and for a backbone that does not compare images with texts.
        """

    def held_back(self) -> Iterator[Step]:
        """Yield batches of the validation images without end, preprocessed as in a test."""

    def train(
        self,
        title: str,
        *,
        parameters: Iterable[nn.Parameter] | None = None,
        loss: Callable[[Any], Terms] | None = None,
        after: Callable[[dict[str, Any]], None] = lambda entry: None,
        **changed: Any,
    ) -> float:
        """Run a stage of steps over the training images and return its seconds; `changed` replaces settings for it.

        Trains `parameters`, by default all, on `loss`, by default the method's, and calls `after` with the log entry of
        every step. With another `loss` than the method's, batches hold images, not features.
        """

    def loss(self, step: Step) -> Tensor:
        """Return the loss of a batch as in training, with the recipe's terms and precision."""

    def flops(self, towers: Collection[str]) -> float:
        """Return the operations of these towers for one image and one class, or for one answer, as the model is now."""

    def restart(self) -> None:
        """Build everything that trains afresh, from the seed, with the method's present settings."""

    @property
    def started(self) -> bool:
        """Whether training continues from the tensors of an earlier adapter."""

    @property
    def resumed(self) -> bool:
        """Whether the tensors' values will come from a checkpoint, after `prepare` has allocated them."""

    def keep(self, name: str, data: BaseModel) -> None:
        """Store a costly result for a resumed run, as `name`.json in the run directory."""

    def kept(self, name: str, kind: type[Kept]) -> Kept | None:
        """Return the stored result of this run or of the run it resumes. Raises AdaptError if the file is damaged."""

    def note(self, **figures: object) -> None:
        """Add figures of the method to metrics.json."""
