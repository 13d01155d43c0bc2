"""Runs as jobs of SLURM, and runs whose process dies: the same rows, tried again, and what is refused."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_slurm
import pytest
import yaml
from click.testing import CliRunner
from selection import by_turns

from adapt import AdaptError, methods
from adapt.cli import main
from adapt.protocols import engines
from adapt.protocols import protocol as protocols
from adapt.protocols.engines import Engine
from adapt.protocols.runs import PlannedRun, is_finished
from adapt.recipe import Recipe

MORTAL = """
import os, signal
from pathlib import Path
from adapt.methods import CoOp

class Mortal(CoOp):
    name = "NAME"

    def epoch_done(self, epoch, epochs):
        marker = Path(os.environ["MORTAL"])
        if epoch == 2 and marker.exists():
            marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _no_methods_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plug-in registers is forgotten after the test."""
    monkeypatch.setattr(methods._listing, "_registered", {})
    monkeypatch.setattr(methods, "_plugins", {})


SLURM = ["--engine", "slurm", "--sbatch", "cpus-per-task=1"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for SLURM; its folder has the scripts of the jobs."""
    submitit = pytest.importorskip("submitit")
    state = fake_slurm.install(tmp_path / "cluster")
    monkeypatch.setenv("PATH", fake_slurm.on_the_path(tmp_path / "cluster"))
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)
    return state


def rows(out: Path) -> list[dict[str, Any]]:
    """The rows of finished base-to-new runs."""
    found: list[dict[str, Any]] = json.loads((out / "base_to_new.json").read_text())["runs"]
    return found


