"""A thread that runs a model for the requests in its queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

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
