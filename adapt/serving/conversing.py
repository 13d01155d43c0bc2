"""The steps from a request with a conversation to its answer in words, at once or piece by piece."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import HTTPException, Request, Response
from starlette.responses import JSONResponse, StreamingResponse

from adapt.chats import Chat
from adapt.common.errors import AdaptError
from adapt.data.decoding.images import open_image
from adapt.models.native_vlm import ChatModel
from adapt.serving.adapters import ServedAdapters
from adapt.serving.admission import Admission
from adapt.serving.chat_messages import ChatRequest, Written
from adapt.serving.messages import checked, from_json_body, kind_of_body
from adapt.serving.middleware import Counted
from adapt.serving.predicting import check_tokens, unanswered, wait_for_disconnect
from adapt.serving.talking import Delta, Question, Talker
from adapt.serving.web import Mistaken

if TYPE_CHECKING:
    from PIL.Image import Image

    from adapt.backbones.encoded_images import PreparedImage

_COMMAS = 20_000  # in a body, so that reading it blocks nobody
_CHARACTERS = 16  # for each token that a conversation may have
FAILED = "the server failed to answer this request: its log has the error"
_LOG = logging.getLogger(__name__)


class ChatCompletions:
    """The handler of a server's `/v1/chat/completions` requests."""

    def __init__(self, adapters: ServedAdapters, admission: Admission, metrics: Counted) -> None:
        self._adapters, self._admission, self._metrics = adapters, admission, metrics
        self.talker = Talker()

    async def answer(self, request: Request) -> Response:
        """Return the response to a request; it raises the errors that `Predictions.answer` does."""
        pieces: asyncio.Queue[_Piece | Exception] = asyncio.Queue()
        work = asyncio.create_task(self._work(request, pieces))
        streams = False
        try:
            first = await _taken(pieces)
            streams = first.asked.stream
            if streams:
                stream = self._stream(first, pieces, work)
                return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
            return JSONResponse(Written(first.asked.model).whole([piece.delta async for piece in _all(first, pieces)]))
        except TimeoutError:
            raise await unanswered(request, self._admission.limits.seconds) from None
        finally:
            if not streams:
                work.cancel()

    async def _stream(
        self, first: _Piece, pieces: asyncio.Queue[_Piece | Exception], work: asyncio.Task[None]
    ) -> AsyncIterator[str]:
        """Yield the events of a response. An error after its start is an event, too."""
        written, last = Written(first.asked.model), first
        try:
            yield _event(written.first())
            async for piece in _all(first, pieces):
                for chunk in written.next(piece.delta):
                    yield _event(chunk)
                last = piece
            if first.asked.stream_options and first.asked.stream_options.include_usage:
                yield _event(written.used(last.delta))
            yield "data: [DONE]\n\n"
        except (AdaptError, TimeoutError) as error:
            late = f"there was no answer within {self._admission.limits.seconds:g} seconds"
            yield _event(Mistaken.of(late if isinstance(error, TimeoutError) else str(error), 500))
        except Exception:  # noqa: BLE001  # the response has begun, so that no handler can answer
            _LOG.exception("an answer ended")
            yield _event(Mistaken.of(FAILED, 500))
        finally:
            work.cancel()

    async def _work(self, request: Request, pieces: asyncio.Queue[_Piece | Exception]) -> None:
        """Put the pieces of the answer to a request, or an error, into `pieces`."""
        try:
            async with asyncio.timeout(self._admission.limits.seconds) as given, AsyncExitStack() as held:
                await held.enter_async_context(self._admission.body(request))
                kind_of_body(request, "the JSON", "application/json")
                asked = checked(ChatRequest, from_json_body(await request.body(), _COMMAS))
                leaving = asyncio.create_task(wait_for_disconnect(request, given))
                try:
                    async for delta in self._answers(asked, held):
                        pieces.put_nowait(_Piece(asked, delta))
                finally:
                    leaving.cancel()
        except Exception as error:  # noqa: BLE001  # it is raised where the pieces are taken
            pieces.put_nowait(error)

    async def _answers(self, asked: ChatRequest, body: AsyncExitStack) -> AsyncIterator[Delta]:
        """Yield the pieces of an answer; `body` is closed once the images are decoded."""
        model = self._adapters.now.speaker(asked.model)
        chat, files = asked.conversation()
        asked.messages.clear()  # which has the images a second time
        limits, loop = self._admission.limits, asyncio.get_running_loop()
        if len(files) > limits.images:
            raise HTTPException(422, f"{len(files)} images were sent; expected at most {limits.images}")

        def look(content: bytes, name: str) -> Image | PreparedImage:
            image = model.prepared(open_image(content, turned=model.backbone.preprocess.turned, name=name))
            check_tokens(model, image.size, name, limits.tokens)  # before further ones take memory
            return image

        async with self._admission.images("chats", files, look) as images:
            files.clear()
            await body.aclose()
            most = await self._admission.aside(lambda: self._most(asked, model, chat, images))
            deltas: asyncio.Queue[Delta | Exception] = asyncio.Queue()

            def put(delta: Delta | Exception) -> None:
                with suppress(RuntimeError):  # of a closed loop: the server has ended
                    loop.call_soon_threadsafe(deltas.put_nowait, delta)

            question = Question(model, chat, images, most, asked.stops, asked.choosing, put)
            tokens, finish = 0, None
            try:
                self.talker.ask(question)
                while finish is None:
                    delta = await deltas.get()
                    if isinstance(delta, Exception):
                        raise delta
                    self._metrics.tokens.labels(asked.model).inc(delta.tokens - tokens)
                    tokens, finish = delta.tokens, delta.finish
                    yield delta
            finally:
                question.given_up = True

    def _most(self, asked: ChatRequest, model: ChatModel, chat: Chat, images: Sequence[Image | PreparedImage]) -> int:
        """Return the maximum number of tokens of an answer. Raises AdaptError if a conversation is too long."""
        most = min(self._admission.limits.tokens, model.backbone.longest)
        characters = sum(len(turn.text) for turn in chat.turns)
        if characters > _CHARACTERS * most:
            raise AdaptError(
                f"the conversation has {characters:,} characters; expected at most {_CHARACTERS * most:,}: shorten it"
            )
        [tokens] = model.backbone.lengths([chat], [[image.size for image in images]], asks=True)
        room = most - tokens
        if room < (asked.most or 1):
            raise AdaptError(
                f"the conversation takes {tokens:,} tokens, and may have {most:,} together with its answer of "
                f"{asked.answer_tokens:,}: shorten it, send smaller images, or lower max_tokens"
            )
        return min(asked.answer_tokens, room)


@dataclass(frozen=True)
class _Piece:
    """A piece of the answer to a request."""

    asked: ChatRequest
    delta: Delta


async def _taken(pieces: asyncio.Queue[_Piece | Exception]) -> _Piece:
    """Wait for the next piece and return it, or raise the error in its place."""
    piece = await pieces.get()
    if isinstance(piece, Exception):
        raise piece
    return piece


async def _all(first: _Piece, pieces: asyncio.Queue[_Piece | Exception]) -> AsyncIterator[_Piece]:
    """Yield the first piece and all others, up to the last."""
    yield (piece := first)
    while piece.delta.finish is None:
        yield (piece := await _taken(pieces))


def _event(body: dict[str, object]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
