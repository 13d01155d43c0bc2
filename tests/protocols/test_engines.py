"""Engines: the same rows from each, refusals of single runs, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from fake_accelerators import pretend
from selection import by_turns
from stopping import interrupt, stopped_at

from adapt import AdaptError
from adapt.protocols import engines
from adapt.protocols import protocol as protocols
from adapt.protocols.engines import Engine
from adapt.protocols.protocol import run_protocol
from adapt.protocols.runs import PlannedRun, Row
from adapt.recipe import Recipe

SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def runs(recipe: Recipe) -> tuple[PlannedRun, ...]:
    """Of base-to-new over three seeds."""
    return protocols.base_to_new(recipe, SEEDS).runs


@dataclass
class Outcome:
    """What an engine gave before it ended, and how it ended."""

    rows: list[Row] = field(default_factory=list)
    error: BaseException | None = None


def outcome(engine: Engine, runs: tuple[PlannedRun, ...], out: Path) -> Outcome:
    """Of runs the last of which finds its folder taken by another recipe."""
    taken = out / runs[-1].name / "recipe.yaml"
    taken.parent.mkdir(parents=True)
    taken.write_text("another")
    found = Outcome()
    try:
        for row in engine.rows(runs, out):
            found.rows.append(row)
    except AdaptError as error:
        found.error = error
    return found


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory, runs: tuple[PlannedRun, ...]) -> Outcome:
    return outcome(Engine(), runs, tmp_path_factory.mktemp("engines") / "sequential")


def same(found: Outcome, sequential: Outcome, out: Path) -> None:
    assert [row["seed"] for row in sequential.rows] == [1, 2]
    assert found.rows == sequential.rows
    for each in (found, sequential):
        assert type(each.error) is AdaptError
        assert str(each.error).endswith("seed-3 holds a run of another recipe: choose another --out")
    assert str(out) in str(found.error)
    assert [(out / name / "metrics.json").exists() for name in ("seed-1", "seed-2", "seed-3")] == [True, True, False]
    assert (out / "seed-3/recipe.yaml").read_text() == "another"


def threads(out: Path) -> set[int]:
    """Of the finished runs."""
    return {json.loads((out / f"seed-{seed}/environment.json").read_text())["threads"] for seed in (1, 2)}


@pytest.mark.full
def test_two_processes_give_the_rows_and_the_refusal_of_one(
    sequential: Outcome, runs: tuple[PlannedRun, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # a thread for each process
    same(outcome(Engine(at_once=2), runs, tmp_path / "out"), sequential, tmp_path / "out")
    assert threads(tmp_path / "out") == {1}


@pytest.mark.full
@pytest.mark.at_length
def test_ray_gives_the_rows_and_the_refusal_of_one_process(
    sequential: Outcome, runs: tuple[PlannedRun, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    same(outcome(Engine("ray"), runs, tmp_path / "out"), sequential, tmp_path / "out")
    assert threads(tmp_path / "out") == {1}
    assert not ray.is_initialized()


@pytest.mark.parametrize(("at_once", "expected"), [(1, 8), (3, 2), (8, 1), (20, 1)])
def test_runs_at_once_share_the_threads(monkeypatch: pytest.MonkeyPatch, at_once: int, expected: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert Engine(at_once=at_once).threads == Engine("ray", at_once).threads == expected


def test_an_interruption_leaves_the_finished_runs(
    runs: tuple[PlannedRun, ...], trained: list[int], tmp_path: Path
) -> None:
    rows = Engine().rows(runs, tmp_path)
    first = next(rows)
    with stopped_at(1, interrupt, run="seed-2"):
        next(rows)
    assert sorted(path.name for path in tmp_path.glob("seed-*")) == ["seed-1", "seed-2"]
    assert [path.parent.name for path in tmp_path.glob("*/metrics.json")] == ["seed-1"]
    assert next(Engine().rows(runs, tmp_path)) == first
    assert trained == [1, 2]


@pytest.mark.full
@by_turns(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_processes_end_with_the_command(
    number: signal.Signals, code: int, raw: dict[str, Any], tmp_path: Path
) -> None:
    """As a scheduler ends it, or as the system does; each run can then be resumed."""
    long = raw | {"train": raw["train"] | {"epochs": 100_000, "checkpoint_minutes": 0}}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(long))
    options = ["sweep", tmp_path / "long.yaml", "--seeds", "1,2", "--jobs", "2", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "adapt", *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        begun = time.monotonic()
        while len([*(tmp_path / "out").glob("*/checkpoint.safetensors")]) < 2 and time.monotonic() < begun + 200:
            time.sleep(0.2)
        started.send_signal(number)
        _, told = started.communicate(timeout=60)  # once nobody holds its output any longer
    assert started.returncode == code, told
    assert ("stopped; continue with the same command" in told) == (number == signal.SIGTERM)
    assert len([*(tmp_path / "out").glob("*/checkpoint.safetensors")]) == 2


def test_without_ray_the_extra_is_named(
    recipe: Recipe, trained: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "set to be taken back")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    with pytest.raises(AdaptError, match=r'--engine ray needs Ray: pip install "adapt-vlm\[ray\]"'):
        run_protocol(protocols.base_to_new(recipe, SEEDS), tmp_path / "none", Engine("ray"))
    assert trained == []
    assert not (tmp_path / "none").exists()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"  # before Ray is imported: it tells nobody of its use


@pytest.mark.parametrize(
    ("at_once", "accelerators", "share"), [(1, 0, 0), (4, 0, 0), (1, 8, 1), (4, 2, 0.5), (3, 2, 0.5), (8, 1, 0.125)]
)
def test_runs_at_once_share_the_accelerators(at_once: int, accelerators: int, share: float) -> None:
    assert Engine("ray", at_once).share(accelerators) == share


def test_the_processes_take_the_accelerators_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    present = pretend(monkeypatch, 2)
    numbers: Any = SimpleNamespace(get=iter((0, 1, 2)).__next__)
    for _ in range(3):
        engines._begin(numbers)
    assert present[1:] == [0, 1, 0]


@pytest.mark.parametrize(("device", "share"), [("auto", 0.5), ("cpu", 0)])
def test_ray_is_asked_for_accelerators(
    recipe: Recipe, device: str, share: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def remote(**options: Any) -> Any:
        asked.append(options)
        return lambda function: SimpleNamespace(remote=lambda run, *rest: run.name)

    nodes = [{"Alive": True, "Resources": {"CPU": 8, "GPU": 2}}, {"Alive": False, "Resources": {"GPU": 8}}]
    ray = SimpleNamespace(is_initialized=lambda: True, nodes=lambda: nodes, remote=remote, get=lambda name: name)
    monkeypatch.setitem(sys.modules, "ray", ray)
    there = recipe.model_copy(update={"device": device})
    assert list(Engine("ray", 4).rows([PlannedRun("a", there)], tmp_path)) == ["a"]
    assert asked[0]["num_gpus"] == share


def test_a_run_goes_on_and_is_known_on_another_device(recipe: Recipe, trained: list[int], tmp_path: Path) -> None:
    auto, here = (PlannedRun("a", recipe.model_copy(update={"device": device})) for device in ("auto", "cpu"))
    [first] = Engine().rows([auto], tmp_path)
    assert list(Engine().rows([here], tmp_path)) == [first]
    assert trained == [1]
    (tmp_path / "a/metrics.json").unlink()  # as if it had been stopped
    assert next(iter(Engine().rows([here], tmp_path)))["test"] == first["test"]
    assert "device: auto" in (tmp_path / "a/recipe.yaml").read_text()
