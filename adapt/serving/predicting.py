"""The steps from a request's body to its predictions, with limits so that requests do not delay each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from adapt.serving.adapters import ServedAdapters
from adapt.serving.batching import Asked, Batcher
from adapt.serving.messages import Sent, answers, sent
from adapt.serving.middleware import Counted, announced
from adapt.serving.reading import ImageReaders, TooManyPixels, pixels_of
from adapt.serving.room import Crowded, Room

Seen = TypeVar("Seen")

_AGAIN = {"Retry-After": "1"}


@dataclass(frozen=True)
class Limits:
    """The limits of a server on a single request, and on all current requests together."""

    body_bytes: int = 20 * 2**20
    images: int = 32
    """Images in a request, and in a pass."""
    pixels: int = 64_000_000
    """Pixels in all images of a request together, by their headers."""
    in_all: int = 8
    """The bytes and pixels of all requests in flight, as a multiple of the limits of one."""
    requests: int = 64
    """Requests that are answered at one time."""
    seconds: float = 30.0
    """Seconds until a request fails."""


class Predictions:
    """The handler of a server's `/predict` requests, which answers a limited number of requests at a time."""

    def __init__(self, adapters: ServedAdapters, limits: Limits, metrics: Counted) -> None:
        self.adapters, self.limits, self.metrics = adapters, limits, metrics
        self.batcher = Batcher(limits.images, metrics.passes.observe)
        self.readers = ImageReaders(small=limits.pixels // 4)
        self._bytes = Room(limits.in_all * limits.body_bytes, "bytes")
        self._pixels = Room(limits.in_all * limits.pixels, "pixels")
        self._answering = 0
        metrics.waiting.set_function(lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for an image-decoding thread or for a forward pass of the model."""
        return len(self.readers) + len(self.batcher)

    @property
    def stuck(self) -> bool:
        """Whether decoding an image or a forward pass of the model exceeds the time limit of a request."""
        return max(self.readers.longest(), self.batcher.longest()) > self.limits.seconds

    def close(self, seconds: float) -> None:
        """Stop decoding images, and answer the requests that already wait for the model, for at most `seconds`."""
        self.readers.close()
        self.batcher.close(seconds)

    async def answer(self, request: Request) -> Response:
        """Return the response to a request, with status 503 if the server is overloaded, or 504 after the time limit.

        Raises AdaptError or HTTPException for an invalid request, and ClientDisconnect if the client has disconnected.
        """
        seconds = self.limits.seconds
        try:
            async with asyncio.timeout(seconds) as given, self._bytes.hold(self._size(request)):
                asked = await sent(request, self.limits.images)
                leaving = asyncio.create_task(_left(request, given))
                try:
                    return JSONResponse(await self._predicted(asked))
                finally:
                    leaving.cancel()
        except Crowded as error:
            return JSONResponse({"detail": str(error)}, 503, _AGAIN)
        except TimeoutError:
            if await request.is_disconnected():
                raise ClientDisconnect from None
            return JSONResponse({"detail": f"there was no answer within {seconds:g} seconds"}, 504)

    def _size(self, request: Request) -> int:
        """Return the size of a request's body in bytes according to its headers, but at most the size limit."""
        return min(announced(request.scope, self.limits.body_bytes), self.limits.body_bytes)

    async def _predicted(self, asked: Sent) -> dict[str, object]:
        """Return the JSON-serialisable predictions for a request; cancellation stops the decoding of further images."""
        now = self.adapters.now
        names = asked.asking.adapters or [now.default]
        together = now.together(names)
        async with AsyncExitStack() as held:
            self._begin(held)
            sizes = await self._read([len(content) for _, content in asked.files], asked, pixels_of)
            if sum(sizes) > self.limits.pixels:
                raise TooManyPixels(
                    f"the images have {sum(sizes):,} pixels, and a request may have at most {self.limits.pixels:,}: "
                    "send fewer or smaller ones"
                )
            await held.enter_async_context(self._pixels.hold(sum(sizes)))
            pixels = await self._read(sizes, asked, lambda content, name: together.pixels(content, name=name))
            rows = await asyncio.wrap_future(self.batcher.ask(Asked(together, asked.wanted, pixels)))
        for name in names:
            self.metrics.images.labels(name).inc(len(rows))
        return answers(asked.files, names, rows)

    def _begin(self, held: AsyncExitStack) -> None:
        """Count a request as active until `held` is closed. Raises Crowded if too many requests are already active."""
        if self._answering >= self.limits.requests:
            raise Crowded(f"{self.limits.requests} requests are being answered already: try again in a second")
        self._answering += 1
        held.callback(self._end)

    def _end(self) -> None:
        self._answering -= 1

    async def _read(self, sizes: list[int], asked: Sent, look: Callable[[bytes, str], Seen]) -> list[Seen]:
        return await asyncio.wrap_future(self.readers.ask(asked.files, sizes, lambda file: look(file[1], file[0])))


async def _left(request: Request, given: asyncio.Timeout) -> None:
    """Wait until the client disconnects, and then make the request time out immediately."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    given.reschedule(0)
