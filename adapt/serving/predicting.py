"""The steps from a request's body to its predictions."""

from __future__ import annotations

import asyncio

from fastapi import HTTPException, Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from torch import Tensor

from adapt.serving.adapters import ServedAdapters
from adapt.serving.admission import Admission
from adapt.serving.batching import Asked, Batcher
from adapt.serving.messages import Sent, answers, sent
from adapt.serving.middleware import Counted


class Predictions:
    """The handler of a server's `/predict` requests, which answers a limited number of requests at a time."""

    def __init__(self, adapters: ServedAdapters, admission: Admission, metrics: Counted) -> None:
        self._adapters, self._admission, self._metrics = adapters, admission, metrics
        self.batcher = Batcher(admission.limits.images, metrics.passes.observe)

    async def answer(self, request: Request) -> Response:
        """Return the response to a request.

        Raises AdaptError or HTTPException for an invalid request, Crowded if the server is overloaded, HTTPException
        with status 504 after the time limit, and ClientDisconnect if the client has disconnected.
        """
        limits = self._admission.limits
        try:
            async with asyncio.timeout(limits.seconds) as given, self._admission.body(request):
                asked = await sent(request, limits.images)
                leaving = asyncio.create_task(wait_for_disconnect(request, given))
                try:
                    return JSONResponse(await self._predicted(asked))
                finally:
                    leaving.cancel()
        except TimeoutError:
            raise await unanswered(request, limits.seconds) from None

    async def _predicted(self, asked: Sent) -> dict[str, object]:
        """Return the JSON-serialisable predictions for a request."""
        now = self._adapters.now
        names = asked.asking.adapters or [now.default]
        together = now.together(names)

        def look(content: bytes, name: str) -> tuple[Tensor, ...]:
            return together.pixels(content, name=name)

        async with self._admission.images(asked.files, look) as pixels:
            rows = await asyncio.wrap_future(self.batcher.ask(Asked(together, asked.wanted, pixels)))
        for name in names:
            self._metrics.images.labels(name).inc(len(rows))
        return answers(asked.files, names, rows)


async def unanswered(request: Request, seconds: float) -> Exception:
    """Return the error for a request that was not answered in time, or whose client has disconnected."""
    if await request.is_disconnected():
        return ClientDisconnect()
    return HTTPException(504, f"there was no answer within {seconds:g} seconds")


async def wait_for_disconnect(request: Request, given: asyncio.Timeout) -> None:
    """Wait until the client disconnects, and then make the request time out immediately."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    given.reschedule(0)
