"""Micro-batches: images that arrive while the model is busy are computed together in its next pass.

No image waits for a batch to fill: if the model is idle, an image is computed at once. So a single client is answered
as fast as the model can, and under load a pass takes all waiting images, up to a limit. Requests with fewer images go
first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from adapt.models.many import Prepared, SideBySide
from adapt.models.prediction import Prediction, Query
from adapt.serving.worker import Worker

Answered = list[tuple[Prediction, ...]]  # for each image, the prediction of each adapter


@dataclass(eq=False)
class Asked:
    """A queued request with its adapters, settings and preprocessed images, and a future for the predictions."""

    together: SideBySide
    query: Query
    pixels: Sequence[Prepared]
    answer: Future[Answered] = field(default_factory=Future)

    def goes_with(self, other: Asked) -> bool:
        """Return whether a forward pass can answer this request and `other`, which needs equal adapters and settings.

        Adapters that learn from test images are created anew for each request, so such requests never share a pass.
        """
        return self.together is other.together and self.query == other.query


class Batcher(Worker[Asked]):
    """A thread that computes predictions in passes of at most `most` images, and calls `passed` with their sizes."""

    def __init__(self, most: int, passed: Callable[[int], None] = lambda images: None) -> None:
        self._most, self._passed = most, passed
        super().__init__("adapt-batcher")

    def ask(self, asked: Asked) -> Future[Answered]:
        """Queue a request and return the future for its predictions. Raises RuntimeError if the batcher is closed."""
        self._put(asked)
        return asked.answer

    def _run(self) -> None:
        while batch := self._next():
            pixels = [each for asked in batch for each in asked.pixels]
            answers: Answered = []
            try:
                for start in range(0, len(pixels), self._most):  # a request alone may have more
                    self._begun = time.monotonic()
                    part = pixels[start : start + self._most]
                    self._passed(len(part))
                    answers += batch[0].together.predictions(part, batch[0].query)
            except Exception as error:  # noqa: BLE001  # an error of the model goes to the clients
                for asked in batch:
                    asked.answer.set_exception(error)
                continue
            finally:
                self._begun = None
            start = 0
            for asked in batch:
                asked.answer.set_result(answers[start : start + len(asked.pixels)])
                start += len(asked.pixels)

    def _next(self) -> list[Asked]:
        """Wait for requests and return the next batch, or an empty list once the batcher is closed and idle."""
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
