"""Threads without an OpenMP team: only the threads that run models have one, which then stays awake in a pass.

OpenMP (GNU's, which torch brings) gives a team of threads to each thread that computes. Between two operations of a
pass, a team spins for GOMP_SPINCOUNT turns. With more threads than processors, a team spins for only a hundred turns,
and then every operation has to wake it, which made a pass of one small image a fifth slower.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

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
