"""Engines that compute independent runs, with equal results: in processes here, on Ray, or as jobs of SLURM.

The last bits of results depend on the number of threads, so engines of one machine use the same number: torch's default
(the cores, or OMP_NUM_THREADS) divided by the number of parallel runs. Parallel runs share the machine's accelerators.
Where a run has a process of its own, and that dies, it is tried again, twice, and goes on from its last checkpoint.

With SLURM, the folder of the runs must lie on a file system that the nodes share. Its folder `slurm` receives the jobs'
scripts, logs and results.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch

from adapt import methods
from adapt.common import devices
from adapt.common.errors import AdaptError, needing
from adapt.common.interrupt import Terminated, end_with_the_parent
from adapt.common.shown import one_line
from adapt.protocols.runs import RETRIES, PlannedRun, Row, is_finished, measure
from adapt.tracking import Track

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    from submitit import Executor, Job


FOLDER = "slurm"
MINUTES = 24 * 60  # of a job, where `time` is not given: SLURM stops it then, and it goes on in another
POLL, GONE = 1.0, 60.0  # seconds between looks at the jobs, and until cancelled jobs are gone at most
THREADS = "cpus_per_task"
_DASHES = "-" * 22  # a line of submitit's error, before and after a traceback
_OURS = {
    "array", "error", "job_name", "nodes", "ntasks", "ntasks_per_gpu", "ntasks_per_node", "output", "requeue",
}  # fmt: skip


@dataclass(frozen=True)
class Engine:
    """An engine that computes `at_once` runs in parallel, on this machine or on a cluster of Ray or SLURM.

    `address` is that of a Ray cluster, and `sbatch` are options of SLURM's jobs.
    """

    name: Literal["local", "ray", "slurm"] = "local"
    at_once: int = 1
    address: str | None = None
    sbatch: tuple[tuple[str, str], ...] = ()

    @property
    def threads(self) -> int:
        """The number of CPU threads that each run uses, which sbatch's options must name for jobs of SLURM.

        Raises AdaptError for options that are the engine's own.
        """
        if self.name != "slurm":
            return max(1, torch.get_num_threads() // self.at_once)
        options = dict(self.sbatch)
        for name in sorted(_OURS.intersection(options)):
            raise AdaptError(
                f"--sbatch {name}={options[name]} is not allowed: a run is one task, and the engine sets {name}"
            )
        asked = options.get(THREADS, "")  # it decides the last bits, and must not depend on where the command is given
        if not (asked.isdecimal() and int(asked)):
            raise AdaptError(
                f"--sbatch cpus-per-task is {asked or 'not given'}; expected the number of threads of a run, such as 4"
            )
        return int(asked)

    def share(self, accelerators: int) -> float:
        """Return the fraction of an accelerator that each run gets on a machine with this number of `accelerators`."""
        return 1 / -(-self.at_once // accelerators) if accelerators else 0

    def rows(self, runs: Sequence[PlannedRun], out: Path, track: Track = ()) -> Iterator[Row]:
        """Train and test `runs` in the folder `out`, and yield a row of results for each run, in the given order."""
        if self.name == "ray":
            return self._on_ray(runs, out, track)
        if self.name == "slurm":
            return self._as_jobs(runs, out, track)
        if self.at_once == 1:
            return (_measure(run, out, self.threads, track) for run in runs)
        return self._in_processes(runs, out, track)

    def _in_processes(self, runs: Sequence[PlannedRun], out: Path, track: Track) -> Iterator[Row]:
        """Yield the rows of a pool of processes, and of another one for the runs that are left if a process dies."""
        done, deaths = 0, Counter[str]()
        while done < len(runs):
            try:
                for row in self._in_pool(runs[done:], out, track):
                    yield row
                    done += 1
            except BrokenProcessPool as error:
                folders = {run.name: out / run.name for run in runs[done:]}
                begun = [run for run, at in folders.items() if at.is_dir() and not (at / "metrics.json").exists()]
                deaths.update(begun or [runs[done].name])  # one of these died, and the pool ended the others
                given_up = [name for name, count in deaths.items() if count > RETRIES]
                if given_up:
                    raise AdaptError(
                        f"a process died {RETRIES + 1} times while {' and '.join(given_up)} ran: use fewer "
                        "--jobs if memory is short; the same command goes on with what is missing"
                    ) from error

    def _in_pool(self, runs: Sequence[PlannedRun], out: Path, track: Track) -> Iterator[Row]:
        context = multiprocessing.get_context("spawn")
        numbers = context.SimpleQueue()
        for number in range(self.at_once):
            numbers.put(number)
        with ProcessPoolExecutor(self.at_once, context, _begin, (numbers,)) as pool:
            futures = [pool.submit(_measure, run, out, self.threads, track, methods.plugins()) for run in runs]
            try:
                for future in futures:
                    yield future.result()
            except Terminated:
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid or 0, signal.SIGINT)
                raise
            finally:
                for future in futures:
                    future.cancel()

    def _on_ray(self, runs: Sequence[PlannedRun], out: Path, track: Track) -> Iterator[Row]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default Ray reports every cluster to its makers
        with needing("--engine ray", "Ray", "ray"):
            import ray
        started = not ray.is_initialized()
        if started:
            self._start(ray)
        try:
            accelerators = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
            on_gpus = any(run.recipe.device != "cpu" for run in runs)
            share = self.share(max(accelerators, default=0)) if on_gpus else 0
            task: Any = ray.remote(num_cpus=self.threads, num_gpus=share, max_retries=RETRIES)(_measure)
            pending = [task.remote(run, out.absolute(), self.threads, track, methods.plugins()) for run in runs]
            for run, each in zip(runs, pending, strict=True):
                try:
                    yield ray.get(each)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:  # of the worker, its memory or its node
                    died = f"the process of {run.name} died {RETRIES + 1} times"
                    raise AdaptError(f"{died}: {one_line(error)}") from error
        finally:
            if started:
                ray.shutdown()

    def _start(self, ray: ModuleType) -> None:
        """Connect to the Ray cluster at `address`, or start a local cluster with threads for all parallel runs."""
        quiet = {"log_to_driver": False, "include_dashboard": False}
        if self.address is None:
            ray.init(num_cpus=self.threads * self.at_once, **quiet)
            return
        try:
            ray.init(address=self.address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise AdaptError(f"there is no Ray cluster at {self.address!r}: {error}") from error
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if largest < self.threads:
            ray.shutdown()
            raise AdaptError(
                f"a run takes {self.threads} threads, but the largest node at {self.address} has {largest:.0f} CPUs: "
                "raise --jobs, or set OMP_NUM_THREADS to a lower number"
            )

    def _as_jobs(self, runs: Sequence[PlannedRun], out: Path, track: Track) -> Iterator[Row]:
        """Yield the rows of jobs of the cluster, of which `at_once` run at a time; rows of finished runs are read here.

        A job that dies is submitted again at once, at most twice. Jobs that are still there when the iterator ends are
        cancelled. Raises AdaptError without submitit or SLURM, if sbatch refuses the jobs, and if a run fails or its
        job dies three times.
        """
        arguments = (out.absolute(), self.threads, track, methods.plugins())
        jobs = _Jobs(_executor(out / FOLDER, self.at_once, dict(self.sbatch)), arguments)
        waiting = [run for run in runs if not is_finished(run, out)]
        jobs.submit(waiting)
        try:
            for run in runs:
                yield jobs.row(run) if run in waiting else _measure(run, out, *arguments[1:])
        finally:
            jobs.cancel()


def _begin(numbers: SimpleQueue[int]) -> None:
    """Assign an accelerator to this worker process, by a process number from the queue `numbers`."""
    end_with_the_parent()
    devices.take(numbers.get())


def _measure(run: PlannedRun, out: Path, threads: int, track: Track, files: Sequence[Path] = ()) -> Row:
    """Load the plug-in `files`, compute a run in this process with `threads` threads, and return the row of results."""
    methods.run_plugins(files)
    with devices.threads(threads):
        return measure(run, out, track)


class _Jobs:
    """The jobs of some runs, by submitit, and the rows of those that are done."""

    def __init__(self, executor: Executor, arguments: Sequence[object]) -> None:
        self._executor, self._arguments = executor, arguments
        self._there: dict[str, tuple[PlannedRun, Job[Row | AdaptError | None]]] = {}
        self._deaths = Counter[str]()
        self._done: dict[str, Row | AdaptError] = {}

    def submit(self, runs: Sequence[PlannedRun]) -> None:
        """Submit a job for each run, as one array. Raises AdaptError if sbatch refuses them."""
        if not runs:
            return
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(_outcome, run, *self._arguments) for run in runs]
        except RuntimeError as error:  # submitit's errors of sbatch
            raise AdaptError(
                f"sbatch refuses the jobs: {one_line(error)}; change --sbatch KEY=VALUE, with sbatch's own keys"
            ) from error
        self._there |= {run.name: (run, job) for run, job in zip(runs, jobs, strict=True)}

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
        for name, (run, job) in list(self._there.items()):
            if not job.done():
                continue
            del self._there[name]
            row = _result(name, job)
            if row is None:
                job.cancel(check=False)  # where it is only held up, two would write one folder
                self._deaths[name] += 1
                if self._deaths[name] <= RETRIES:
                    died.append(run)
                    continue
                row = AdaptError(f"the job of {name} died {RETRIES + 1} times; its log is {job.paths.stderr}")
            self._done[name] = row
        self.submit(died)

    def cancel(self) -> None:
        """Cancel what is still there, and wait until it is gone, a minute at most."""
        left = [job for _, job in self._there.values() if not job.done()]
        for job in left:
            job.cancel(check=False)
        until = time.monotonic() + GONE
        while time.monotonic() < until and not all(job.done(force_check=True) for job in left):
            time.sleep(POLL)


def _result(name: str, job: Job[Row | AdaptError | None]) -> Row | AdaptError | None:
    """Return the row of a job that is done, the error of its run, or None if it died or reached its time limit."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return job.result()
    except FailedJobError as error:
        text = str(error)  # with a traceback between two lines of dashes
        last = text.split(_DASHES)[1].strip().splitlines()[-1] if _DASHES in text else text
        return AdaptError(f"{name} failed: {one_line(last)}; its log is {job.paths.stderr}")
    except UncompletedJobError:
        return None


def _executor(folder: Path, at_once: int, options: Mapping[str, str]) -> Executor:
    with needing("--engine slurm", "submitit", "slurm"):
        import submitit
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


def _outcome(*arguments: Any) -> Row | AdaptError | None:
    """Return the row, an error that a user can act on, or None if the job reaches its time limit."""
    from submitit.core.utils import UncompletedJobError

    try:
        return _measure(*arguments)
    except AdaptError as error:
        return error
    except UncompletedJobError:  # raised by submitit when SLURM announces the limit
        return None
