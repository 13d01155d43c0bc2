"""Seconds and peak memory of a step, each in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec

import torch

THREADS = 2
P = ParamSpec("P")
Row = dict[str, Any]  # a measurement as JSON: its case, its numbers, and `text` to print in their place


@dataclass(frozen=True)
class Measured:
    """The best of a few repetitions in seconds, and the step's peak RSS above what was resident before it."""

    seconds: float
    peak_bytes: int
    processor_seconds: float
    """The best in seconds of all processors together, which other programs on the machine hardly change."""

    def times(self, factor: float) -> Measured:
        """Return the same for `factor` such steps."""
        return replace(self, seconds=factor * self.seconds, processor_seconds=factor * self.processor_seconds)


def compared(plain: Measured, fast: Measured, *, scaled: bool = False) -> Row:
    """Return the figures of two ways to do the same; `scaled` if a few steps were timed for many."""
    return {
        "plain_seconds": plain.seconds,
        "plain_scaled": scaled,
        "fast_seconds": fast.seconds,
        "ratio": plain.seconds / fast.seconds,
        "fast_peak_bytes": fast.peak_bytes,
        "plain_peak_bytes": plain.peak_bytes,
    }


def in_fresh_process(
    repeats: int, build: Callable[P, Callable[[], object]], *args: P.args, **kwargs: P.kwargs
) -> Measured:
    """Measure the step that `build(*args, **kwargs)` returns, after one step to warm up, in a spawned process.

    With no repetitions the first step itself is timed, for steps so long that warming up does not matter.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (repeats, build, *args), kwargs)


def by_rounds(
    rounds: int, steps: Mapping[str, tuple[Callable[..., Callable[[], object]], tuple[object, ...]]]
) -> dict[str, Measured]:
    """Return the best of each step over some rounds, in which each is measured once in a process of its own.

    So a slow minute of the machine falls on all of them. A step is given as what builds it, and arguments.
    """
    taken = [
        {name: in_fresh_process(1, build, *arguments) for name, (build, arguments) in steps.items()}
        for _ in range(rounds)
    ]
    return {name: _best([each[name] for each in taken]) for name in steps}


def _best(taken: Sequence[Measured]) -> Measured:
    """Return the best seconds, and the largest peak."""
    return Measured(
        min(each.seconds for each in taken),
        max(each.peak_bytes for each in taken),
        min(each.processor_seconds for each in taken),
    )


def _measure(repeats: int, build: Callable[P, Callable[[], object]], *args: P.args, **kwargs: P.kwargs) -> Measured:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    step = build(*args, **kwargs)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # start a new peak
    before = _status("VmRSS")
    warming = _seconds(step)
    peak = _status("VmHWM") - before
    taken = [_seconds(step) for _ in range(repeats)] or [warming]
    return Measured(min(wall for wall, _ in taken), peak, min(processor for _, processor in taken))


def _seconds(step: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a step took, and those of all processors together."""
    started, processor = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - started, time.process_time() - processor


def by_turns(steps: Sequence[Callable[[], object]], rounds: int, warming: int = 5) -> list[float]:
    """Return the median seconds of each step, over rounds in which they take turns, in a new order each time."""
    seconds: list[list[float]] = [[] for _ in steps]
    draw = random.Random(0)
    for number in range(-warming, rounds):  # the first rounds warm up
        for index in draw.sample(range(len(steps)), len(steps)):
            taken, _ = _seconds(steps[index])
            if number >= 0:
                seconds[index].append(taken)
    return [statistics.median(each) for each in seconds]


def _status(field: str) -> int:
    """Return a field of Linux's process status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")
