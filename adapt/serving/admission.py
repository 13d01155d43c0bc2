"""Admission of requests: limits, and the decoding of their images in threads of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from adapt.serving.middleware import announced
from adapt.serving.reading import ImageReaders, TooManyPixels, pixels_of
from adapt.serving.room import PATIENCE, Crowded, Room, comes

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
