"""Requests for embeddings of texts and images, as OpenAI's, vLLM's and Jina's interfaces have them, and for search.

An embedding is the unit-length feature that the adapter's model gives, as in an index of `adapt index`. In `input`, a
text is a string (OpenAI) or `{"text": …}` (Jina), an image a data URI or `{"image": BASE64}` (Jina). vLLM has
`messages` in place of `input`, with one text or image. Images and texts that wait share passes. `/search` takes such an
`input` too, and answers with what is nearest in an index.
"""

from __future__ import annotations

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
from adapt.retrieval.index import changed
from adapt.serving.adapters import ServedAdapters
from adapt.serving.admission import Admission, File
from adapt.serving.chat_requests import CHARACTERS, ChatPart, ChatTurn, TextPart, parts_of, sent_json, without_nulls
from adapt.serving.predict_requests import Message, Predictions, answered, check_tokens
from adapt.serving.web import Counted


class Inputs(Message):
    """Texts and images."""

    input: list[ChatPart] = Field(default=[], max_length=1000)

    _without_nulls = model_validator(mode="before")(without_nulls)

    @field_validator(
        "input", mode="before", json_schema_input_type=str | list[str | dict[Literal["text", "image"], str]]
    )
    @classmethod
    def _as_parts(cls, given: object) -> object:
        return [_part(each) for each in (given if isinstance(given, list) else [given])]


class SearchRequest(Inputs):
    """Texts and images to search an index for."""

    index: str = Field(description="The name of an index.")
    top_k: int = Field(default=5, ge=1, le=1000, description="Number of entries to return for each.")
    text: str | None = Field(default=None, description="Words that change each image.")
    share: float | None = Field(
        default=None, ge=0, le=1, description="Share of the way from an image to the text, by default 0.5."
    )


class EmbeddingRequest(Inputs):
    """Texts and images to embed, in `input` or in `messages`."""

    model: str = Field(description="The name of an adapter.")
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


class NearestEntry(BaseModel):
    """An entry of an index, with its cosine to what was searched for."""

    entry: str
    cosine: float


class Searched(BaseModel):
    """The nearest entries to each text and image of a request, in its order, the nearest first."""

    results: list[list[NearestEntry]]


@dataclass(frozen=True)
class Encoding:
    """What a pass makes of texts and preprocessed images: for each, its unit-length feature `(e,)` on the CPU.

    With `singly`, a feature has the same bits whatever is in the pass. A `text` changes each image (see `changed`).
    """

    model: ImageModel
    singly: bool
    text: str | None = None
    share: float | None = None

    def __call__(self, inputs: Sequence[Any]) -> list[Tensor]:
        return [row for each in inputs for row in self._encode([each])] if self.singly else self._encode(inputs)

    def _encode(self, inputs: Sequence[Any]) -> list[Tensor]:
        texts = [each for each in inputs if isinstance(each, str)]
        images = [each for each in inputs if not isinstance(each, str)]
        with evaluating(self.model), torch.no_grad():
            of_texts = iter(self.model.text_features(texts, edited=True) if texts else ())
            of_images = iter(self._of_images(self.model.batched(images)) if images else ())
        return [next(of_texts if isinstance(each, str) else of_images).float().cpu() for each in inputs]

    def _of_images(self, pixels: Tensor) -> Tensor:
        if self.text is None:
            return self.model.image_features(pixels)
        return changed(self.model, pixels, self.text, self.share)


