"""The tracker for TensorBoard, which writes event files in the run's directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from adapt.common.errors import needing
from adapt.common.progress import LogEntry
from adapt.tracking import TrackedRun, Tracker, final_numbers, flat_settings, step_numbers

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Tracker):
    """A tracker that writes event files to `folder`, by default the run directory.

    `tensorboard --logdir runs` displays all runs. Raises AdaptError if the extra `tensorboard` is not installed.
    """

    _writer: SummaryWriter

    def __init__(self, folder: str | Path | None = None) -> None:
        with needing("tensorboard as a tracker", "TensorBoard", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._make, self._folder = SummaryWriter, folder
        self.needs_folder = folder is None
        self._settings: dict[str, str | int | float | bool] = {}
        self._step = 0

    def started(self, run: TrackedRun) -> None:
        folder = run.folder if self._folder is None else self._folder
        # later steps belong to an attempt that was interrupted, and are not shown
        self._writer = self._make(str(folder), purge_step=run.step + 1)
        self._settings, self._step = flat_settings(run.settings), run.step
        if not run.resumed:
            self._writer.add_text("settings", f"```yaml\n{yaml.safe_dump(dict(run.settings), sort_keys=False)}```", 0)

    def steps(self, entries: Sequence[LogEntry]) -> None:
        for entry in entries:
            self._step = entry["step"]
            self._add(step_numbers(entry))
        self._writer.flush()

    def finished(self, metrics: Mapping[str, object]) -> None:
        from torch.utils.tensorboard.summary import hparams

        figures, file_writer = final_numbers(metrics), self._writer.file_writer
        assert file_writer is not None  # until the writer is closed
        for summary in hparams(self._settings, figures):
            file_writer.add_summary(summary)
        self._add(figures)
        self._writer.close()

    def stopped(self, error: BaseException) -> None:
        self._writer.close()

    def _add(self, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():  # in single precision, the only one that TensorBoard reads
            self._writer.add_scalar(name, value, self._step)
