"""A request's way from its body to its answers, and what keeps many of them from holding up one another."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from adapt.serving.adapters import ServedAdapters
from adapt.serving.batching import Asked, Batcher
from adapt.serving.messages import Sent, answers, sent
from adapt.serving.middleware import Counted, announced
from adapt.serving.reading import ImageReaders, TooManyPixels, pixels_of
from adapt.serving.room import Crowded, Room

_AGAIN = {"Retry-After": "1"}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and all of them together."""

    body_bytes: int = 20 * 2**20
    images: int = 32
    """Of a request, and of a pass."""
    pixels: int = 64_000_000
    """Of a request, all its images together, by their headers."""
    in_all: int = 8
    """As many times the bytes and pixels of one request may be in flight."""
    requests: int = 64
    """That are answered at one time."""
    seconds: float = 30.0
    """Until there must be an answer."""


class Predictions:
    """Answers requests to predict, a few at a time."""

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
        """How many requests wait for a thread that reads images, or for a pass."""
        return len(self.readers) + len(self.batcher)

    @property
    def stuck(self) -> bool:
        """Whether one image, or one pass, has taken longer than a whole request may: nobody waits for it any longer."""
        return max(self.readers.longest(), self.batcher.longest()) > self.limits.seconds

    def close(self, seconds: float) -> None:
        """Reads no more; what waits for the model is answered, within so many seconds."""
        self.readers.close()
        self.batcher.close(seconds)

    async def answer(self, request: Request) -> Response:
        """The answer to a request, or why there is none: 503 while there is no room, 504 where it took too long.

        Raises AdaptError for what the request says wrongly, and ClientDisconnect where nobody waits for it any longer.
        """
        seconds = self.limits.seconds
        try:
            async with asyncio.timeout(seconds) as given, self._bytes.hold(self._size(request)):
                asked = await sent(request, self.limits.images)
                leaving = asyncio.create_task(_left(request, given))
                try:
                    return JSONResponse(await self._found(asked))
                finally:
                    leaving.cancel()
        except Crowded as error:
            return JSONResponse({"detail": str(error)}, 503, _AGAIN)
        except TimeoutError:
            if await request.is_disconnected():
                raise ClientDisconnect from None
            return JSONResponse({"detail": f"there was no answer within {seconds:g} seconds"}, 504)

    def _size(self, request: Request) -> int:
        """How many bytes a request will have; the most where it does not say, or says more, which is refused later."""
        return min(announced(request.scope, self.limits.body_bytes), self.limits.body_bytes)

    async def _found(self, asked: Sent) -> Any:
        """Frees what it waits for once it is cancelled: an image that is being read is the last one."""
        now = self.adapters.now
        names = asked.asking.adapters or [now.default]
        together = now.together(names)
        async with AsyncExitStack() as held:
            self._begin(held)
            sizes = await self._read([len(content) for _, content in asked.files], asked, pixels_of)
            if sum(sizes) > self.limits.pixels:
                raise TooManyPixels(
                    f"the images have {sum(sizes):,} pixels; at most {self.limits.pixels:,} are decoded of a request: "
                    "send fewer or smaller ones"
                )
            await held.enter_async_context(self._pixels.hold(sum(sizes)))
            pixels = await self._read(sizes, asked, lambda content, name: together.pixels(content, name=name))
            rows = await asyncio.wrap_future(self.batcher.ask(Asked(together, asked.wanted, pixels)))
        for name in names:
            self.metrics.images.labels(name).inc(len(rows))
        return answers(asked.files, names, rows)

    def _begin(self, held: AsyncExitStack) -> None:
        """One more is answered, for as long as `held`. Raises Crowded for one too many."""
        if self._answering >= self.limits.requests:
            raise Crowded(f"{self.limits.requests} requests are being answered already: come again in a second")
        self._answering += 1
        held.callback(self._end)

    def _end(self) -> None:
        self._answering -= 1

    async def _read(self, sizes: list[int], asked: Sent, look: Any) -> list[Any]:
        parts = [partial(look, content, name) for name, content in asked.files]
        return await asyncio.wrap_future(self.readers.ask(parts, sizes, lambda part: part()))


async def _left(request: Request, given: asyncio.Timeout) -> None:
    """Ends the time that is given once the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    given.reschedule(0)
