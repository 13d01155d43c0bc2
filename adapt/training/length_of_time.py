"""An estimate of how long training will take, after a few steps."""

from __future__ import annotations

import logging
import time

from adapt.common.progress import readable_time
from adapt.models.base import Adapted
from adapt.models.features import keeps_features
from adapt.recipe.settings import TrainSettings
from adapt.training.batches import Batches, FeatureBatches

logger = logging.getLogger("adapt")
LONG = 600.0  # seconds of training that deserve a warning
_WARM, _TIMED = 2, 3  # number of slow first steps, and of the steps that are timed after them


class LengthOfTime:
    """A timer that warns after a few steps if training will take long, with advice on how to shorten the training."""

    def __init__(self, model: Adapted, batches: Batches, settings: TrainSettings, steps: int, done: int) -> None:
        self._left, self._advice = steps - done, _shorter(model, batches, settings)
        self._started, self._seen = time.monotonic(), 0

    def step_done(self) -> None:
        """Count a finished step; after a few timed steps, log a warning if the remaining training will take long."""
        self._seen += 1
        if self._seen == _WARM:
            self._started = time.monotonic()
        if self._seen != _WARM + _TIMED:
            return
        each = (time.monotonic() - self._started) / _TIMED
        seconds = each * (self._left - self._seen)
        if seconds > LONG:
            logger.warning(
                "%s steps are left at %.2g s each, about %s in total: to shorten the training, try %s",
                f"{self._left - self._seen:,}", each, readable_time(seconds), self._advice,
            )  # fmt: skip


def _shorter(model: Adapted, batches: Batches, settings: TrainSettings) -> str:
    unit = "iterations" if settings.iterations else "epochs"
    advice = [f"--set train.{unit}={max(1, (settings.iterations or settings.epochs) // 10)}"]  # type: ignore[operator]
    if isinstance(batches, FeatureBatches):
        return advice[0]
    if keeps_features(model, cache=True) and settings.views is None:
        advice.append("--set train.views=10 (encodes ten views of each image once)")
    return ", ".join([*advice, "fewer --shots, or a smaller --backbone"])
