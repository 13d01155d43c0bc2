"""From the bytes of images to what the models read: beside the model, an image at a time, small requests first.

A request is read by one thread at a time. Before each image it is asked whether anybody waits for it still, and which
request goes on: the one of which least is left. So a request of large images holds another up for one of them at most,
and one of the threads takes no large ones at all.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from adapt.data.decoding.decoded import processors
from adapt.data.decoding.pictures import opened
from adapt.errors import AdaptError
from adapt.serving.threads import without_team

_SCANS = 32  # of a JPEG; usual are up to a dozen, and each goes over all of the picture
_LARGE = 2**22  # pixels, from which on what was taken for an image is given back to the system
_trim: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)  # of glibc alone


class TooManyPixels(AdaptError):
    """More than are decoded of one request."""


@dataclass(eq=False)
class _Job:
    """What is left of a request: sizes and parts, in turn; and what came of those before."""

    left: deque[tuple[int, Any]]
    look: Callable[[Any], Any]
    done: Future[list[Any]] = field(default_factory=Future)
    found: list[Any] = field(default_factory=list)


class ImageReaders:
    """Threads that look at images. One of them takes none that is larger than `small`; there are two or more."""

    def __init__(self, small: int) -> None:
        self._jobs: list[_Job] = []
        self._begun: dict[int, float] = {}  # when, by the thread that is at an image
        self._changed = threading.Condition()
        self._closed = False
        for number in range(max(2, processors())):
            most = float("inf") if number else small
            threading.Thread(target=self._run, args=(most,), name="adapt-reader", daemon=True).start()

    def __len__(self) -> int:
        """How many requests wait for a thread."""
        return len(self._jobs)

    def ask(self, parts: Sequence[Any], sizes: Sequence[int], look: Callable[[Any], Any]) -> Future[list[Any]]:
        """What `look` gives of each part, or raises; what it has not begun with is left out once that is cancelled."""
        job = _Job(deque(zip(sizes, parts, strict=True)), look)
        self._put(job)
        return job.done

    def longest(self) -> float:
        """For how many seconds one of the threads has been at the same image."""
        begun = list(self._begun.values())
        return time.monotonic() - min(begun) if begun else 0.0

    def close(self) -> None:
        """Ends the threads, each with the image at which it is."""
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
            size, part = job.left.popleft()
            self._begun[threading.get_ident()] = time.monotonic()
            try:
                job.found.append(job.look(part))
            except Exception as error:  # noqa: BLE001  # of an image: it is who sent it that is told
                if job.done.set_running_or_notify_cancel():
                    job.done.set_exception(error)
                continue
            finally:
                del part, self._begun[threading.get_ident()]
                if size >= _LARGE:
                    _trim(0)
            if job.left:
                self._put(job)
            elif job.done.set_running_or_notify_cancel():
                job.done.set_result(job.found)

    def _next(self, most: float) -> _Job | None:
        """The job that goes on, taken out of the line; none once it is closed."""
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
    """How many pixels an image has, by its header. Raises AdaptError as `open_image`, and for a JPEG of many scans."""
    with opened(BytesIO(content), name) as picture:
        if picture.format in ("JPEG", "MPO") and _scans(content) > _SCANS:
            raise ValueError(f"it is a JPEG of more than {_SCANS} scans, each of which goes over the whole picture")
        return picture.width * picture.height


def _scans(content: bytes) -> int:
    """How many scans a JPEG has, counted to one beyond the most; those of a thumbnail inside it are left out."""
    scans, at = 0, 2
    while 0 <= (at := content.find(b"\xff", at)) < len(content) - 3 and scans <= _SCANS:
        kind = content[at + 1]
        if kind == 0xD9:  # the end of the picture: others may follow
            break
        scans += kind == 0xDA
        bare = kind in (0x00, 0x01, 0xFF) or 0xD0 <= kind <= 0xD8
        at += (2 - (kind == 0xFF)) if bare else 2 + int.from_bytes(content[at + 2 : at + 4])
    return scans
