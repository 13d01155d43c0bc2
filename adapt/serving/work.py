"""The work in progress in the threads of a server, for health checks and shutdown."""

from __future__ import annotations

import time
from dataclasses import dataclass

from adapt.serving.admission import Admission
from adapt.serving.conversing import ChatCompletions
from adapt.serving.predicting import Predictions


@dataclass(frozen=True)
class Work:
    """The work of all threads of a server: decoding images, passes of classifiers, and answers in words."""

    admission: Admission
    predictions: Predictions
    conversations: ChatCompletions

    @property
    def waiting(self) -> int:
        """The number of requests that wait for an image-decoding thread or for a model."""
        return len(self.admission.readers) + len(self.predictions.batcher) + len(self.conversations.talker)

    @property
    def stuck(self) -> bool:
        """Whether decoding an image, a pass of a model or a token exceeds the time limit of a request."""
        each = self.admission.readers, self.predictions.batcher, self.conversations.talker
        return max(thread.longest() for thread in each) > self.admission.limits.seconds

    def close(self, seconds: float) -> None:
        """Stop decoding images, and answer the requests that already wait for a model, for at most `seconds`."""
        self.admission.readers.close()
        ends = time.monotonic() + seconds
        self.predictions.batcher.close(seconds)
        self.conversations.talker.close(max(0.0, ends - time.monotonic()))
