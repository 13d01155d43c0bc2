"""Runs that are killed or interrupted at random moments go on to what the uninterrupted run gives, bit for bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import forked_runs
import pytest

from adapt.data import Split

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("in_workers")]

KILLS, SIGNALS, FULL_DISKS = 10, 4, 4  # of each case, of which there are five
Whole = Callable[[str], tuple[Path, float]]


@pytest.fixture
def whole(tiny_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Whole:
    """`whole(case)`: a run that nothing stopped, with a cache of its own, and its seconds."""

    def run(case: str) -> tuple[Path, float]:
        monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
        forked_runs.train(
            case, tiny_split, tmp_path / "warm"
        )  # in this process: those that are forked find all imported
        started = time.monotonic()
        forked_runs.finish(case, tiny_split, tmp_path / "whole")
        return tmp_path / "whole", time.monotonic() - started

    return run


@pytest.mark.parametrize("case", forked_runs.CASES)
def test_killed_runs(
    whole: Whole, tiny_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    expected, seconds = whole(case)
    moments, number, killed = Random(f"kill {case}"), 0, 0
    while killed < KILLS:
        monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / f"cache-{number}"))
        out = tmp_path / f"run-{number}"
        ended = forked_runs.stopped(case, tiny_split, out, signal.SIGKILL, moments.uniform(0, seconds))
        assert ended in (-signal.SIGKILL, 0)  # 0: it was faster
        killed, number = killed + (ended < 0), number + 1
        forked_runs.finish(case, tiny_split, out)
        forked_runs.assert_same(expected, out)


@pytest.mark.parametrize("case", forked_runs.CASES)
def test_interrupted_runs(whole: Whole, tiny_split: Split, tmp_path: Path, case: str) -> None:
    expected, seconds = whole(case)
    moments = Random(f"signal {case}")
    for number in range(SIGNALS):
        out = tmp_path / f"run-{number}"
        kind = (signal.SIGINT, signal.SIGTERM)[number % 2]
        ended = forked_runs.stopped(case, tiny_split, out, kind, moments.uniform(0.2, 1) * seconds)
        assert ended in (forked_runs.INTERRUPTED, -kind, 0)
        forked_runs.finish(case, tiny_split, out)
        forked_runs.assert_same(expected, out)


@pytest.mark.parametrize("case", forked_runs.CASES)
def test_runs_on_a_disk_that_becomes_full(whole: Whole, tiny_split: Split, tmp_path: Path, case: str) -> None:
    expected, _ = whole(case)
    largest = max(path.stat().st_size for path in expected.iterdir())
    sizes = Random(f"full {case}")
    for number in range(FULL_DISKS):
        out = tmp_path / f"run-{number}"
        forked_runs.refused(case, tiny_split, out, sizes.randrange(largest))
        forked_runs.finish(case, tiny_split, out)
        forked_runs.assert_same(expected, out)
