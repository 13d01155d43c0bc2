"""One training as a method's `prepare` sees it: its images as features, and what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from adapt.adapted import Adapted
from adapt.data.split import Item
from adapt.errors import AdaptError
from adapt.features import image_features, labels_of
from adapt.model import AdaptedModel
from adapt.training.run import Run
from adapt.training.settings import TrainSettings

Part = Literal["train", "val"]


@dataclass
class Training:
    """A model, the images it learns from, and how; `settings` is None for a method that takes no steps."""

    model: Adapted[Any]
    train_set: Sequence[Item]
    val_set: Sequence[Item]
    settings: TrainSettings | None
    seed: int
    run: Run | None
    cache: bool
    progress: bool
    noted: dict[str, Any] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """Processes that decode images."""
        return self.settings.workers if self.settings else 2

    def items(self, part: Part) -> Sequence[Item]:
        """The images of a part; those for validation may be none."""
        return self.train_set if part == "train" else self.val_set

    def features(self, part: Part, *, views: int = 0, unit: bool = True) -> Tensor:
        """Features of the images `(n, e)`, or of as many random views of each `(n, views, e)`, of `unit` length or not.

        From the cache, on the CPU, by a vision tower that nothing edits.
        """
        assert isinstance(self.model, AdaptedModel)
        if views and not self.cache:
            raise AdaptError(
                f"{self.model.method.name} encodes {views} views of each image once, in the cache: switch it on"
            )
        items, cache = self.items(part), self.cache
        return image_features(
            self.model, items, workers=self.workers, cache=cache, views=views, seed=self.seed, unit=unit
        )

    def labels(self, part: Part) -> Tensor:
        """Labels of the images `(n,)`."""
        return labels_of(self.items(part))

    def note(self, **figures: Any) -> None:
        """Figures of a method's own for metrics.json."""
        self.noted |= figures
