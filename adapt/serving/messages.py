"""The schemas of the HTTP interface's requests and answers, and the reading of a request's body."""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from adapt.models.prediction import Prediction, Wanted
from adapt.validation import explain

Checked = TypeVar("Checked", bound=BaseModel)

TopK = Annotated[int, Field(ge=1, le=1000, description="Number of classes to return per image.")]
Threshold = Annotated[float | None, Field(ge=0, le=1, description="Answer none if no class reaches this probability.")]
Names = Annotated[list[str], Field(max_length=64, description="Adapters to use; without any, the default one.")]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Asking(_Message):
    """Settings of a request: the adapters to use, and how much to return."""

    adapters: Names = []
    top_k: TopK = 5
    threshold: Threshold = None


class ImagesInJson(Asking):
    """A request with images as base64."""

    images: list[str] = Field(min_length=1, description="Image files as base64.")


class LoadAdapter(_Message):
    """An adapter to load, by its path in the server's folder."""

    path: str = Field(min_length=1, max_length=1000)
    name: str | None = Field(default=None, min_length=1, max_length=200)


class AdapterName(_Message):
    """The name of a loaded adapter."""

    name: str


class ClassProbability(BaseModel):
    """A class and its probability."""

    class_name: str = Field(alias="class")
    probability: float


class AdapterAnswer(BaseModel):
    """The answer of one adapter for an image. Below the threshold, `class` is none and there is no label.

    A multi-label adapter gives all `classes` that reach the threshold.
    """

    adapter: str
    class_name: str = Field(alias="class")
    label: int | None
    probability: float
    number: float | None = None  # such as a grade, from a regression adapter
    classes: list[str] | None = None
    top: list[ClassProbability]


class ImageAnswers(BaseModel):
    """The answers of all adapters for one image."""

    image: str
    answers: list[AdapterAnswer]


class ImagesAnswered(BaseModel):
    """The results for all images, in the order in which they were sent."""

    results: list[ImageAnswers]


class AdapterCard(BaseModel):
    """An adapter that is loaded."""

    name: str
    method: str
    backbone: str | None
    classes: list[str]
    default: bool


_FORM = "curl -F images=@photo.png"


class Health(BaseModel):
    """The server's state, `ok` or `stuck`, and the number of requests that wait."""

    status: str
    adapters: int
    waiting: int


class Problem(BaseModel):
    """An error, in one line."""

    detail: str


@dataclass(frozen=True)
class Sent:
    """A request as it was sent: its images as named files, and its settings."""

    files: list[tuple[str, bytes]]
    asking: Asking

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.asking.top_k, self.asking.threshold)


async def sent(request: Request, most: int) -> Sent:
    """Read the body of a request, JSON or an uploaded form, with at most `most` images.

    Raises HTTPException 400 for a form that cannot be read, 415 for other content types, and 422 for a body that does
    not fit the schema or for parameters in the address.
    """
    for name in request.query_params:
        raise HTTPException(
            422, f"the address has the parameter {name!r}: send it in the form or the JSON, beside the images"
        )
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = _checked(ImagesInJson, _json(await request.body(), 1000 + most))
        files = [(f"image {number}", _decoded(text, number)) for number, text in enumerate(body.images, 1)]
        upload = Sent(files, Asking(**body.model_dump(exclude={"images"})))
    elif kind == "multipart/form-data":
        try:
            upload = await _uploaded(request)
        except (MultiPartException, FormParserError) as error:  # the latter if Starlette is older than 1.8
            raise HTTPException(400, f"the form cannot be read: {error}") from None
    else:
        raise HTTPException(415, f"the content type is {kind!r}; expected application/json or multipart/form-data")
    if not 1 <= len(upload.files) <= most:
        raise HTTPException(422, f"{len(upload.files)} images were sent; expected 1 to {most}")
    return upload


async def _uploaded(request: Request) -> Sent:
    fields: dict[str, str] = {}
    adapters: list[str] = []
    files: list[tuple[str, bytes]] = []
    form = await _InMemory(request.headers, request.stream(), max_files=1000, max_fields=100).parse()
    try:
        for key, value in form.multi_items():
            if key == "images" and isinstance(value, UploadFile):
                files.append((value.filename or f"image {len(files) + 1}", await value.read()))
            elif key == "images" or isinstance(value, UploadFile):
                given = f"a file called {key!r}" if isinstance(value, UploadFile) else "images without a file"
                raise HTTPException(422, f"the form has {given}; expected files called images, as in {_FORM}")
            elif key == "adapters":
                adapters.append(value)
            else:
                fields[key] = value
    finally:
        await form.close()
    return Sent(files, _checked(Asking, {**fields, "adapters": adapters}))


def answers(
    files: Sequence[tuple[str, bytes]], adapters: Sequence[str], predictions: Sequence[Sequence[Prediction]]
) -> dict[str, object]:
    """Return `predictions`, which has a row for each file with one prediction per adapter, as plain data for JSON."""
    return {
        "results": [
            {
                "image": name,
                "answers": [{"adapter": adapter, **each.plain()} for adapter, each in zip(adapters, row, strict=True)],
            }
            for (name, _), row in zip(files, predictions, strict=True)
        ]
    }


class _InMemory(MultiPartParser):
    """A form parser that keeps uploads in memory: bodies are small, and temporary files would take file descriptors."""

    spool_max_size = sys.maxsize


def _json(body: bytes, most: int) -> object:
    """Parse JSON with at most `most` commas; with millions of values, parsing would block the server for seconds."""
    from pydantic_core import from_json

    if (parts := body.count(b",")) > most:
        raise HTTPException(422, f"the body has {parts:,} commas; expected images as base64 and little else")
    try:
        value: object = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HTTPException(422, f"the body is not valid JSON: {error}") from None
    return value


def _checked(kind: type[Checked], values: object) -> Checked:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise HTTPException(422, explain(kind, error, "the request")) from None


def _decoded(text: str, number: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, f"image {number} is not valid base64: {error}") from None
