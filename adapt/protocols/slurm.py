"""Runs as jobs of a SLURM cluster, by submitit.

The folder of the runs must lie on a file system that the nodes share. Its folder `slurm` receives the jobs' scripts,
logs and results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt.errors import AdaptError, missing
from adapt.protocols.runs import PlannedRun, Row
from adapt.shown import one_line

FOLDER = "slurm"
MINUTES = 24 * 60  # of a job, where `time` is not given: SLURM stops it then, and it goes on in another
RETRIES = 2  # after a job that died
_OURS = {"array", "error", "job_name", "output"}  # options of sbatch that the engine sets itself
_REFUSED = "change --sbatch KEY=VALUE, whose keys are sbatch's options"


def check_options(options: Mapping[str, str]) -> None:
    """Raise AdaptError for options of sbatch that the engine sets itself."""
    for name in sorted(_OURS.intersection(options)):
        raise AdaptError(f"--sbatch {name}={options[name]} is not allowed: this engine sets {name} itself")


def rows(
    compute: Callable[..., Row],
    runs: Sequence[PlannedRun],
    arguments: Sequence[object],
    out: Path,
    at_once: int,
    options: Mapping[str, str],
) -> Iterator[Row]:
    """Yield the row `compute(run, out, *arguments)` of each run, in order, each computed by a job of the cluster.

    `at_once` jobs run at a time. `options` are sbatch's, such as partition. Rows of finished runs are read here. A job
    that dies is submitted again, at most twice, and goes on from the run's last checkpoint. Jobs that are still there
    when the iterator ends are cancelled. Raises AdaptError without submitit or SLURM, and if sbatch refuses the jobs.
    """
    executor = _executor(out / FOLDER, at_once, options)
    there = out.absolute()

    def submit(waiting: Sequence[PlannedRun]) -> list[Any]:
        try:
            with executor.batch():
                return [executor.submit(_outcome, compute, run, there, *arguments) for run in waiting]
        except RuntimeError as error:  # submitit's errors of sbatch
            raise AdaptError(f"sbatch refuses the jobs: {one_line(error)}; {_REFUSED}") from error

    waiting = [run for run in runs if not (out / run.name / "metrics.json").is_file()]
    jobs = dict(zip([run.name for run in waiting], submit(waiting) if waiting else [], strict=True))
    try:
        for run in runs:
            yield compute(run, out, *arguments) if run.name not in jobs else _result(run, jobs, submit)
    finally:
        for job in jobs.values():
            if not job.done():
                job.cancel(check=False)


def _executor(folder: Path, at_once: int, options: Mapping[str, str]) -> Any:
    try:
        import submitit
    except ImportError:
        raise missing("--engine slurm", "submitit", "slurm") from None
    try:
        executor = submitit.SlurmExecutor(folder=folder)
    except RuntimeError as error:
        raise AdaptError(
            "there is no SLURM on this machine (srun is not on the PATH): run the command on a login node, or use "
            "--engine local"
        ) from error
    given = {"time": str(MINUTES)} | dict(options)
    executor.update_parameters(job_name="adapt", array_parallelism=at_once, additional_parameters=given)
    return executor


def _outcome(compute: Callable[..., Row], *arguments: object) -> Row | AdaptError:
    """Return the row, or the error that a user can act on, of which submitit would keep the text of a traceback."""
    try:
        return compute(*arguments)
    except AdaptError as error:
        return error


def _result(run: PlannedRun, jobs: dict[str, Any], submit: Callable[[Sequence[PlannedRun]], list[Any]]) -> Row:
    from submitit.core.utils import UncompletedJobError

    for retries in range(RETRIES, -1, -1):
        try:
            row: Row | AdaptError = jobs[run.name].result()
        except UncompletedJobError:
            if retries:
                [jobs[run.name]] = submit([run])
            continue
        if isinstance(row, AdaptError):
            raise row
        return row
    raise AdaptError(f"the job of {run.name} died {RETRIES + 1} times; its log is {jobs[run.name].paths.stderr}")
