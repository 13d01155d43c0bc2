"""The steps from a request's body to its predictions."""

from __future__ import annotations

import asyncio

from fastapi import HTTPException, Request, Response
from PIL.Image import Image
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from adapt.backbones.encoded_images import PreparedImage
from adapt.chats import Chat
from adapt.common.errors import AdaptError
from adapt.models.chatting import TOGETHER, ChatModel
from adapt.models.many import Prepared
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
        self.native_batcher = Batcher(TOGETHER, metrics.passes.observe)
        """The batcher of native vision-language models, whose passes would hold up those of other adapters."""

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

        def look(content: bytes, name: str) -> Prepared:
            pixels = together.pixels(content, name=name)
            for model in together.native:
                size = next(own.size for own in pixels if isinstance(own, Image | PreparedImage))
                check_tokens(model, size, name, most)
            return pixels

        most = self._admission.limits.tokens
        batcher = self.native_batcher if together.native else self.batcher
        async with self._admission.images("classifications", asked.files, look) as pixels:
            rows = await asyncio.wrap_future(batcher.ask(Asked(together, asked.query, pixels)))
        for name in names:
            self._metrics.images.labels(name).inc(len(rows))
        return answers(asked.files, names, rows)


def check_tokens(model: ChatModel, size: tuple[int, int], name: str, most: int) -> None:
    """Raise AdaptError if an image of `size`, with the usual question about it, takes more than `most` tokens."""
    allowed = min(most, model.backbone.longest)
    [tokens] = model.backbone.lengths([Chat.about(model.backbone.question)], [[size]], asks=True)
    if tokens > allowed:
        raise AdaptError(f"{name} takes {tokens:,} tokens, and may have {allowed:,}: send a smaller image")


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
