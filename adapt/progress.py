"""Progress of long work: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

Progress = Callable[[int, int], None]  # called with the number done and the total
logger = logging.getLogger("adapt")
_SECONDS_BETWEEN_LINES = 10.0


class Reporter(Protocol):
    """A callback for every step of a training."""

    def __call__(self, entry: dict[str, Any]) -> None: ...


def _describe(entry: dict[str, Any]) -> str:
    """Return `loss 0.42  accuracy 87.5 %  310 images/s`, with the accuracy if there is one."""
    accuracy = f"accuracy {100 * entry['accuracy']:.1f} %  " if "accuracy" in entry else ""
    return f"loss {entry['loss']:.3f}  {accuracy}{entry['images_per_second']:.0f} images/s"


@contextmanager
def training_bar(total: int, done: int, show: bool, title: str = "training") -> Iterator[Reporter]:
    """Yield a reporter of training steps, of which `done` of `total` are finished."""
    if not show:
        yield lambda entry: None
    elif sys.stderr.isatty():
        with _bar(title, total, done) as update:
            yield lambda entry: update(advance=1, description=_describe(entry))
    else:
        yield _lines(title, total, done)


@contextmanager
def counting_bar(title: str, show: bool) -> Iterator[Progress | None]:
    """Yield a callback for work that counts itself, such as filling the feature cache; None if nothing is shown."""
    if not (show and sys.stderr.isatty()):
        yield None
        return
    with _bar(title, 1, 0) as update:
        yield lambda done, total: update(completed=done, total=total)


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Callable[..., None]]:
    """Yield rich's `update` of a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield partial(progress.update, progress.add_task("", total=total, completed=done))


def _lines(title: str, total: int, done: int) -> Reporter:
    began = last = time.monotonic()

    def report(entry: dict[str, Any]) -> None:
        nonlocal last
        now, step = time.monotonic(), entry["step"]
        if now - last > _SECONDS_BETWEEN_LINES or step == total:
            last = now
            seconds = (now - began) / max(1, step - done) * (total - step)
            left = f"  (about {readable_time(seconds)} left)" if step < total else ""
            logger.info("%s  step %d of %d  %s%s", title, step, total, _describe(entry), left)

    return report


def readable_time(seconds: float) -> str:
    """Return a duration such as `40 s`, `12 min` or `2 h 5 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