@pytest.mark.full
@by_turns("engine", ["local", "slurm", "submitit"])
def test_a_run_whose_process_is_killed_goes_on_and_the_table_is_the_same(
    engine: str, raw: dict[str, Any], cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a pool of processes, of the stand-in for SLURM, and of the executor that submitit has for this machine."""
    if engine == "submitit":
        submitit = pytest.importorskip("submitit")  # whose local jobs take no options of sbatch
        monkeypatch.setattr(engines, "_executor", lambda folder, at_once, options: submitit.LocalExecutor(folder))
    plugin, name = tmp_path / f"{engine}.py", f"mortal_{engine}"
    plugin.write_text(MORTAL.replace("NAME", name))
    recipe = raw | {"method": {"name": name, "n_ctx": 2}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    marker = tmp_path / "marker"
    monkeypatch.setenv("MORTAL", str(marker))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def table(out: Path, *options: str) -> str:
        words = ["--plugin", plugin, "base-to-new", tmp_path / "mine.yaml", "--out", out, *options]
        done = CliRunner().invoke(main, [*map(str, words), "--seeds", "1,2"])
        assert done.exit_code == 0, done.output
        return done.stdout

    expected = table(tmp_path / "undisturbed")
    marker.touch()
    chosen = ["--jobs", "2"] if engine == "local" else [*SLURM, "--sbatch", "partition=gpu"]
    assert table(tmp_path / "disturbed", *chosen) == expected
    assert not marker.exists()  # a process died
    assert rows(tmp_path / "disturbed") == rows(tmp_path / "undisturbed")
    scripts = sorted(cluster.glob("*.script"))
    assert len(scripts) == (2 if engine == "slurm" else 0)  # both runs, then that which died
    if engine == "slurm":
        first = scripts[0].read_text()
        assert "#SBATCH --partition=gpu" in first
        assert "#SBATCH --array=0-1%1" in first
        assert "#SBATCH --time=1440" in first
        assert table(tmp_path / "disturbed", *chosen) == expected  # without a job: all is there
        assert len(list(cluster.glob("*.script"))) == 2


class Ended:
    """A job that is done, with a row or an error of submitit's."""

    paths = SimpleNamespace(stderr="slurm/7_0_log.err")

    def __init__(self, row: Any) -> None:
        self._row, self.cancelled = row, False

    def done(self, force_check: bool = False) -> bool:
        return True

    def result(self) -> Any:
        if isinstance(self._row, Exception):
            raise self._row
        return self._row

    def cancel(self, check: bool = True) -> None:
        self.cancelled = True


class Executor:
    """Gives jobs that end so, one after the other."""

    def __init__(self, *ends: Any) -> None:
        self.jobs = [Ended(each) for each in ends]
        self.left = iter(self.jobs)

    def batch(self) -> Any:
        return nullcontext()

    def submit(self, *arguments: Any) -> Ended:
        return next(self.left)


def given(monkeypatch: pytest.MonkeyPatch, runs: list[PlannedRun], out: Path, *ends: Any) -> tuple[Executor, Any]:
    executor = Executor(*ends)
    monkeypatch.setattr(engines, "_executor", lambda *arguments: executor)
    return executor, Engine("slurm", sbatch=THREAD).rows(runs, out)


def test_a_job_that_died_three_times_is_given_up(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = pytest.importorskip("submitit.core.utils")
    runs = [PlannedRun("a", recipe), PlannedRun("b", recipe)]
    died = errors.UncompletedJobError("no output")
    executor, rows = given(monkeypatch, runs, tmp_path, {"run": "a"}, died, None, died)  # None: the time limit
    assert next(rows) == {"run": "a"}
    with pytest.raises(AdaptError, match=r"the job of b died 3 times; its log is slurm/7_0_log\.err"):
        next(rows)
    assert [job.cancelled for job in executor.jobs] == [False, True, True, True]


def test_a_run_that_fails_is_not_tried_again(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("submitit.core.utils")
    dashes = "-" * 22
    trace = f"failed with trace:\n{dashes}\nTraceback\n  File\nRuntimeError: shapes differ\n{dashes}\nlogs"
    _, rows = given(monkeypatch, [PlannedRun("a", recipe)], tmp_path, errors.FailedJobError(trace))
    with pytest.raises(AdaptError, match=r"a failed: RuntimeError: shapes differ; its log is slurm/7_0_log\.err"):
        next(rows)


def test_a_pool_whose_processes_die_three_times_is_given_up(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    (tmp_path / "b").mkdir()  # begun

    def dying(self: Engine, runs: Any, out: Path, track: Any) -> Any:
        tried.append(len(runs))
        if len(tried) == 2:
            yield {"run": runs[0].name}
        raise engines.BrokenProcessPool

    monkeypatch.setattr(Engine, "_in_pool", dying)
    found = Engine(at_once=2).rows([PlannedRun("a", recipe), PlannedRun("b", recipe)], tmp_path)
    assert next(found) == {"run": "a"}
    with pytest.raises(AdaptError, match="a process died 3 times while b ran: use fewer --jobs"):
        next(found)
    assert tried == [2, 2, 1]


THREAD = (("cpus_per_task", "1"),)


@pytest.mark.full
def test_jobs_give_rows_and_a_users_error_comes_back_as_itself(recipe: Recipe, cluster: Path, tmp_path: Path) -> None:
    taken = tmp_path / "out/seed-2/recipe.yaml"
    taken.parent.mkdir(parents=True)
    taken.write_text("another")
    rows = Engine("slurm", sbatch=THREAD).rows(protocols.base_to_new(recipe, (1, 2)).runs, tmp_path / "out")
    first = next(rows)
    assert (first["run"], first["seed"]) == ("seed-1", 1)
    with pytest.raises(AdaptError, match="seed-2 holds a run of another recipe: choose another --out"):
        next(rows)
    assert json.loads((tmp_path / "out/seed-1/environment.json").read_text())["threads"] == 1


def test_what_sbatch_refuses_is_said(recipe: Recipe, cluster: Path, tmp_path: Path) -> None:
    refusing = tmp_path / "cluster/bin/sbatch"
    refusing.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: none' >&2; exit 1\n")
    engine = Engine("slurm", sbatch=(*THREAD, ("partition", "none")))
    runs = protocols.base_to_new(recipe, (1,)).runs
    with pytest.raises(AdaptError, match=r"sbatch refuses the jobs: .*change --sbatch KEY=VALUE"):
        list(engine.rows(runs, tmp_path / "out"))


def test_without_slurm_it_is_said(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    runs = protocols.base_to_new(recipe, (1,)).runs
    with pytest.raises(AdaptError, match="there is no SLURM on this machine"):
        list(Engine("slurm", sbatch=THREAD).rows(runs, tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sbatch", "partition=gpu"], "--sbatch has options of SLURM's jobs and needs --engine slurm"),
        (["--engine", "slurm", "--sbatch", "partition"], "--sbatch partition is not an option; expected KEY=VALUE"),
        (["--engine", "slurm", "--sbatch", "cpus-per-task=two"], "--sbatch cpus-per-task is two; expected the number"),
        (["--engine", "slurm", "--sbatch", "partition=gpu"], "--sbatch cpus-per-task is not given; expected the"),
        (["--engine", "slurm", "--sbatch", "array=1-9"], "--sbatch array=1-9 is not allowed: a run is one task"),
        (["--engine", "slurm", "--sbatch", "ntasks-per-node=2"], "--sbatch ntasks_per_node=2 is not allowed"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], message: str, raw: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    words = ["base-to-new", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out"), "--seeds", "1", *options]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2, done.output
    assert message in done.stderr


def test_jobs_have_as_many_threads_as_they_ask_for() -> None:
    assert Engine("slurm", 4, sbatch=(("cpus_per_task", "6"),)).threads == 6


def test_a_run_is_finished_once_its_targets_are_measured(recipe: Recipe, trained: list[int], tmp_path: Path) -> None:
    [run] = protocols.base_to_new(recipe, (1,)).runs
    assert run.targets
    assert not is_finished(run, tmp_path)
    list(Engine().rows([run], tmp_path))
    assert is_finished(run, tmp_path)
    figures = tmp_path / run.name / "targets.json"
    kept = figures.read_text()
    figures.unlink()
    assert not is_finished(run, tmp_path)
    figures.write_text(kept)
    other = replace(run, targets=(replace(run.targets[0], data=recipe.data),))
    assert not is_finished(other, tmp_path)
