"""The work in progress in the threads of a server, for health checks and shutdown."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from adapt.serving.admission import Admission
from adapt.serving.conversing import ChatCompletions
from adapt.serving.predicting import Predictions
from adapt.serving.worker import Worker


@dataclass(frozen=True)
class Work:
    """The work of all threads of a server: decoding images, passes of classifiers, and answers in words."""

    admission: Admission
    predictions: Predictions
    conversations: ChatCompletions

    @property
    def waiting(self) -> int:
        """The number of requests that wait for an image-decoding thread or for a model."""
        return len(self.admission.readers) + sum(map(len, self._models))

    @property
    def stuck(self) -> bool:
        """Whether decoding an image, a pass of a model or a token exceeds the time limit of a request."""
        longest = max(thread.longest() for thread in self._models)
        return max(longest, self.admission.readers.longest()) > self.admission.limits.seconds

    @property
    def _models(self) -> tuple[Worker[Any], ...]:
        """The threads that run models."""
        return self.predictions.batcher, self.predictions.native_batcher, self.conversations.talker

    def close(self, seconds: float) -> None:
        """Stop decoding images, and answer the requests that already wait for a model, for at most `seconds`."""
        self.admission.readers.close()
        ends = time.monotonic() + seconds
        for thread in self._models:
            thread.close(max(0.0, ends - time.monotonic()))
