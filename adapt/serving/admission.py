"""Admission of requests: limits, and the decoding of their images in threads of their own.

At a limit on what all requests hold together, such as bytes, large requests end for smaller ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from adapt.common.errors import AdaptError
from adapt.serving.middleware import announced
from adapt.serving.reading import ImageReaders, TooManyPixels, pixels_of

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
    """Requests that are answered at one time, of classifications and of chats each."""
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
        self, kind: str, files: Sequence[File], look: Callable[[bytes, str], Seen]
    ) -> AsyncIterator[list[Seen]]:
        """Count a request as being answered, and yield its images, which `look` makes of each file's content and name.

        Their pixels are held meanwhile. Cancellation stops the decoding. Raises Crowded if too many requests of its
        `kind` are being answered, and TooManyPixels.
        """
        if not await comes(lambda: self._answering[kind] < self.limits.requests, self._patience):
            raise Crowded(f"{self.limits.requests} {kind} are being answered already: try again in a second")
        self._answering[kind] += 1
        try:
            sizes = await self._read([len(content) for _, content in files], files, pixels_of)
            if sum(sizes) > self.limits.pixels:
                raise TooManyPixels(
                    f"the images have {sum(sizes):,} pixels, and a request may have at most {self.limits.pixels:,}: "
                    "send fewer or smaller ones"
                )
            async with self._pixels.hold(sum(sizes)):
                yield await self._read(sizes, files, look)
        finally:
            self._answering[kind] -= 1

    async def aside(self, compute: Callable[[], Seen]) -> Seen:
        """Return the result of `compute`, run by one of the threads that decode images."""
        [result] = await asyncio.wrap_future(self.readers.ask([None], [0], lambda _: compute()))
        return result

    async def _read(self, sizes: list[int], files: Sequence[File], look: Callable[[bytes, str], Seen]) -> list[Seen]:
        if not files:
            return []
        return await asyncio.wrap_future(self.readers.ask(files, sizes, lambda file: look(file[1], file[0])))