class Embeddings:
    """The handler of `/v1/embeddings` and `/search` of a server, whose passes are among those of `predictions`."""

    def __init__(
        self, adapters: ServedAdapters, admission: Admission, metrics: Counted, predictions: Predictions
    ) -> None:
        self._adapters, self._admission, self._metrics = adapters, admission, metrics
        self._predictions = predictions

    async def answer(self, request: Request) -> Response:
        """Return the response to a request; it raises the errors that `answered` does."""
        return await answered(request, self._admission, partial(sent_json, EmbeddingRequest), self._embedded)

    async def search(self, request: Request) -> Response:
        """Return the response to a request for `/search`; it raises the errors that `answered` does."""
        return await answered(request, self._admission, partial(sent_json, SearchRequest), self._searched)

    async def _searched(self, asked: SearchRequest) -> dict[str, object]:
        served = self._adapters.index(asked.index)
        index, model = served.index, served.model
        if not asked.input:
            raise HTTPException(422, "there is nothing to search for: give a text or an image as input")
        if asked.text is None and asked.share is not None:
            raise HTTPException(422, "share is of the way to a text, but there is none: give text, or leave share out")
        if asked.text is not None:
            if any(isinstance(part, TextPart) for part in asked.input):
                raise HTTPException(422, "text changes images, but input has a text: leave one of them out")
            await self._admission.aside(partial(_tokens, model, [asked.text]))
        encoding = Encoding(model, True, asked.text, asked.share)
        rows, _ = await self._encoded(encoding, asked.index, _turn(asked.input))

        def nearest() -> list[list[NearestEntry]]:
            queries = torch.stack(rows) if asked.text is not None else F.normalize(torch.stack(rows), dim=-1)
            found = ((each[0].tolist() for each in index.nearest(query[None], asked.top_k)) for query in queries)
            return [
                [NearestEntry(entry=index.entries[place], cosine=cosine) for cosine, place in zip(*own, strict=True)]
                for own in found
            ]

        return Searched(results=await self._admission.aside(nearest)).model_dump()

    async def _embedded(self, asked: EmbeddingRequest) -> dict[str, object]:
        model = self._adapters.now.embedder(asked.model)
        sent = asked.messages.pop() if asked.messages else _turn(asked.input)
        rows, tokens = await self._encoded(Encoding(model, singly=False), asked.model, sent)
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

    async def _encoded(self, encoding: Encoding, name: str, sent: ChatTurn) -> tuple[list[Tensor], int]:
        """Return the features of what was `sent` to the adapter or index `name`, and the number of its tokens."""
        model: Any = encoding.model
        limits, files = self._admission.limits, list[File]()
        inputs: list[Any] = list(parts_of(sent, files))
        sent.content.clear()  # which has the images a second time
        texts = [each for each in inputs if each is not IMAGE]
        if len(inputs) > limits.images:
            raise HTTPException(422, f"{len(inputs)} texts and images were sent; expected at most {limits.images}")
        transform = model.backbone.transform(train=False)

        def look(content: bytes, name: str) -> Any:
            image = open_image(content, turned=turns(transform), name=name)
            if model.backbone.as_decoded:
                check_tokens(model.backbone, image.size, name, limits.tokens)
            return transform(image)

        async with self._admission.images("embeddings", files, look) as images:
            tokens = await self._admission.aside(lambda: _tokens(model, texts)) if texts else 0
            left = iter(images)
            inputs = [next(left) if each is IMAGE else each for each in inputs]
            rows = await self._predictions.passed(encoding, inputs, model.backbone.as_decoded)
        self._metrics.images.labels(name).inc(len(files))
        return rows, tokens


def _turn(parts: list[ChatPart]) -> ChatTurn:
    """Return a turn with these parts, which it takes away."""
    turn = ChatTurn(role="user", content=[*parts])
    parts.clear()
    return turn


def _tokens(model: Any, texts: Sequence[str]) -> int:
    """Return the number of tokens of texts. Raises AdaptError if the model cannot encode one of them."""
    model.check_encodes_texts()
    most = CHARACTERS * model.backbone.tokenizer.context_length
    for text in texts:
        if not text.strip() or len(text) > most:
            raise AdaptError(f"a text has {len(text):,} characters; expected 1 to {most:,}, which are not all spaces")
    return sum(len(model.prompt_of(text).ids) for text in texts)
