"""Engines that compute independent runs, with equal results: in processes here, on Ray, or as jobs of SLURM.

The last bits of results depend on the number of threads, so engines of one machine use the same number: torch's default
(the cores, or OMP_NUM_THREADS) divided by the number of parallel runs. Parallel runs share the machine's accelerators.
Where a run has a process of its own, and that dies, it is tried again, twice, and goes on from its last checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from adapt import methods
from adapt.common import devices
from adapt.common.errors import AdaptError, missing
from adapt.common.interrupt import Terminated, end_with_the_parent
from adapt.common.shown import one_line
from adapt.protocols import slurm
from adapt.protocols.runs import RETRIES, PlannedRun, Row, measure
from adapt.tracking import Track

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue


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
        """The number of CPU threads that each run uses."""
        import torch

        if self.name == "slurm":
            return slurm.threads_of(dict(self.sbatch))
        return max(1, torch.get_num_threads() // self.at_once)

    def share(self, accelerators: int) -> float:
        """Return the fraction of an accelerator that each run gets on a machine with this number of `accelerators`."""
        return 1 / -(-self.at_once // accelerators) if accelerators else 0

    def rows(self, runs: Sequence[PlannedRun], out: Path, track: Track = ()) -> Iterator[Row]:
        """Train and test `runs` in the folder `out`, and yield a row of results for each run, in the given order."""
        if self.name == "ray":
            return self._on_ray(runs, out, track)
        if self.name == "slurm":
            arguments = (self.threads, track, methods.plugins())
            return slurm.rows(_measure, runs, arguments, out, self.at_once, dict(self.sbatch))
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
        try:
            import ray
        except ImportError:
            raise missing("--engine ray", "Ray", "ray") from None
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
        """Connect to the Ray cluster at `address`, or start a local cluster with threads for all parallel runs.

        Raises AdaptError if there is no cluster at `address`, or if no node of the cluster has enough CPUs for a run.
        """
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


def _begin(numbers: SimpleQueue[int]) -> None:
    """Assign an accelerator to this worker process, by a process number from the queue `numbers`."""
    end_with_the_parent()
    devices.take(numbers.get())


def _measure(run: PlannedRun, out: Path, threads: int, track: Track, files: Sequence[Path] = ()) -> Row:
    """Load the plug-in `files`, compute a run in this process with `threads` threads, and return the row of results."""
    import torch

    methods.run_plugins(files)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return measure(run, out, track)
    finally:
        torch.set_num_threads(before)
