"""Requests for answers in words: their schemas, as OpenAI's interface has them, and the steps from one to its answer.

Only what is honoured, or changes nothing, is accepted: any other parameter is refused by name. Images are data URIs, as
the server contacts no other one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from random import getrandbits
from typing import Annotated, Literal
from uuid import uuid4

from fastapi import HTTPException, Request, Response
from PIL.Image import Image
from pydantic import BaseModel, Field, field_validator, model_validator
from starlette.responses import JSONResponse, StreamingResponse

from adapt.backbones.encoded_images import PreparedImage
from adapt.chats import IMAGE, Chat, Turn
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.data.decoding.images import open_image
from adapt.models.native_vlm import ChatModel
from adapt.serving.adapters import ServedAdapters
from adapt.serving.admission import Admission, File
from adapt.serving.chat_worker import Choosing, Delta, Question, Talker
from adapt.serving.predict_requests import (
    AnsweredBox,
    Checked,
    Message,
    check_tokens,
    checked,
    decoded,
    from_json_body,
    kind_of_body,
    unanswered,
    wait_for_disconnect,
)
from adapt.serving.web import FAILED, Counted, Mistaken

_DATA = re.compile(r"data:image/[\w.+-]{1,40};base64,")
_COLDEST = 0.001  # a temperature below which probabilities are 0 and 1
_ANSWER = 256  # tokens, unless the request says how many


def without_nulls(values: object) -> object:
    """Remove null values, which clients send for settings that they do not use."""
    if not isinstance(values, dict):
        return values
    return {key: value for key, value in values.items() if value is not None}


class TextPart(Message):
    """Words of a turn."""

    type: Literal["text"]
    text: str


class ImageURL(Message):
    """An image as a data URI."""

    url: str = Field(description="data:image/png;base64,…")
    detail: Literal["auto"] = "auto"


class ImagePart(Message):
    """An image in a turn."""

    type: Literal["image_url"]
    image_url: ImageURL


ChatPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatTurn(Message):
    """A turn of a conversation: a text, or a list of texts and images."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[ChatPart], Field(max_length=1000)]

    _without_nulls = model_validator(mode="before")(without_nulls)

    @field_validator("content", mode="before", json_schema_input_type=str | list[ChatPart])
    @classmethod
    def _as_parts(cls, content: object) -> object:
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise ValueError("expected a text, or a list of parts")
        return content


class StreamOptions(Message):
    """The options of a streamed answer."""

    include_usage: bool = False


