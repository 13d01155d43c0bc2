"""Seconds and peak memory of a step, each in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THREADS = 2


@dataclass(frozen=True)
class Measured:
    """The best of a few repetitions in seconds, and the step's peak RSS above what was resident before it."""

    seconds: float
    peak_bytes: int


def in_fresh_process(build: Callable[..., Callable[[], Any]], *arguments: Any, repeats: int = 3) -> Measured:
    """Measures the step that `build(*arguments)` returns, after one step that warms up, in a spawned process.

    With no repetitions the first step itself is timed, for steps so long that warming up does not matter.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (build, arguments, repeats))


def _measure(build: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], repeats: int) -> Measured:
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    step = build(*arguments)
    gc.collect()
    before = _reset_peak()
    started = time.perf_counter()
    step()
    warming = time.perf_counter() - started
    peak = _peak() - before
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return Measured(min(seconds, default=warming), peak)


def by_turns(steps: Sequence[Callable[[], Any]], rounds: int, warming: int = 5) -> list[float]:
    """The median seconds of each step, over rounds in which they take turns, in another order each."""
    taken: list[list[float]] = [[] for _ in steps]
    draw = random.Random(0)
    for number in range(-warming, rounds):  # the first ones warm up
        for index in draw.sample(range(len(steps)), len(steps)):
            started = time.perf_counter()
            steps[index]()
            if number >= 0:
                taken[index].append(time.perf_counter() - started)
    return [statistics.median(each) for each in taken]


def _reset_peak() -> int:
    """Starts a new peak where the system can; returns the resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    """A field of Linux's process status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")
