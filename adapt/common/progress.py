"""Display of the progress of long work: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NotRequired, TypedDict, TypeVar

T = TypeVar("T")
Progress = Callable[[int, int], None]  # called with the number done and the total
logger = logging.getLogger("adapt")
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BEFORE_GUESS = 3.0  # behind the first report, which has the time of starting up too


class LogEntry(TypedDict):
    """The log entry of a training step, a line of log.jsonl."""

    step: int
    epoch: int
    loss: float
    accuracy: NotRequired[float]
    """The share of the batch that was right, in [0, 1]."""
    lr: float
    images_per_second: float
    terms: NotRequired[dict[str, float]]
    """The terms of a loss that has several, by name."""
    val: NotRequired[dict[str, float]]
    """The main score on the validation items after the epoch that this step ends, by the name of the figure."""


Report = Callable[[LogEntry], None]


def _describe(entry: LogEntry) -> str:
    """Return a step's log entry as text, such as `loss 0.420  accuracy 87.5 %  310 images/s` (accuracy if known)."""
    accuracy = f"accuracy {100 * entry['accuracy']:.1f} %  " if "accuracy" in entry else ""
    return f"loss {entry['loss']:.3f}  {accuracy}{entry['images_per_second']:.0f} images/s"


@contextmanager
def training_bar(total: int, done: int, show: bool, title: str = "training") -> Iterator[Report]:
    """Yield a callback that displays progress after each training step, starting from `done` of `total` steps."""
    with counting_bar(title, show, done) as bar:
        yield lambda entry: None if bar is None else bar(entry["step"], total, _describe(entry))


@contextmanager
def counting_bar(title: str, show: bool, before: int = 0) -> Iterator[Callable[..., None] | None]:
    """Yield a callback `(done, total, note="")` that displays progress from `before` on, or None if none is shown.

    Where there is no terminal, the end is told only with a note.
    """
    if not show:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task, time_left = bars.add_task("", total=None, completed=before), _time_left()

            def draw(done: int, total: int, note: str = "") -> None:
                told = "  ".join(filter(None, [time_left(done, total), note]))
                bars.update(task, completed=done, total=total, description=told)

            yield draw
    else:
        last, time_left = time.monotonic(), _time_left()

        def report(done: int, total: int, note: str = "") -> None:
            nonlocal last
            left = time_left(done, total)
            if done < total and time.monotonic() - last <= _SECONDS_BETWEEN_LINES:
                return
            last = time.monotonic()
            if done < total or note:
                logger.info("%s", f"{title}  {done:,} of {total:,}{note and '  ' + note}{left and f'  ({left})'}")

        yield report


def counted(each: Iterable[T], total: int, progress: Progress | None) -> Iterator[T]:
    """Yield the elements of an iterable, of which there are `total`, and call `progress`, if given, after each."""
    for done, one in enumerate(each, 1):
        yield one
        if progress is not None:
            progress(done, total)


def _time_left() -> Callable[[int, int], str]:
    """Return a function of the number done and the total: the time left as text, or "" where it cannot be told yet."""
    first: list[tuple[float, int]] = []

    def time_left(done: int, total: int) -> str:
        now = time.monotonic()
        if not first:
            first.append((now, done))
        seconds, count = now - first[0][0], done - first[0][1]
        if not count or seconds < _SECONDS_BEFORE_GUESS or done >= total:
            return ""
        return f"about {readable_time(seconds / count * (total - done))} left"

    return time_left


def readable_time(seconds: float) -> str:
    """Return a duration in seconds as text, such as `40 s`, `12 min` or `2 h 5 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
