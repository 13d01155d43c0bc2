"""The training of a method, in the form in which the method sees it before the first step and after the last."""

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
    """The training of a method, as `prepare` and `finish` receive it. There may be no validation images."""

    @property
    def model(self) -> ModelView:
        """The adapted model in training."""

    @property
    def classifier(self) -> DualEncoderView:
        """The adapted model in training, a dual encoder. Raises AdaptError if its backbone is of another kind."""

    seed: int
    seconds: float
    """The time that training took: before the first step, the part that `prepare` adds; after the last, all of it."""

    @property
    def settings(self) -> Any:
        """The recipe's training settings, such as `lr`. Raises AdaptError for a method without gradient steps."""

    def items(self, part: Part) -> Sequence[Item]:
        """Return the items (images with labels) of one part of the split: train or val."""

    def labels(self, part: Part) -> Tensor:
        """Return the class numbers `(n,)` of the items in one part of the split."""

    def shares(self, part: Part) -> Tensor:
        """Return soft labels `(n, c)`, the share of each class in an item, for one part of the split; rows sum to 1."""

    def values(self, part: Part) -> Tensor:
        """Return the numbers `(n,)` with which a part's items are labelled. Raises AdaptError if they have none."""

    def features(self, part: Part, *, views: int = 0, unit: bool = True, projected: bool = True) -> Tensor:
        """Return features `(n, e)` of the images in a part of the split, or `(n, views, e)` of random views of them.

        They are computed by the vision tower without edits, cached, and on the CPU. With `unit`, they have unit length.
        If not `projected`, they are the inputs `(..., d)` of the tower's last projection, for a method that replaces
        this projection.
        """

    def alone(self, backbone: str | None = None) -> Training:
        """Return a training on the same items with no method on the backbone, which is the model's or the one named.

        Raises AdaptError for an unknown name, and for a backbone that does not compare images with texts.
        """

    def held_back(self) -> Iterator[Step]:
        """Yield batches of validation images without end, preprocessed as at test time."""

    def train(
        self,
        title: str,
        *,
        parameters: Iterable[nn.Parameter] | None = None,
        loss: Callable[[Any], Terms] | None = None,
        after: Callable[[dict[str, Any]], None] = lambda entry: None,
        **changed: Any,
    ) -> float:
        """Run a stage of training and return its duration in seconds; `changed` are settings for this stage only.

        Trains `parameters`, by default all, to minimise `loss`, by default the method's own, and calls `after` with the
        log entry of every step. If `loss` is given, batches hold images, not features.
        """

    def loss(self, step: Step) -> Tensor:
        """Return the loss of a batch as in training: with the recipe's extra terms and in the recipe's precision."""

    def flops(self, towers: Collection[str]) -> float:
        """Return the operations that `towers` now need for one image and one class, or for one generated answer."""

    def restart(self) -> None:
        """Build all trained tensors afresh from the seed, under the method's present settings."""

    @property
    def started(self) -> bool:
        """Whether training continues from the tensors of an earlier adapter."""

    @property
    def resumed(self) -> bool:
        """Whether the run is resumed: a checkpoint then gives the values of tensors that `prepare` has allocated."""

    def keep(self, name: str, data: BaseModel) -> None:
        """Store `data`, a costly result of the method, as `name`.json in the run directory, for a resumed run."""

    def kept(self, name: str, kind: type[Kept]) -> Kept | None:
        """Return the result that `keep` stored in this or the resumed run, or None. Raises AdaptError if damaged."""

    def note(self, **figures: object) -> None:
        """Add figures of the method to the run's metrics.json."""
