"""Weights & Biases, offline unless the user is logged in there."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from adapt.errors import missing
from adapt.tracking.tracker import TrackedRun, Tracker, final_numbers, step_numbers

logger = logging.getLogger("adapt")


class WeightsAndBiases(Tracker):
    """Makes a run in the project that WANDB_PROJECT names, by default `adapt`; other settings are W&B's own too.

    Without `wandb login` or WANDB_API_KEY, and with WANDB_MODE=offline, all stays in the folder wandb of the run's
    directory, which `wandb sync` sends later. AdaptError without the extra `wandb`.
    """

    def __init__(self) -> None:
        # or it reports its own errors to its makers, offline too
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError:
            raise missing("wandb as a tracker", "Weights & Biases", "wandb") from None
        self._library = wandb
        self._run: Any = None

    def started(self, run: TrackedRun) -> None:
        wandb = self._library
        # a run of the user's own that is open, or a mode that is set, says where to; login only looks, and asks nobody
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

    def steps(self, entries: Sequence[Mapping[str, Any]]) -> None:
        for entry in entries:
            self._run.log(step_numbers(entry), step=entry["step"])

    def finished(self, metrics: Mapping[str, Any]) -> None:
        self._run.summary.update(final_numbers(metrics))
        self._run.finish()

    def stopped(self, error: BaseException) -> None:
        self._run.finish(exit_code=1)
