"""Trainings that are stopped at a step: on the spot, or by Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.training.run import Run


class Killed(BaseException):
    """Ends a run on the spot, as a power cut does."""


def kill() -> None:
    raise Killed


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@contextmanager
def at_step(step: int, action: Callable[[], object], run: str = "") -> Iterator[None]:
    """Inside, `action()` once a run directory, the one called `run` where there are several, has logged that step."""
    log = Run.log
    with pytest.MonkeyPatch.context() as patch:

        def log_and_act(self: Run, entry: dict[str, Any]) -> None:
            log(self, entry)
            if entry["step"] == step and run in ("", self.path.name):
                patch.undo()
                action()

        patch.setattr(Run, "log", log_and_act)
        yield


@contextmanager
def stopped_at(step: int, stop: Callable[[], object] = kill, run: str = "") -> Iterator[None]:
    """Inside, a training is stopped at that step, and does not go past it."""
    with pytest.raises((Killed, KeyboardInterrupt)), at_step(step, stop, run):
        yield


def assert_goes_on_exactly(new: Callable[[], Any], train: Callable[..., Any], folder: Path, step: int) -> None:
    """`train(model, **options)` leaves what it learns alike in a model that is stopped at that step, and goes on."""
    whole, stopped, resumed = new(), new(), new()
    train(whole)
    with stopped_at(step):
        train(stopped, out=folder)
    train(resumed, out=folder, resume=True)
    for key, value in whole.method.state_dict().items():
        assert torch.equal(resumed.method.state_dict()[key], value), key
