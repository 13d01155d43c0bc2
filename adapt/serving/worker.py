"""Threads that run models, one for the requests in its queue, and the team of OpenMP threads of each.

OpenMP (GNU's, which torch brings) gives a team of threads to each thread that computes. Between two operations of a
pass, a team spins for GOMP_SPINCOUNT turns. With more threads than processors, a team spins for only a hundred turns,
and then every operation has to wake it, which made a pass of one small image a fifth slower. So only the threads that
run models have a team, which then stays awake in a pass.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, ParamSpec, TypeVar

import torch
from threadpoolctl import threadpool_limits

P = ParamSpec("P")
T = TypeVar("T")


def without_team() -> None:
    """Make the current thread compute without a team of OpenMP threads from now on."""
    torch.get_num_threads()  # torch sets a thread's number when first asked: do that before, not after
    threadpool_limits(1, user_api="openmp")  # torch's own call would also set it for threads that start later


def apart(compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the result of `compute`, run in a temporary thread so that its OpenMP thread team ends afterwards."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(compute(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # it is raised by the caller below
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="adapt-apart", daemon=True)  # Ctrl-C does not wait for it
    thread.start()
    result = outcome.result()
    thread.join()
    return result


Waiting = TypeVar("Waiting")


class Worker(Generic[Waiting]):
    """The base class of such threads, called `name`, whose `_run` takes requests from `_queue` under `_changed`."""

    def __init__(self, name: str) -> None:
        self._queue: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._begun: float | None = None  # when the present pass of the model began
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of requests that wait in the queue."""
        return len(self._queue)

    def _put(self, waiting: Waiting) -> None:
        """Queue a request. Raises RuntimeError if the worker is closed."""
        with self._changed:
            if self._closed:
                raise RuntimeError(f"the thread {self._thread.name} is closed")
            self._queue.append(waiting)
            self._changed.notify()

    def longest(self) -> float:
        """Return the time in seconds since the present pass began, or 0 if no pass is running."""
        begun = self._begun
        return 0.0 if begun is None else time.monotonic() - begun

    def close(self, seconds: float | None = None) -> None:
        """Refuse new requests, answer the queued ones, and wait at most `seconds` for the thread to end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        """Answer requests until the worker is closed and its queue is empty."""
        raise NotImplementedError
