"""How long all training will take, once a few steps have."""

from __future__ import annotations

import logging
import time

from adapt.features import keeps_features
from adapt.models.base import Adapted
from adapt.progress import readable_time
from adapt.training.batches import Batches, FeatureBatches
from adapt.training.settings import TrainSettings

logger = logging.getLogger("adapt")
LONG = 600.0  # seconds of a training that are worth a word
_WARM, _TIMED = 2, 3  # steps


class LengthOfTime:
    """Says after a few steps how long training will take here, where that is long, and what would make it shorter."""

    def __init__(self, model: Adapted, batches: Batches, settings: TrainSettings, steps: int, done: int) -> None:
        self._left, self._advice = steps - done, _shorter(model, batches, settings)
        self._started, self._seen = time.monotonic(), 0

    def told(self) -> None:
        """Of a step; the first ones are slower, and do not count."""
        self._seen += 1
        if self._seen == _WARM:
            self._started = time.monotonic()
        if self._seen != _WARM + _TIMED:
            return
        each = (time.monotonic() - self._started) / _TIMED
        seconds = each * (self._left - self._seen)
        if seconds > LONG:
            logger.warning(
                "%s steps are left, of %.2g s each here: about %s. For less: %s",
                f"{self._left - self._seen:,}", each, readable_time(seconds), self._advice,
            )  # fmt: skip


def _shorter(model: Adapted, batches: Batches, settings: TrainSettings) -> str:
    unit = "iterations" if settings.iterations else "epochs"
    advice = [f"--set train.{unit}={max(1, (settings.iterations or settings.epochs) // 10)}"]  # type: ignore[operator]
    if isinstance(batches, FeatureBatches):
        return advice[0]
    if keeps_features(model, cache=True) and settings.views is None:
        advice.append("--set train.views=10, which encodes ten views of each image once")
    return ", ".join([*advice, "fewer --shots, or a smaller --backbone"])
