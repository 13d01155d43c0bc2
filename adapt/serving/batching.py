"""Micro-batches: images that wait while others are computed are computed together next.

Nothing waits for company: an image that finds the model idle is computed at once, so that one client is answered as
fast as the model is, and under load a pass takes as many images as there are. Requests of fewer images go before those
of more.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from adapt.models.many import SideBySide
from adapt.models.prediction import Prediction, Wanted

Answered = list[tuple[Prediction, ...]]  # by image, of each adapter


@dataclass(eq=False)
class Asked:
    """Images of one request, as the adapters read them, and where their answers go."""

    together: SideBySide
    wanted: Wanted
    pixels: Sequence[tuple[Tensor, ...]]
    answer: Future[Answered] = field(default_factory=Future)

    def goes_with(self, other: Asked) -> bool:
        """Whether one pass answers both. Adapters that remember are asked by each request anew: never together."""
        return self.together is other.together and self.wanted == other.wanted


class Batcher:
    """One thread that answers, by at most `most` images in a pass; `passed` is told of their number."""

    def __init__(self, most: int, passed: Callable[[int], None] = lambda images: None) -> None:
        self._most, self._passed = most, passed
        self._queue: deque[Asked] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._begun: float | None = None  # when, of the pass that is under way
        self._thread = threading.Thread(target=self._run, name="adapt-batcher", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._queue)

    def ask(self, asked: Asked) -> Future[Answered]:
        """Queues a request, whose `answer` it gives back. Raises RuntimeError once it is closed."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._queue.append(asked)
            self._changed.notify()
        return asked.answer

    def longest(self) -> float:
        """For how many seconds the pass that is under way has lasted."""
        begun = self._begun
        return 0.0 if begun is None else time.monotonic() - begun

    def close(self, seconds: float | None = None) -> None:
        """Answers what waits, and ends; it is not waited for beyond `seconds`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while batch := self._next():
            pixels = [each for asked in batch for each in asked.pixels]
            self._begun = time.monotonic()
            try:
                self._passed(len(pixels))
                found = list(batch[0].together.predictions(pixels, batch[0].wanted))
            except Exception as error:  # noqa: BLE001  # of a model: it is those who asked that are told
                for asked in batch:
                    asked.answer.set_exception(error)
                continue
            finally:
                self._begun = None
            start = 0
            for asked in batch:
                asked.answer.set_result(found[start : start + len(asked.pixels)])
                start += len(asked.pixels)

    def _next(self) -> list[Asked]:
        """Requests for one pass, those of the fewest images first; none once it is closed and nobody waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return []
                batch, size = list[Asked](), 0
                for asked in sorted(self._queue, key=lambda asked: len(asked.pixels)):
                    if not batch or (batch[0].goes_with(asked) and size + len(asked.pixels) <= self._most):
                        self._queue.remove(asked)
                        batch.append(asked)
                        size += len(asked.pixels)
            batch = [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]
            if batch:
                return batch
