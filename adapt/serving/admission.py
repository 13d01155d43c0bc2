"""Admission of requests: limits, and the decoding of their images in threads of their own.

At a limit on what all requests hold together, such as bytes, large requests end for smaller ones.

Images are decoded to model inputs in threads beside the model's, so that small requests go first. A request is read by
one thread at a time. Before each image, cancelled requests are dropped, and the request with the fewest pixels left to
read goes next. So another request's large images delay a request by at most one image, and one of the threads takes no
large images at all.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import TypeVar, cast

from fastapi import Request

from adapt.common.devices import give_back
from adapt.common.errors import AdaptError
from adapt.data.decoding.decoded import processors
from adapt.data.decoding.pictures import opened
from adapt.serving.web import announced
from adapt.serving.worker import Worker, without_team

PATIENCE = 1.0  # seconds that a request waits for room, so that who is refused does not come again at once
_TURN = 0.05  # seconds


class Crowded(AdaptError):
    """The error for a request that the busy server cannot take at present; the client may send the request again."""


async def comes(free: Callable[[], bool], patience: float) -> bool:
    """Wait until `free` returns true, for at most `patience` seconds, and return whether it did."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + patience
    while not free():
        if loop.time() >= ends:
            return False
        await asyncio.sleep(_TURN)
    return True


class Room:
    """A limit of `most` units, such as bytes, on all requests of one event loop together.

    A request waits `patience` seconds for room.
    """

    def __init__(self, most: int, of: str, patience: float = PATIENCE) -> None:
        self._most, self._of, self._patience = most, of, patience
        self._held: dict[asyncio.Timeout, int] = {}

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Reserve `size` units for the `with` block, if necessary after aborting blocks with larger reservations.

        Raises Crowded if the limit is reached, and no block has a larger reservation or ends soon; and in each block
        that is aborted.
        """
        if not await comes(lambda: self._made_for(size), self._patience):
            raise self._crowded(size)
        try:
            async with asyncio.timeout(None) as given:
                self._held[given] = size
                try:
                    yield
                finally:
                    self._held.pop(given, None)
        except TimeoutError:
            if given.expired():
                raise self._crowded(size) from None
            raise

    def _made_for(self, size: int) -> bool:
        """Return whether there is room, if necessary after aborting blocks with larger reservations."""
        while sum(self._held.values()) + size > self._most:
            largest = max(self._held, key=self._held.__getitem__, default=None)
            if largest is None or self._held[largest] <= size:
                return False
            del self._held[largest]
            largest.reschedule(0)  # in the past: it times out now
        return True

    def _crowded(self, size: int) -> Crowded:
        return Crowded(
            f"the request has {size:,} {self._of}, and with those being answered that is more than {self._most:,}: "
            "try again in a second, or send fewer or smaller images"
        )


Seen = TypeVar("Seen")
File = tuple[str, bytes]  # its name and content


@dataclass(frozen=True)
class Limits:
    """The limits of a server on a single request, and on all current requests together."""

    body_bytes: int = 20 * 2**20
    images: int = 32
    """Images in a request, and in a pass."""
    pixels: int = 64_000_000
    """Pixels in all images of a request together, by their headers."""
    tokens: int = 4096
    """Tokens of a conversation, its answer included."""
    in_all: int = 8
    """The bytes and pixels of all requests in flight, as a multiple of the limits of one."""
    requests: int = 64
    """Requests that are answered at one time, of classifications, embeddings and chats each."""
    seconds: float = 30.0
    """Seconds until a request fails."""


class Admission:
    """The limits of a server, held by all requests together, and the threads that decode their images."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.readers = ImageReaders(small=limits.pixels // 4)
        self._patience = min(PATIENCE, limits.seconds / 2)
        self._bytes = Room(limits.in_all * limits.body_bytes, "bytes", self._patience)
        self._pixels = Room(limits.in_all * limits.pixels, "pixels", self._patience)
        self._answering = Counter[str]()

    def body(self, request: Request) -> AbstractAsyncContextManager[None]:
        """Return a context that holds the bytes of a request's body. It raises Crowded if there are too many."""
        return self._bytes.hold(min(announced(request.scope, self.limits.body_bytes), self.limits.body_bytes))

    @asynccontextmanager
    async def images(
        self,
        kind: str,
        files: Sequence[File],
        look: Callable[[bytes, str], Seen],
        more: Callable[[int, int], int] = lambda width, height: 0,
        at_a_time: int | None = None,
    ) -> AsyncIterator[list[Seen]]:
        """Count a request as being answered, and yield its images, which `look` makes of each file's content and name.

        Their pixels are held meanwhile, and as many `more` as it returns for an image's width and height: those of maps
        in the answer, and of parts that are computed by themselves. Cancellation stops the decoding. Raises Crowded if
        `at_a_time` requests of its `kind`, by default those of the limits, are being answered, and TooManyPixels.
        """
        most = at_a_time or self.limits.requests
        if not await comes(lambda: self._answering[kind] < most, self._patience):
            raise Crowded(f"{kind} are answered {most} at a time: try again in a second")
        self._answering[kind] += 1
        try:
            sizes = await self._read([len(content) for _, content in files], files, size_of)
            pixels, added = [width * height for width, height in sizes], sum(more(*size) for size in sizes)
            if (total := sum(pixels) + added) > self.limits.pixels:
                of_them = f", {added:,} of them in maps, windows or covered copies" if added else ""
                raise TooManyPixels(
                    f"the images have {total:,} pixels{of_them}, and a request may have at most "
                    f"{self.limits.pixels:,}: send fewer or smaller ones"
                )
            async with self._pixels.hold(total):
                yield await self._read(pixels, files, look)
        finally:
            self._answering[kind] -= 1

    async def aside(self, compute: Callable[[], Seen], size: int = 0) -> Seen:
        """Return the result of `compute`, run by a thread that decodes images, as one of `size` pixels."""
        [result] = await asyncio.wrap_future(self.readers.read([None], [size], lambda _: compute()))
        return result

    async def _read(self, sizes: list[int], files: Sequence[File], look: Callable[[bytes, str], Seen]) -> list[Seen]:
        if not files:
            return []
        return await asyncio.wrap_future(self.readers.read(files, sizes, lambda file: look(file[1], file[0])))


