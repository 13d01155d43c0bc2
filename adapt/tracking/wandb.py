"""The tracker for Weights & Biases, which is offline unless the user is logged in."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adapt.common.errors import needing
from adapt.common.progress import LogEntry
from adapt.tracking import TrackedRun, Tracker, final_numbers, step_numbers

if TYPE_CHECKING:
    from wandb import Run

logger = logging.getLogger("adapt")


class WeightsAndBiases(Tracker):
    """A tracker that creates a run in the W&B project WANDB_PROJECT, by default `adapt`; other W&B variables apply too.

    Without a login (`wandb login` or WANDB_API_KEY), or with WANDB_MODE=offline, all data stay in the folder `wandb` of
    the run directory, which `wandb sync` can upload later. Raises AdaptError if the extra `wandb` is not installed.
    """

    _run: Run

    def __init__(self) -> None:
        # by default W&B reports its own errors, even offline
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        with needing("wandb as a tracker", "Weights & Biases", "wandb"):
            import wandb
        self._library = wandb

    def started(self, run: TrackedRun) -> None:
        wandb = self._library
        # an open run or a set mode decides; login only checks, without asking
        chosen = "WANDB_MODE" in os.environ or wandb.run is not None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "adapt"),
            id=run.id,
            name=run.name,
            config=dict(run.settings),
            dir=None if run.folder is None or "WANDB_DIR" in os.environ else str(run.folder),
            mode=None if chosen or wandb.login(prompt=False, verify=False) else "offline",
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        if not self._run.offline:
            logger.info("tracked at %s", self._run.url)

    def steps(self, entries: Sequence[LogEntry]) -> None:
        for entry in entries:
            self._run.log(step_numbers(entry), step=entry["step"])

    def finished(self, metrics: Mapping[str, object]) -> None:
        self._run.summary.update(final_numbers(metrics))
        self._run.finish()

    def stopped(self, error: BaseException) -> None:
        self._run.finish(exit_code=1)
