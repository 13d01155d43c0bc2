"""Runs as jobs of a SLURM cluster, by submitit.

The folder of the runs must lie on a file system that the nodes share. Its folder `slurm` receives the jobs' scripts,
logs and results.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.common.errors import AdaptError, missing
from adapt.common.shown import one_line
from adapt.protocols.runs import RETRIES, PlannedRun, Row, is_finished

if TYPE_CHECKING:
    from submitit import Executor, Job

FOLDER = "slurm"
MINUTES = 24 * 60  # of a job, where `time` is not given: SLURM stops it then, and it goes on in another
POLL, GONE = 1.0, 60.0  # seconds between looks at the jobs, and until cancelled jobs are gone at most
THREADS = "cpus_per_task"
_DASHES = "-" * 22  # a line of submitit's error, before and after a traceback
_OURS = {
    "array", "error", "job_name", "nodes", "ntasks", "ntasks_per_gpu", "ntasks_per_node", "output", "requeue",
}  # fmt: skip


def threads_of(options: Mapping[str, str]) -> int:
    """Return the threads of a job, which sbatch's options must name. Raises AdaptError for options of the engine's own.

    The number of threads decides the last bits of results, so it must not depend on where the command is given.
    """
    for name in sorted(_OURS.intersection(options)):
        raise AdaptError(
            f"--sbatch {name}={options[name]} is not allowed: a run is one task, and the engine sets {name}"
        )
    asked = options.get(THREADS, "")
    if not (asked.isdecimal() and int(asked)):
        raise AdaptError(
            f"--sbatch cpus-per-task is {asked or 'not given'}; expected the number of threads of a run, such as 4"
        )
    return int(asked)


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
    that dies is submitted again at once, at most twice, and goes on from the run's last checkpoint. Jobs that are still
    there when the iterator ends are cancelled. Raises AdaptError without submitit or SLURM, if sbatch refuses the jobs,
    and if a run fails or its job dies three times.
    """
    jobs = _Jobs(_executor(out / FOLDER, at_once, options), compute, (out.absolute(), *arguments))
    waiting = [run for run in runs if not is_finished(run, out)]
    jobs.submit(waiting)
    try:
        for run in runs:
            yield jobs.row(run) if run in waiting else compute(run, out, *arguments)
    finally:
        jobs.cancel()


class _Jobs:
    """The jobs of some runs, and the rows of those that are done."""

    def __init__(self, executor: Executor, compute: Callable[..., Row], arguments: Sequence[object]) -> None:
        self._executor, self._compute, self._arguments = executor, compute, arguments
        self._runs: dict[str, PlannedRun] = {}
        self._there: dict[str, Job[Row | AdaptError | None]] = {}
        self._deaths = Counter[str]()
        self._done: dict[str, Row | AdaptError] = {}

    def submit(self, runs: Sequence[PlannedRun]) -> None:
        """Submit a job for each run, as one array. Raises AdaptError if sbatch refuses them."""
        if not runs:
            return
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(_outcome, self._compute, run, *self._arguments) for run in runs]
        except RuntimeError as error:  # submitit's errors of sbatch
            raise AdaptError(
                f"sbatch refuses the jobs: {one_line(error)}; change --sbatch KEY=VALUE, with sbatch's own keys"
            ) from error
        for run, job in zip(runs, jobs, strict=True):
            self._runs[run.name], self._there[run.name] = run, job

    def row(self, run: PlannedRun) -> Row:
        """Wait for the row of a run, and meanwhile submit again what died. Raises the error of a run that failed."""
        while run.name not in self._done:
            self._collect()
            if run.name not in self._done:
                time.sleep(POLL)
        row = self._done[run.name]
        if isinstance(row, AdaptError):
            raise row
        return row

    def _collect(self) -> None:
        died = []
        for name, job in list(self._there.items()):
            if not job.done():
                continue
            del self._there[name]
            row = _result(name, job)
            if row is not None:
                self._done[name] = row
                continue
            job.cancel(check=False)  # where it is only held up, two would write one folder
            self._deaths[name] += 1
            died.append(name)
            if self._deaths[name] > RETRIES:
                given_up = f"the job of {name} died {RETRIES + 1} times; its log is {job.paths.stderr}"
                self._done[name] = AdaptError(given_up)
        self.submit([self._runs[name] for name in died if name not in self._done])

    def cancel(self) -> None:
        """Cancel what is still there, and wait until it is gone, a minute at most."""
        left = [job for job in self._there.values() if not job.done()]
        for job in left:
            job.cancel(check=False)
        until = time.monotonic() + GONE
        while time.monotonic() < until and not all(job.done(force_check=True) for job in left):
            time.sleep(POLL)


def _result(name: str, job: Job[Row | AdaptError | None]) -> Row | AdaptError | None:
    """Return the row of a job that is done, the error of its run, or None if it died or reached its time limit."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        row = job.result()
    except FailedJobError as error:
        text = str(error)  # with a traceback between two lines of dashes
        last = text.split(_DASHES)[1].strip().splitlines()[-1] if _DASHES in text else text
        return AdaptError(f"{name} failed: {one_line(last)}; its log is {job.paths.stderr}")
    except UncompletedJobError:
        return None
    return row


def _executor(folder: Path, at_once: int, options: Mapping[str, str]) -> Executor:
    try:
        import submitit
    except ImportError:
        raise missing("--engine slurm", "submitit", "slurm") from None
    for command, why in (("srun", "runs the jobs"), ("sacct", "says which jobs died")):
        if shutil.which(command) is None:
            raise AdaptError(
                f"there is no SLURM on this machine ({command}, which {why}, is not on the PATH): run the command on a "
                "login node, or use --engine local"
            )
    executor = submitit.SlurmExecutor(folder=folder)
    given = {"time": str(MINUTES)} | dict(options)
    executor.update_parameters(job_name="adapt", array_parallelism=at_once, additional_parameters=given)
    return executor


def _outcome(compute: Callable[..., Row], *arguments: object) -> Row | AdaptError | None:
    """Return the row, an error that a user can act on, or None if the job reaches its time limit."""
    from submitit.core.utils import UncompletedJobError

    try:
        return compute(*arguments)
    except AdaptError as error:
        return error
    except UncompletedJobError:  # raised by submitit when SLURM announces the limit
        return None
