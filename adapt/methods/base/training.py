"""One training as a method sees it, before the first step and after the last."""

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
    """What `prepare` and `finish` are given. Images for validation may be none."""

    @property
    def model(self) -> ModelView:
        """The backbone under the method."""

    @property
    def classifier(self) -> DualEncoderView:
        """The same, where the backbone is a dual encoder. AdaptError where it is another kind."""

    seed: int
    seconds: float
    """What training took: before the first step what `prepare` counts to it, after the last one all."""

    @property
    def settings(self) -> Any:
        """Those of the steps. AdaptError for a method that takes none."""

    def items(self, part: Part) -> Sequence[Item]:
        """The images of a part."""

    def labels(self, part: Part) -> Tensor:
        """The numbers of the items' classes `(n,)`."""

    def shares(self, part: Part) -> Tensor:
        """How much of each item belongs to each class `(n, c)`; rows add up to 1."""

    def values(self, part: Part) -> Tensor:
        """A number that each item has beside its class `(n,)`, such as a grade. AdaptError where the task has none."""

    def features(self, part: Part, *, views: int = 0, unit: bool = True, projected: bool = True) -> Tensor:
        """Features of the images `(n, e)`, or of as many random views of each `(n, views, e)`, of `unit` length or not.

        From the cache, on the CPU, by a vision tower that nothing edits. Not `projected` they are what the tower's last
        projection reads `(..., d)`, which such a method may replace.
        """

    def alone(self, backbone: str | None = None) -> Training:
        """The same images and texts under a backbone by itself: the model's, or the one that a name stands for.

        AdaptError for a name of none, or of one that does not compare images with texts.
        """

    def held_back(self) -> Iterator[Step]:
        """Batches of the validation images as the model sees them in a test, again and again."""

    def train(
        self,
        title: str,
        *,
        parameters: Iterable[nn.Parameter] | None = None,
        loss: Callable[[Any], Terms] | None = None,
        after: Callable[[dict[str, Any]], None] = lambda entry: None,
        **changed: Any,
    ) -> float:
        """A stage of steps over the training images, `changed` being settings other than the training's own.

        Trains `parameters`, by default all, on `loss`, by default the method's; `after` is told of every step. With a
        loss of one's own batches have images, not features. Returns the seconds that it took.
        """

    def loss(self, step: Step) -> Tensor:
        """The loss of a batch as training has it: with the recipe's terms and precision."""

    def flops(self, towers: Collection[str]) -> float:
        """Operations of these towers for one image and one class, or to answer a question, as the model is now."""

    def restart(self) -> None:
        """All that trains starts anew, by the seed, built as the settings of the method are now."""

    @property
    def started(self) -> bool:
        """Whether the tensors' values are those of an earlier adapter, which training goes on from."""

    @property
    def resumed(self) -> bool:
        """Whether the tensors' values will come from a checkpoint, once `prepare` has made their places."""

    def keep(self, name: str, data: BaseModel) -> None:
        """Keeps what took long to find out, for a run that goes on: in a run directory as `name`.json."""

    def kept(self, name: str, kind: type[Kept]) -> Kept | None:
        """What was kept, here or by the run that goes on. AdaptError where that is damaged."""

    def note(self, **figures: Any) -> None:
        """Figures of a method's own for metrics.json."""
