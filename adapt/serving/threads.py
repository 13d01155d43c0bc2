"""Which threads compute: the batcher's alone has others to help it, so that these stay awake through a pass.

OpenMP (GNU's, which torch brings) gives a team of threads to each thread that computes. Between two operations of a
pass they spin, for GOMP_SPINCOUNT turns; where there are more of them than processors only for a hundred, and what
sleeps is woken by each operation anew. A pass of one small image took a fifth longer so.
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
    """From now on, what this thread computes it computes by itself."""
    torch.get_num_threads()  # torch sets a thread's number when it is first asked: before this, and not over it
    threadpool_limits(1, user_api="openmp")  # torch's own call would set it for threads that start later, too


def apart(compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `compute` gives, or raises, in a thread that ends with it, and its team with it."""
    given: Future[T] = Future()

    def told() -> None:
        try:
            given.set_result(compute(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
            given.set_exception(error)

    thread = threading.Thread(target=told, name="adapt-apart", daemon=True)  # Ctrl-C does not wait for it
    thread.start()
    result = given.result()
    thread.join()
    return result