class ChatRequest(Message):
    """A conversation that ends with a question of the user, and how it is to be answered."""

    model: str = Field(description="The name of an adapter.")
    messages: list[ChatTurn] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0, ge=0, le=2, description="Below 0.001, the most probable token is taken.")
    top_p: float = Field(default=1, gt=0, le=1)
    stop: list[Annotated[str, Field(max_length=100)]] = Field(default=[], max_length=4)
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20, description="More than 0 implies logprobs.")

    # what clients send though it changes nothing
    n: Literal[1] = 1
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    logit_bias: dict[str, float] = Field(default={}, max_length=0)
    response_format: dict[Literal["type"], Literal["text"]] = Field(default={"type": "text"})
    tools: list[object] = Field(default=[], max_length=0)
    tool_choice: Literal["none", "auto"] = "none"
    parallel_tool_calls: bool = True
    modalities: tuple[Literal["text"]] = ("text",)
    service_tier: Literal["auto", "default"] = "auto"
    metadata: dict[str, str] = Field(default={}, max_length=16)
    store: Literal[False] = False
    user: str | None = None

    _without_nulls = model_validator(mode="before")(without_nulls)

    @field_validator("stop", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _as_list(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop

    @property
    def most(self) -> int | None:
        """The maximum number of tokens of the answer, if the request has one."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def answer_tokens(self) -> int:
        """The maximum number of tokens of the answer."""
        return self.most or _ANSWER

    @property
    def choosing(self) -> Choosing:
        """How each token is chosen."""
        temperature = 0 if self.temperature < _COLDEST else self.temperature
        told = self.top_logprobs if self.logprobs or self.top_logprobs else None
        return Choosing(temperature, self.top_p, getrandbits(63) if self.seed is None else self.seed, told)

    def conversation(self) -> tuple[Chat, list[File]]:
        """Return the conversation and its images, which have names and contents. Raises HTTPException."""
        files: list[File] = []
        turns = [
            Turn("system" if turn.role == "developer" else turn.role, tuple(parts_of(turn, files)), learned=False)
            for turn in self.messages
        ]
        if turns[-1].role != "user":
            raise HTTPException(422, f"the last message is of the {turns[-1].role}; expected a question of the user")
        return Chat(tuple(turns)), files


async def sent_json(kind: type[Checked], request: Request) -> Checked:
    """Return the JSON body of a request as a message of a `kind`. Raises HTTPException if it is not one."""
    kind_of_body(request, "the JSON", "application/json")
    return checked(kind, from_json_body(await request.body(), _COMMAS))


def parts_of(turn: ChatTurn, files: list[File]) -> Iterator[str | None]:
    """Yield the parts of a turn, and add its images to `files`."""
    for part in turn.content:
        if isinstance(part, ImagePart):
            if turn.role != "user":
                raise HTTPException(422, f"a message of the {turn.role} has an image; expected images of the user only")
            name, url = f"image {len(files) + 1}", part.image_url.url
            start = _DATA.match(url)
            if start is None:
                raise HTTPException(
                    422, f"{name} is {url[:60]!r}; expected data:image/png;base64,…, as this server fetches no images"
                )
            files.append((name, decoded(url[start.end() :], name)))
            yield IMAGE
        else:
            yield part.text


class Usage(BaseModel):
    """The number of tokens of a conversation and its answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """An answer in words, with the boxes in it if it is about a single image, in pixels as `predict` gives them."""

    role: Literal["assistant"] = "assistant"
    content: str
    boxes: list[AnsweredBox] | None


class AnswerChoice(BaseModel):
    """An answer, and why it ends."""

    index: int = 0
    message: AnswerMessage
    logprobs: JsonObject | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[AnswerChoice]
    usage: Usage


class ModelCard(BaseModel):
    """An adapter that answers in words, or embeds images and texts."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["adapt"] = "adapt"


class ModelCards(BaseModel):
    """All adapters."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@dataclass
class Written:
    """The pieces of an answer as the parts of a response."""

    model: str

    def __post_init__(self) -> None:
        self._id, self._created = f"chatcmpl-{uuid4().hex}", int(time.time())

    def whole(self, pieces: list[Delta]) -> dict[str, object]:
        """Return the body of a response with an answer's pieces together."""
        last = pieces[-1]
        assert last.finish is not None
        boxes = [AnsweredBox.model_validate(box) for box in last.boxes] or None
        message = AnswerMessage(content="".join(piece.text for piece in pieces), boxes=boxes)
        return Completion(
            id=self._id,
            created=self._created,
            model=self.model,
            choices=[AnswerChoice(message=message, finish_reason=last.finish, logprobs=self._told(pieces))],
            usage=_usage(last),
        ).model_dump()

    def first(self) -> dict[str, object]:
        """Return the chunk that begins a stream."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def next(self, piece: Delta) -> Iterator[dict[str, object]]:
        """Yield the chunks of a piece: its text, and its end if it is the last one."""
        if piece.text:
            yield self._chunk({"content": piece.text}, None, self._told([piece]))
        if piece.finish:
            yield self._chunk({"boxes": piece.boxes} if piece.boxes else {}, piece.finish)

    def used(self, last: Delta) -> dict[str, object]:
        """Return the chunk with the number of tokens."""
        return self._chunk({}, None) | {"choices": [], "usage": _usage(last).model_dump()}

    @staticmethod
    def _told(pieces: Sequence[Delta]) -> JsonObject | None:
        content = [token for piece in pieces for token in piece.told]
        return {"content": content, "refusal": None} if content else None

    def _chunk(self, delta: JsonObject, finish: str | None, told: JsonObject | None = None) -> dict[str, object]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": told, "finish_reason": finish}],
        }


def _usage(last: Delta) -> Usage:
    return Usage(
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.tokens,
        total_tokens=last.prompt_tokens + last.tokens,
    )


_COMMAS = 20_000  # in a body, so that reading it blocks nobody
CHARACTERS = 16  # for each token that a text may have
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
                asked = await sent_json(ChatRequest, request)
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
            check_tokens(model.backbone, image.size, name, limits.tokens)  # before further ones take memory
            return image

        async with self._admission.images("chats", files, look) as images:
            files.clear()
            await body.aclose()
            most = await self._admission.aside(lambda: self._most(asked, model, chat, images))
            deltas: asyncio.Queue[Delta | Exception] = asyncio.Queue()

            def put(delta: Delta | Exception) -> None:
                with suppress(RuntimeError):  # of a closed loop: the server has ended
                    loop.call_soon_threadsafe(deltas.put_nowait, delta)

            question = Question(model, chat, images, most, tuple(filter(None, asked.stop)), asked.choosing, put)
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
        if characters > CHARACTERS * most:
            raise AdaptError(
                f"the conversation has {characters:,} characters; expected at most {CHARACTERS * most:,}: shorten it"
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
