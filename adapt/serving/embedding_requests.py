"""Requests for embeddings of texts and images, as OpenAI's, vLLM's and Jina's interfaces have them.

An embedding is the unit-length feature that the adapter's model gives, as in an index of `adapt index`. In `input`, a
text is a string (OpenAI) or `{"text": …}` (Jina), an image a data URI or `{"image": BASE64}` (Jina). vLLM has
`messages` in place of `input`, with one text or image. Images and texts that wait share passes.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from fastapi import HTTPException, Request, Response
from pydantic import AliasChoices, BaseModel, Field, field_validator, model_validator
from torch import Tensor

from adapt.chats import IMAGE
from adapt.common.errors import AdaptError
from adapt.data.decoding.images import open_image
from adapt.data.decoding.pictures import turns
from adapt.models.base import evaluating
from adapt.models.image_model import ImageModel
from adapt.serving.adapters import ServedAdapters
from adapt.serving.admission import Admission, File
from adapt.serving.chat_requests import CHARACTERS, ChatPart, ChatTurn, parts_of, sent_json, without_nulls
from adapt.serving.predict_requests import Asked, Message, Predictions, answered, check_tokens
from adapt.serving.web import Counted


class EmbeddingRequest(Message):
    """Texts and images to embed, in `input` or in `messages`."""

    model: str = Field(description="The name of an adapter.")
    input: list[ChatPart] = Field(default=[], max_length=1000)
    messages: list[ChatTurn] = Field(default=[], max_length=1)
    encoding_format: Literal["float", "base64"] = Field(
        default="float",
        description="base64 is of little-endian fp32.",
        validation_alias=AliasChoices("encoding_format", "embedding_type"),
    )
    dimensions: int | None = Field(default=None, ge=1, description="The first values alone, to unit length again.")

    # what clients send though it changes nothing
    normalized: Literal[True] = True
    user: str | None = None

    _without_nulls = model_validator(mode="before")(without_nulls)

    @field_validator(
        "input", mode="before", json_schema_input_type=str | list[str | dict[Literal["text", "image"], str]]
    )
    @classmethod
    def _as_parts(cls, given: object) -> object:
        return [_part(each) for each in (given if isinstance(given, list) else [given])]

    @model_validator(mode="after")
    def _in_one_form(self) -> EmbeddingRequest:
        if bool(self.input) == bool(self.messages):
            raise ValueError("expected at least one text or image, in input or in messages")
        if self.messages and len(self.messages[0].content) != 1:
            raise ValueError(f"the message has {len(self.messages[0].content)} parts; expected one text or one image")
        return self


def _part(given: object) -> object:
    """Return a text or an image of `input` as a part of a conversation."""
    match given:
        case {"text": str(text), **more} if not more:
            return {"type": "text", "text": text}
        case {"image": str(image), **more} if not more:
            given = image if ":" in image else f"data:image/any;base64,{image}"
            return {"type": "image_url", "image_url": {"url": given}}
        case str(text) if text.startswith("data:image/"):
            return {"type": "image_url", "image_url": {"url": text}}
        case str(text):
            return {"type": "text", "text": text}
    return given


class Embedding(BaseModel):
    """The embedding of one text or image."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Embedded(BaseModel):
    """The embeddings of a request, in the order of its texts and images."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: dict[str, int]
    """The number of tokens of the texts."""


@dataclass(frozen=True)
class Encoding:
    """What a pass makes of texts and preprocessed images: for each, its unit-length feature `(e,)` on the CPU."""

    model: ImageModel

    def __call__(self, inputs: Sequence[Any]) -> list[Tensor]:
        texts = [each for each in inputs if isinstance(each, str)]
        images = [each for each in inputs if not isinstance(each, str)]
        with evaluating(self.model), torch.no_grad():
            of_texts = iter(self.model.text_features(texts, edited=True) if texts else ())
            of_images = iter(self.model.image_features(self.model.batched(images)) if images else ())
        return [next(of_texts if isinstance(each, str) else of_images).float().cpu() for each in inputs]


class Embeddings:
    """The handler of a server's `/v1/embeddings` requests, whose passes are among those of `predictions`."""

    def __init__(
        self, adapters: ServedAdapters, admission: Admission, metrics: Counted, predictions: Predictions
    ) -> None:
        self._adapters, self._admission, self._metrics = adapters, admission, metrics
        self._predictions = predictions

    async def answer(self, request: Request) -> Response:
        """Return the response to a request; it raises the errors that `answered` does."""
        return await answered(request, self._admission, partial(sent_json, EmbeddingRequest), self._embedded)

    async def _embedded(self, asked: EmbeddingRequest) -> dict[str, object]:
        model, limits = self._adapters.now.embedder(asked.model), self._admission.limits
        files: list[File] = []
        sent = asked.messages or [ChatTurn(role="user", content=asked.input)]
        inputs: list[Any] = list(parts_of(sent.pop(), files))
        asked.input.clear()  # which has the images a second time
        texts = [each for each in inputs if each is not IMAGE]
        if len(inputs) > limits.images:
            raise HTTPException(422, f"{len(inputs)} texts and images were sent; expected at most {limits.images}")
        transform = model.backbone.transform(train=False)

        def look(content: bytes, name: str) -> Any:
            image = open_image(content, turned=turns(transform), name=name)
            if model.backbone.as_decoded:
                check_tokens(model.backbone, image.size, name, limits.tokens)
            return transform(image)

        batcher = self._predictions.native_batcher if model.backbone.as_decoded else self._predictions.batcher
        async with self._admission.images("embeddings", files, look) as images:
            tokens = await self._admission.aside(lambda: _tokens(model, texts)) if texts else 0
            left = iter(images)
            inputs = [next(left) if each is IMAGE else each for each in inputs]
            rows = await asyncio.wrap_future(batcher.ask(Asked(Encoding(model), inputs)).answer)
        self._metrics.images.labels(asked.model).inc(len(files))
        features = torch.stack(rows)
        if asked.dimensions is not None:
            if asked.dimensions > features.shape[-1]:
                raise AdaptError(f"dimensions is {asked.dimensions}; {asked.model} gives {features.shape[-1]} values")
            features = F.normalize(features[:, : asked.dimensions], dim=-1)
        written = [
            base64.b64encode(each.numpy().astype("<f4").tobytes()).decode()
            if asked.encoding_format == "base64"
            else each.tolist()
            for each in features
        ]
        data = [Embedding(index=index, embedding=each) for index, each in enumerate(written)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Embedded(data=data, model=asked.model, usage=usage).model_dump()


def _tokens(model: Any, texts: Sequence[str]) -> int:
    """Return the number of tokens of texts. Raises AdaptError if the model cannot encode one of them."""
    model.check_encodes_texts()
    most = CHARACTERS * model.backbone.tokenizer.context_length
    for text in texts:
        if not text.strip() or len(text) > most:
            raise AdaptError(f"a text has {len(text):,} characters; expected 1 to {most:,}, which are not all spaces")
    return sum(len(model.prompt_of(text).ids) for text in texts)
