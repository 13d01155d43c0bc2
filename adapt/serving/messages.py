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

from adapt.common.validation import explain
from adapt.models.prediction import Prediction, Query

Checked = TypeVar("Checked", bound=BaseModel)

TopK = Annotated[int, Field(ge=1, le=1000, description="Number of classes to return per image.")]
Threshold = Annotated[float | None, Field(ge=0, le=1, description="Answer none if no class reaches this probability.")]
Names = Annotated[list[str], Field(max_length=64, description="Adapters to use; without any, the default one.")]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Asking(Message):
    """The settings of a request, which are adapters, the number of classes to return and a probability threshold."""

    adapters: Names = []
    top_k: TopK = 5
    threshold: Threshold = None


class ImagesInJson(Asking):
    """A JSON request that contains images as base64."""

    images: list[str] = Field(min_length=1, description="Image files as base64.")


class LoadAdapter(Message):
    """A request to load an adapter, given by its path in the server's folder and an optional name."""

    path: str = Field(min_length=1, max_length=1000)
    name: str | None = Field(default=None, min_length=1, max_length=200)


class AdapterName(Message):
    """The name of a loaded adapter."""

    name: str


class ClassProbability(BaseModel):
    """A class and its probability."""

    class_name: str = Field(alias="class")
    probability: float


class AdapterAnswer(BaseModel):
    """The prediction of one adapter for an image; below the threshold, `class` is `none` and `label` is null.

    For a multi-label adapter, `classes` lists all classes that reach the threshold.
    """

    adapter: str
    class_name: str = Field(alias="class")
    label: int | None
    probability: float
    number: float | None = None  # such as a grade, from a regression adapter
    classes: list[str] | None = None
    top: list[ClassProbability]


class ImageAnswers(BaseModel):
    """The predictions of all requested adapters for one image."""

    image: str
    answers: list[AdapterAnswer]


class ImagesAnswered(BaseModel):
    """The results for all images of a request, in the order of the images in the request."""

    results: list[ImageAnswers]


class AdapterCard(BaseModel):
    """The description of a loaded adapter."""

    name: str
    method: str
    backbone: str | None
    classes: list[str]
    """The classes that `/predict` answers with; none if the adapter answers in words alone."""
    chats: bool
    """Whether it answers in words."""
    default: bool


_FORM = "curl -F images=@photo.png"


class Health(BaseModel):
    """The server's state, which is `ok` or `stuck`, and its numbers of loaded adapters and of waiting requests."""

    status: str
    adapters: int
    waiting: int


@dataclass(frozen=True)
class Sent:
    """The parsed content of a request, which consists of images as named files and settings."""

    files: list[tuple[str, bytes]]
    asking: Asking

    @property
    def query(self) -> Query:
        return Query(self.asking.top_k, self.asking.threshold)


async def sent(request: Request, most: int) -> Sent:
    """Return the parsed body of a request, which must be JSON or an uploaded form with at most `most` images.

    Raises HTTPException with status 400 if a form cannot be read, 415 for any other content type, and 422 if the body
    does not match the schema or if the URL has query parameters.
    """
    kind = kind_of_body(request, "the form or the JSON, beside the images", "application/json", "multipart/form-data")
    if kind == "application/json":
        body = checked(ImagesInJson, from_json_body(await request.body(), 1000 + most))
        files = [(name := f"image {number}", decoded(text, name)) for number, text in enumerate(body.images, 1)]
        upload = Sent(files, Asking(**body.model_dump(exclude={"images"})))
    else:
        try:
            upload = await _uploaded(request)
        except (MultiPartException, FormParserError) as error:  # the latter if Starlette is older than 1.8
            raise HTTPException(400, f"the form cannot be read: {error}") from None
    if not 1 <= len(upload.files) <= most:
        raise HTTPException(422, f"{len(upload.files)} images were sent; expected 1 to {most}")
    return upload


def kind_of_body(request: Request, place: str, *kinds: str) -> str:
    """Return the content type of a request, one of `kinds`. Raises HTTPException for another one.

    Raises it for parameters in the address too, which are to be sent in `place`.
    """
    for name in request.query_params:
        raise HTTPException(422, f"the address has the parameter {name!r}: send it in {place}")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        raise HTTPException(415, f"the content type is {kind!r}; expected {' or '.join(kinds)}")
    return kind


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
    return Sent(files, checked(Asking, {**fields, "adapters": adapters}))


def answers(
    files: Sequence[tuple[str, bytes]], adapters: Sequence[str], predictions: Sequence[Sequence[Prediction]]
) -> dict[str, object]:
    """Return the JSON-serialisable response for `predictions`, which have a row per file and a column per adapter."""
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
    """A form parser that keeps uploads in memory, because temporary files would use up file descriptors."""

    spool_max_size = sys.maxsize


def from_json_body(body: bytes, most: int) -> object:
    """Return the value of a JSON body with at most `most` commas; parsing millions of values would block the server."""
    from pydantic_core import from_json

    if (parts := body.count(b",")) > most:
        raise HTTPException(422, f"the body has {parts:,} commas; expected images as base64 and little else")
    try:
        value: object = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HTTPException(422, f"the body is not valid JSON: {error}") from None
    return value


def checked(kind: type[Checked], values: object) -> Checked:
    """Return `values` as a message. Raises HTTPException with status 422 if they do not match its schema."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise HTTPException(422, explain(kind, error, "the request")) from None


def decoded(text: str, name: str) -> bytes:
    """Return the bytes of base64. Raises HTTPException with the `name` of the image that they are to be."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, f"{name} is not valid base64: {error}") from None
