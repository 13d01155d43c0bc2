"""Runs in processes of their own that are killed, stopped, or out of disk; tests/faults has many more of each."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import forked_runs
import pytest
from selection import by_turns

from adapt.data import Split


def _expected(case: str, split: Split, tmp_path: Path) -> Path:
    forked_runs.train(case, split, tmp_path / "whole")  # in this process: those that are forked find all imported
    return tmp_path / "whole"


@by_turns("write", [2, 4, 10, 27])
def test_a_run_killed_while_it_writes(tiny_split: Split, tmp_path: Path, write: int) -> None:
    """Of the files that take another's place: the recipe, the environment, features, checkpoints, the last files."""
    expected = _expected("coop", tiny_split, tmp_path)
    out, replace, left = tmp_path / "cut", os.replace, [write]

    def run() -> None:
        def killed(*paths: str) -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = killed  # type: ignore[assignment]  # in the process that is killed
        forked_runs.train("coop", tiny_split, out)

    assert forked_runs.join(forked_runs.fork(run, tmp_path / "error")) == -signal.SIGKILL
    forked_runs.finish("coop", tiny_split, out)
    forked_runs.assert_same(expected, out)


@pytest.mark.full
@by_turns(("number", "after"), [(signal.SIGTERM, 0.3), (signal.SIGKILL, 0.2), (signal.SIGHUP, 0.3)])
def test_a_run_stopped_by_a_signal(tiny_split: Split, tmp_path: Path, number: int, after: float) -> None:
    expected = _expected("lora", tiny_split, tmp_path)
    ended = forked_runs.stopped("lora", tiny_split, tmp_path / "cut", number, after)
    assert ended in (forked_runs.INTERRUPTED, -number, 0)
    forked_runs.finish("lora", tiny_split, tmp_path / "cut")
    forked_runs.assert_same(expected, tmp_path / "cut")


_OF_WORKERS = "a worker process cannot send images: unable to ", " Free shared memory (/dev/shm), or set workers to 0"


@pytest.mark.usefixtures("in_workers")
@by_turns(
    ("case", "size", "begins", "ends"),
    [("coop", 0, "cannot write ", ""), ("coop", 5000, "cannot write ", ""), ("worker", 10_000, *_OF_WORKERS)],
)
def test_a_run_on_a_full_disk_or_without_room_between_processes(
    tiny_split: Split, tmp_path: Path, case: str, size: int, begins: str, ends: str
) -> None:
    expected = _expected(case, tiny_split, tmp_path)
    told = forked_runs.refused(case, tiny_split, tmp_path / "cut", size)
    assert told.startswith(begins)
    assert "File too large" in told
    assert told.endswith(ends)
    forked_runs.finish(case, tiny_split, tmp_path / "cut")
    forked_runs.assert_same(expected, tmp_path / "cut")
