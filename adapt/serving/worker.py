"""Threads that answer the requests in a queue, by a model or by decoding, and teams of OpenMP threads.

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
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from threadpoolctl import threadpool_limits

from adapt.common.devices import give_back

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

_IDLE = 1.0  # seconds


class Worker(Generic[Waiting]):
    """The base class of such threads, called `name`, whose `_next` takes requests from `_queue` under `_changed`."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._queue: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._begun: dict[int, float] = {}  # by thread, when its present pass of the model, or image, began
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Return the number of requests that wait in the queue."""
        return len(self._queue)

    def ask(self, waiting: Waiting) -> Waiting:
        """Queue a request, and return it. Raises RuntimeError if the worker is closed."""
        with self._changed:
            if self._closed:
                raise RuntimeError(f"the thread {self._threads[0].name} is closed")
            self._queue.append(waiting)
            self._changed.notify_all()
        return waiting

    def longest(self) -> float:
        """Return the longest time in seconds since a thread began its present pass or image, or 0 if all are idle."""
        begun = list(self._begun.values())
        return time.monotonic() - min(begun) if begun else 0.0

    def close(self, seconds: float | None = None) -> None:
        """Refuse new requests, and wait at most `seconds` for each thread to end, as the class says."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(seconds)

    def _wait(self) -> None:
        """Wait for another request or the end; after a second without one, give freed memory back to the system."""
        if not self._changed.wait(_IDLE):
            give_back(0)
            self._changed.wait()

    def _begin(self) -> None:
        self._begun[threading.get_ident()] = time.monotonic()

    def _run(self) -> None:
        while taken := self._next():
            self._answer(taken)
            del taken  # its images would stay until the next request

    def _next(self) -> Any:
        """Wait for requests and return what is answered together, or a false value once the worker has to end.

        It ends once it is closed and, unless the class says otherwise, its queue is empty.
        """
        raise NotImplementedError

    def _answer(self, taken: Any) -> None:
        """Answer what `_next` returned."""
        raise NotImplementedError
