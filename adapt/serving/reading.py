"""Decoding of images to model inputs, in threads beside the model's, so that small requests go first.

A request is read by one thread at a time. Before each image, cancelled requests are dropped, and the request with
the fewest pixels left to read goes next. So another request's large images delay a request by at most one image, and
one of the threads takes no large images at all.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import TypeVar, cast

from adapt.common.errors import AdaptError
from adapt.data.decoding.decoded import processors
from adapt.data.decoding.pictures import opened
from adapt.serving.worker import without_team

Part = TypeVar("Part")
Seen = TypeVar("Seen")

_SCANS = 32  # maximum in a JPEG; usual are up to a dozen, and each goes over the whole picture
_LARGE = 2**22  # pixels from which the memory of an image is given back to the system
_trim: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)  # only in glibc


class TooManyPixels(AdaptError):
    """An error for a request whose images together have too many pixels."""


@dataclass(eq=False)
class _Job:
    """A request being read, with the size and decoding function of each remaining image, and the results so far."""

    left: deque[tuple[int, Callable[[], object]]]
    done: Future[list[object]] = field(default_factory=Future)
    results: list[object] = field(default_factory=list)


class ImageReaders:
    """A pool of two or more image-decoding threads, one of which accepts only images up to the size `small`."""

    def __init__(self, small: int) -> None:
        self._jobs: list[_Job] = []
        self._begun: dict[int, float] = {}  # when each thread began its present image
        self._changed = threading.Condition()
        self._closed = False
        for number in range(max(2, processors())):
            most = float("inf") if number else small
            threading.Thread(target=self._run, args=(most,), name="adapt-reader", daemon=True).start()

    def __len__(self) -> int:
        """Return the number of requests that wait for a decoding thread."""
        return len(self._jobs)

    def ask(self, parts: Sequence[Part], sizes: Sequence[int], look: Callable[[Part], Seen]) -> Future[list[Seen]]:
        """Queue `parts`, the images of a request, and return a future for the list of `look(part)` for all images.

        The request with the smallest sum of remaining `sizes` goes first. Cancelling the future stops the decoding.
        """
        job = _Job(deque(zip(sizes, [partial(look, part) for part in parts], strict=True)))
        self._put(job)
        return cast("Future[list[Seen]]", job.done)

    def longest(self) -> float:
        """Return the longest time in seconds that a thread has spent on its current image, or 0 if all are idle."""
        begun = list(self._begun.values())
        return time.monotonic() - min(begun) if begun else 0.0

    def close(self) -> None:
        """End each thread after its current image."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _put(self, job: _Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def _run(self, most: float) -> None:
        without_team()
        while job := self._next(most):
            size, read = job.left.popleft()
            self._begun[threading.get_ident()] = time.monotonic()
            try:
                job.results.append(read())
            except Exception as error:  # noqa: BLE001  # an error in an image goes to its sender
                if job.done.set_running_or_notify_cancel():
                    job.done.set_exception(error)
                continue
            finally:
                del read, self._begun[threading.get_ident()]
                if size >= _LARGE:
                    _trim(0)
            if job.left:
                self._put(job)
            elif job.done.set_running_or_notify_cancel():
                job.done.set_result(job.results)

    def _next(self, most: float) -> _Job | None:
        """Wait for a request whose next image is not larger than `most`, and return the request; None once closed."""
        with self._changed:
            while not self._closed:
                self._jobs = [job for job in self._jobs if not job.done.cancelled()]
                fitting = [job for job in self._jobs if job.left[0][0] <= most]
                if fitting:
                    job = min(fitting, key=lambda job: sum(size for size, _ in job.left))
                    self._jobs.remove(job)
                    return job
                self._changed.wait()
        return None


def pixels_of(content: bytes, name: str) -> int:
    """Return the number of pixels given in an image's header. Raises AdaptError if `open_image` would refuse the image.

    A JPEG with very many scans, which is slow to decode, is refused as well.
    """
    with opened(BytesIO(content), name) as picture:
        if picture.format in ("JPEG", "MPO") and _scans(content) > _SCANS:
            raise ValueError(f"the image is a JPEG with more than {_SCANS} scans: save it with fewer scans")
        return picture.width * picture.height


def _scans(content: bytes) -> int:
    """Return the number of scans in a JPEG without its embedded thumbnail, but stop counting above the limit."""
    scans, at = 0, 2
    while 0 <= (at := content.find(b"\xff", at)) < len(content) - 3 and scans <= _SCANS:
        kind = content[at + 1]
        if kind == 0xD9:  # the end of the picture: others may follow
            break
        scans += kind == 0xDA
        bare = kind in (0x00, 0x01, 0xFF) or 0xD0 <= kind <= 0xD8
        at += (2 - (kind == 0xFF)) if bare else 2 + int.from_bytes(content[at + 2 : at + 4])
    return scans