Part = TypeVar("Part")

_SCANS = 32  # maximum in a JPEG; usual are up to a dozen, and each goes over the whole picture
_LARGE = 2**22  # pixels from which the memory of an image is given back to the system


class TooManyPixels(AdaptError):
    """An error for a request whose images together have too many pixels."""


@dataclass(eq=False)
class _Job:
    """A request being read, with the size and decoding function of each remaining image, and the results so far."""

    left: deque[tuple[int, Callable[[], object]]]
    done: Future[list[object]] = field(default_factory=Future)
    results: list[object] = field(default_factory=list)


class ImageReaders(Worker[_Job]):
    """Two or more threads that decode images, one of which accepts only images up to the size `small`.

    Once closed, each thread ends after its current image.
    """

    def __init__(self, small: int) -> None:
        self._small = small
        super().__init__("adapt-reader", max(2, processors()))

    def read(self, parts: Sequence[Part], sizes: Sequence[int], look: Callable[[Part], Seen]) -> Future[list[Seen]]:
        """Queue `parts`, the images of a request, and return a future for the list of `look(part)` for all images.

        The request with the smallest sum of remaining `sizes` goes first. Cancelling the future stops the decoding.
        """
        job = self.ask(_Job(deque(zip(sizes, [partial(look, part) for part in parts], strict=True))))
        return cast("Future[list[Seen]]", job.done)

    def _run(self) -> None:
        without_team()
        super()._run()

    def _answer(self, taken: _Job) -> None:
        size, read = taken.left.popleft()
        self._begin()
        try:
            taken.results.append(read())
        except Exception as error:  # noqa: BLE001  # an error in an image goes to its sender
            if taken.done.set_running_or_notify_cancel():
                taken.done.set_exception(error)
            return
        finally:
            del read, self._begun[threading.get_ident()]
            if size >= _LARGE:
                give_back(0)
        if taken.left:
            with self._changed:
                self._queue.append(taken)
                self._changed.notify_all()
        elif taken.done.set_running_or_notify_cancel():
            taken.done.set_result(taken.results)

    def _next(self) -> _Job | None:
        """Wait for a request with an image that this thread accepts, and return the request; None once closed."""
        most = self._small if threading.current_thread() is self._threads[0] else float("inf")
        with self._changed:
            while not self._closed:
                self._queue = deque(job for job in self._queue if not job.done.cancelled())
                fitting = [job for job in self._queue if job.left[0][0] <= most]
                if fitting:
                    job = min(fitting, key=lambda job: sum(size for size, _ in job.left))
                    self._queue.remove(job)
                    return job
                self._wait()
        return None


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """Return the width and height in an image's header. Raises AdaptError if `open_image` would refuse the image.

    A JPEG with very many scans, which is slow to decode, is refused as well.
    """
    with opened(BytesIO(content), name) as picture:
        if picture.format in ("JPEG", "MPO") and _scans(content) > _SCANS:
            raise ValueError(f"the image is a JPEG with more than {_SCANS} scans: save it with fewer scans")
        return picture.size


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
