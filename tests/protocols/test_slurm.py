"""Runs as jobs of SLURM, and runs whose process dies: the same rows, tried again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_slurm
import pytest
import yaml
from click.testing import CliRunner

from adapt import AdaptError
from adapt.cli import main
from adapt.protocols import engines, slurm
from adapt.protocols import protocol as protocols
from adapt.protocols.engines import Engine
from adapt.protocols.runs import PlannedRun
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
@pytest.mark.parametrize("engine", ["local", "slurm"])
def test_a_run_whose_process_is_killed_goes_on_and_the_table_is_the_same(
    engine: str, raw: dict[str, Any], cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    chosen = ["--jobs", "2"] if engine == "local" else ["--engine", "slurm", "--sbatch", "partition=gpu"]
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


class Dying:
    """A job that dies."""

    paths = SimpleNamespace(stderr="slurm/7_0_log.err")

    def result(self) -> None:
        from submitit.core.utils import UncompletedJobError

        raise UncompletedJobError("no output")


def test_a_job_that_died_three_times_is_given_up(recipe: Recipe) -> None:
    pytest.importorskip("submitit")
    submitted: list[str] = []

    def submit(runs: Any) -> list[Any]:
        submitted.extend(run.name for run in runs)
        return [Dying()]

    with pytest.raises(AdaptError, match=r"the job of a died 3 times; its log is slurm/7_0_log\.err"):
        slurm._result(PlannedRun("a", recipe), {"a": Dying()}, submit)
    assert submitted == ["a", "a"]


def test_a_pool_whose_processes_die_three_times_is_given_up(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def dying(self: Engine, runs: Any, out: Path, track: Any) -> Any:
        tried.append(len(runs))
        if len(tried) == 2:
            yield {"run": runs[0].name}
        raise engines.BrokenProcessPool

    monkeypatch.setattr(Engine, "_in_pool", dying)
    found = Engine(at_once=2).rows([PlannedRun("a", recipe), PlannedRun("b", recipe)], tmp_path)
    assert next(found) == {"run": "a"}
    with pytest.raises(AdaptError, match="the process of b or of a run beside it died 3 times"):
        next(found)
    assert tried == [2, 2, 1, 1]


def test_an_error_of_a_users_comes_back_as_itself(recipe: Recipe, cluster: Path, tmp_path: Path) -> None:
    taken = tmp_path / "out/seed-1/recipe.yaml"
    taken.parent.mkdir(parents=True)
    taken.write_text("another")
    runs = protocols.base_to_new(recipe, (1,)).runs
    with pytest.raises(AdaptError, match="seed-1 holds a run of another recipe: choose another --out"):
        list(Engine("slurm").rows(runs, tmp_path / "out"))


def test_what_sbatch_refuses_is_said(recipe: Recipe, cluster: Path, tmp_path: Path) -> None:
    refusing = tmp_path / "cluster/bin/sbatch"
    refusing.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: none' >&2; exit 1\n")
    engine = Engine("slurm", sbatch=(("partition", "none"),))
    runs = protocols.base_to_new(recipe, (1,)).runs
    with pytest.raises(AdaptError, match=r"sbatch refuses the jobs: .*change --sbatch KEY=VALUE"):
        list(engine.rows(runs, tmp_path / "out"))


def test_without_slurm_it_is_said(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    runs = protocols.base_to_new(recipe, (1,)).runs
    with pytest.raises(AdaptError, match="there is no SLURM on this machine"):
        list(Engine("slurm").rows(runs, tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sbatch", "partition=gpu"], "--sbatch has options of SLURM's jobs and needs --engine slurm"),
        (["--engine", "slurm", "--sbatch", "partition"], "--sbatch partition is not an option; expected KEY=VALUE"),
        (["--engine", "slurm", "--sbatch", "cpus-per-task=two"], "cpus-per-task=two is not a number of threads"),
        (["--engine", "slurm", "--sbatch", "array=1-9"], "--sbatch array=1-9 is not allowed"),
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
