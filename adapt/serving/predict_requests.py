"""Requests for predictions: their schemas, the reading of a body, micro-batches, and the steps from a body to answers.

Images that arrive while the model is busy are computed together in its next pass. No image waits for a batch to fill:
if the model is idle, an image is computed at once. So a single client is answered as fast as the model can, and under
load a pass takes all waiting images, up to a limit. Requests with fewer images go first.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from typing import Any, Literal, TypeVar

import torch
from fastapi import HTTPException, Request, Response
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from torch import Tensor

from adapt.backbones.encoded_images import PreparedImage
from adapt.chats import Chat
from adapt.common.errors import AdaptError
from adapt.common.validation import explain
from adapt.data.decoding.images import in_batches, open_image
from adapt.models.base import Adapted, evaluating
from adapt.models.many import Prepared, SideBySide
from adapt.models.native_vlm import TOGETHER
from adapt.models.occlusion import PLACES, Occlusion
from adapt.models.prediction import Map, Prediction, Query
from adapt.models.watch import Watch, Window, Windows, summary
from adapt.models.windows import count, found, of_each, windows
from adapt.serving.adapters import ServedAdapters, ServedModel
from adapt.serving.admission import Admission, File
from adapt.serving.web import Counted
from adapt.serving.worker import Worker

Checked = TypeVar("Checked", bound=BaseModel)
Read = TypeVar("Read")


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Asking(Message):
    """The settings of a request: adapters, the number of classes to return, a threshold, a level of sets, pictures."""

    adapters: list[str] = Field(default=[], max_length=64, description="Adapters to use; without any, the default one.")
    top_k: int = Field(default=5, ge=1, le=1000, description="Number of classes to return per image.")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Answer none if no class reaches this probability."
    )
    sets: float | None = Field(
        default=None, gt=0, lt=1, description="Also give the set of classes that holds the true one at this level."
    )
    maps: bool = Field(
        default=False, description="Also say where images look abnormal, by the adapters that draw maps."
    )
    explain: bool = Field(default=False, description="Also map what the answer of a single adapter rests on.")
    boxes: bool = Field(
        default=False, description="Look for a single adapter's classes in windows, at threshold or 0.9."
    )


class ImagesInJson(Asking):
    """A JSON request that contains images as base64."""

    images: list[str] = Field(min_length=1, description="Image files as base64.")


class ClassProbability(BaseModel):
    """A class and its probability."""

    class_name: str = Field(alias="class")
    probability: float


class DrawnMap(BaseModel):
    """Where an image looks abnormal, as PNGs in base64 of the area that the backbone reads, at its size.

    `scores` has 16-bit values, whose scores are `offset + scale * value`. Pixels above `threshold` are abnormal, and
    `overlay` has colours over the image from there, or without a threshold from the median, to the `highest` score.
    With `explain`, scores are how much the log-odds of the answer fall where the image is covered, coloured from 0 on.
    """

    scores: str
    overlay: str
    scale: float
    offset: float
    threshold: float | None
    highest: float


class AnsweredBox(BaseModel):
    """A box in pixels (left, upper, right, lower), what the model calls it, and the probability of a window's class."""

    bbox: tuple[float, float, float, float]
    label: str
    probability: float | None = None


class AdapterAnswer(BaseModel):
    """The prediction of one adapter for an image; below the threshold, `class` is `none` and `label` is null.

    For a multi-label adapter, `classes` lists all classes that reach the threshold. `set`, or for a number `interval`,
    is there if `sets` was given, `map` if `maps` or `explain` was, and `boxes` if `boxes` was, where all else is that
    of the surest window. An average has a `disagreement`.
    """

    adapter: str
    class_name: str = Field(alias="class")
    label: int | None
    probability: float
    number: float | None = None  # such as a grade, from a regression adapter
    classes: list[str] | None = None
    set: list[str] | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None  # of being as good as the images that were learned from
    map: DrawnMap | None = None
    disagreement: dict[Literal["share", "nats"], float] | None = None  # of an average
    boxes: list[AnsweredBox] | None = None
    strangeness: float | None = None  # from an adapter with a watch, in standard deviations
    top: list[ClassProbability]


class ImageAnswers(BaseModel):
    """The predictions of all requested adapters for one image."""

    image: str
    answers: list[AdapterAnswer]


class ImagesAnswered(BaseModel):
    """The results for all images of a request, in the order of the images in the request."""

    results: list[ImageAnswers]
    alarms: dict[str, str] = {}  # of adapters whose last window of images looked unlike the training images


_SAID_OF_A_PIXEL = 4  # a pixel of a map is several bytes of an answer, and counts as so many of an image
_PIXELS_OF_A_PART = 224**2  # as which a window, or a covered copy, of an image counts
_PARTS = 8  # of an image in a pass, so that other requests wait for little
_FORM = "curl -F images=@photo.png"


async def sent(request: Request, most: int) -> tuple[list[File], Asking]:
    """Return the images and settings in the body of a request: JSON, or a form, with at most `most` images.

    Raises HTTPException with status 400 if a form cannot be read, 415 for any other content type, and 422 if the body
    does not match the schema or if the URL has query parameters.
    """
    kind = kind_of_body(request, "the form or the JSON, beside the images", "application/json", "multipart/form-data")
    if kind == "application/json":
        body = checked(ImagesInJson, from_json_body(await request.body(), 1000 + most))
        files = [(name := f"image {number}", decoded(text, name)) for number, text in enumerate(body.images, 1)]
        asking = Asking(**body.model_dump(exclude={"images"}))
    else:
        try:
            files, asking = await _uploaded(request)
        except (MultiPartException, FormParserError) as error:  # the latter if Starlette is older than 1.8
            raise HTTPException(400, f"the form cannot be read: {error}") from None
    if not 1 <= len(files) <= most:
        raise HTTPException(422, f"{len(files)} images were sent; expected 1 to {most}")
    return files, asking


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


async def _uploaded(request: Request) -> tuple[list[File], Asking]:
    fields: dict[str, str] = {}
    adapters: list[str] = []
    files: list[File] = []
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
    return files, checked(Asking, {**fields, "adapters": adapters})


class _InMemory(MultiPartParser):
    """A form parser that keeps uploads in memory, because temporary files would use up file descriptors."""

    spool_max_size = sys.maxsize
    _ended = False

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        self.stream = self._to_the_end(self.stream)
        return await super().parse()

    async def _to_the_end(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Yield a body. An error inside the stream closes the files, unlike a part without an end."""
        async for chunk in stream:
            yield chunk
        if not self._ended:
            raise MultiPartException("its last boundary is missing or damaged: send the boundary with -- at both ends")


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


@dataclass(eq=False)
class Asked:
    """A queued request: preprocessed images or texts, what a pass makes of them, and a future for the answers."""

    compute: Callable[[Sequence[Any]], Iterable[Any]]
    """Requests share passes if this is equal."""
    inputs: Sequence[Any]
    answer: Future[list[Any]] = field(default_factory=Future)


@dataclass(frozen=True)
class Classifying:
    """What a pass makes of images: for each, a tuple with the prediction of each adapter.

    Adapters that learn from test images are created anew for each request, so such requests never share a pass.
    """

    together: SideBySide
    query: Query

    def __call__(self, pixels: Sequence[Prepared]) -> Iterator[tuple[Prediction, ...]]:
        return self.together.predictions(pixels, self.query)


class Batcher(Worker[Asked]):
    """A thread that answers requests in passes of at most `most` inputs, and calls `passed` with their sizes."""

    def __init__(self, most: int, passed: Callable[[int], None] = lambda images: None) -> None:
        self._most, self._passed = most, passed
        super().__init__("adapt-batcher")

    def _answer(self, taken: list[Asked]) -> None:
        inputs = [each for asked in taken for each in asked.inputs]
        answers: list[Any] = []
        try:
            for start in range(0, len(inputs), self._most):  # a request alone may have more
                self._begin()
                part = inputs[start : start + self._most]
                self._passed(len(part))
                answers += taken[0].compute(part)
        except Exception as error:  # noqa: BLE001  # an error of the model goes to the clients
            for asked in taken:
                asked.answer.set_exception(error)
            return
        finally:
            self._begun.clear()
        start = 0
        for asked in taken:
            asked.answer.set_result(answers[start : start + len(asked.inputs)])
            start += len(asked.inputs)

    def _next(self) -> list[Asked]:
        """Wait for requests and return the next batch, or an empty list once the batcher is closed and idle."""
        while True:
            with self._changed:
                while not (self._queue or self._closed):
                    self._wait()
                if not self._queue:
                    return []
                batch, size = list[Asked](), 0
                for asked in sorted(self._queue, key=lambda asked: len(asked.inputs)):
                    fits = size + len(asked.inputs) <= self._most
                    if not batch or (fits and asked.compute == batch[0].compute):
                        self._queue.remove(asked)
                        batch.append(asked)
                        size += len(asked.inputs)
            batch = [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]
            if batch:
                return batch


class Predictions:
    """The handler of a server's `/predict` requests, which answers a limited number of requests at a time."""

    def __init__(self, adapters: ServedAdapters, admission: Admission, metrics: Counted) -> None:
        self._adapters, self._admission, self._metrics = adapters, admission, metrics
        self._windows: dict[str, Windows] = {}
        self.batcher = Batcher(admission.limits.images, metrics.passes.observe)
        self.native_batcher = Batcher(TOGETHER, metrics.passes.observe)
        """The batcher of native vision-language models, whose passes would hold up those of other adapters."""

    async def answer(self, request: Request) -> Response:
        """Return the response to a request; it raises the errors that `answered` does."""
        read = partial(sent, most=self._admission.limits.images)
        return await answered(request, self._admission, read, self._predicted)

    async def _predicted(self, request: tuple[list[File], Asking]) -> dict[str, object]:
        """Return the JSON-serialisable predictions for the images and settings of a request."""
        (files, asking), now = request, self._adapters.now
        names, settings = asking.adapters or [now.default], asking.model_dump(exclude={"adapters"})
        query = Query(**settings | {"maps": asking.maps or asking.explain})
        if (in_parts := query.explain or query.boxes) and len(names) > 1:
            raise AdaptError(f"explain and boxes take a single adapter, not {', '.join(names)}: name one in adapters")
        together, models = now.together(names), [now.named(name) for name in names]
        together.check_query(query)

        def look(image: object, name: str = "a window") -> Prepared:
            pixels = together.pixels(image, name=name)
            for model in together.native:
                size = next(own.size for own in pixels if isinstance(own, Image | PreparedImage))
                check_tokens(model.backbone, size, name, self._admission.limits.tokens)
            return pixels

        def opened(content: bytes, name: str) -> Any:
            return open_image(content, turned=together.turnings == {True}, name=name)

        def more(width: int, height: int) -> int:
            parts = count(width, height) if query.boxes else PLACES * query.explain
            return _PIXELS_OF_A_PART * parts + _SAID_OF_A_PIXEL * together.map_pixels(query)

        kind, at_a_time = ("requests with explain or boxes", 1) if in_parts else ("classifications", None)
        read = opened if query.boxes else look
        async with self._admission.images(kind, files, read, more, at_a_time) as images:
            if query.boxes:
                rows: list[Sequence[Prediction]] = [[await self._found(together, query, each, look)] for each in images]
            else:
                own = replace(query, maps=query.maps and not query.explain, explain=False)
                rows = await self.passed(Classifying(together, own), images, bool(together.native))
            if query.explain:
                seen = zip(images, rows, strict=True)
                rows = [[await self._explained(models[0], image[0], row[0])] for image, row in seen]
            if query.maps:
                rows = [await self._admission.aside(partial(_drawn, models, row, query.explain)) for row in rows]
        for name in names:
            self._metrics.images.labels(name).inc(len(rows))
        alarms = {}
        for name, answers in zip(names, zip(*rows, strict=True), strict=True):
            last = self._compared(name, now.named(name).watch, answers)
            if last is not None and last.alarm:
                alarms[name] = summary([last])
        return {
            "alarms": alarms,
            "results": [
                {
                    "image": name,
                    "answers": [{"adapter": adapter, **each.plain()} for adapter, each in zip(names, row, strict=True)],
                }
                for (name, _), row in zip(files, rows, strict=True)
            ],
        }

    async def passed(self, compute: Callable[[Sequence[Any]], Iterable[Any]], inputs: Any, native: bool) -> list[Any]:
        """Return what `compute` makes of inputs, in passes among those of other requests."""
        batcher = self.native_batcher if native else self.batcher
        return await asyncio.wrap_future(batcher.ask(Asked(compute, inputs)).answer)

    async def _found(
        self, together: SideBySide, query: Query, image: Image, look: Callable[[Image], Prepared]
    ) -> Prediction:
        """Return the prediction for an image with the boxes of `windows`, some of which are in a pass."""
        own, places, answers = of_each(query), [*windows(*image.size)], []
        for part in in_batches(places, _PARTS):
            cropped = partial(list[Prepared], map(look, map(image.crop, part)))
            seen = await self._admission.aside(cropped, image.width * image.height)
            answers += await self.passed(Classifying(together, own), seen, bool(together.native))
        return await self._admission.aside(partial(found, places, [answer for [answer] in answers], own))

    async def _explained(self, model: ServedModel, image: Tensor, prediction: Prediction) -> Prediction:
        """Return a prediction with the map of what it rests on, for which some covered images are in a pass."""
        label, aside = model.class_names.index(prediction.top[0][0]), self._admission.aside
        own = image.to(model.backbone.device)
        occlusion = await aside(partial(Occlusion, model, own, label, model.answers.several))

        def log_odds(covers: Sequence[Tensor]) -> list[float]:
            with evaluating(model), torch.no_grad():
                return occlusion.log_odds(torch.stack([*covers])).tolist()

        parts = occlusion.covers.split(_PARTS)
        odds = [each for part in parts for each in await self.passed(log_odds, part, False)]
        return replace(prediction, map=Map((await aside(partial(occlusion.falls, torch.tensor(odds)))).cpu(), image))

    def _compared(self, name: str, watch: Watch | None, answers: Sequence[Prediction]) -> Window | None:
        """Count an adapter's answers in its windows, which begin anew with another adapter of its name.

        Return the last window, if there is one.
        """
        if name not in self._windows or self._windows[name].watch is not watch:
            self._windows[name] = Windows(watch)
        windows = self._windows[name]
        for answer in answers:
            for window in windows.add(answer.sighting):
                self._metrics.windows.labels(name).inc()
                self._metrics.alarms.labels(name).inc(window.alarm)
                self._metrics.window_p.labels(name).set(window.p)
        return windows.last


def _drawn(models: Sequence[Adapted[Any]], row: Sequence[Prediction], explain: bool) -> list[Prediction]:
    """Return the models' predictions for an image, with pictures of their maps to send."""
    from adapt.evaluation.maps import as_picture, ends_of_colour, heat, pixel_threshold

    drawn = []
    for model, prediction in zip(models, row, strict=True):
        if prediction.map is not None:
            scores, threshold = prediction.map.scores, None if explain else pixel_threshold(model)
            picture, told = as_picture(scores, threshold)
            low = 0.0 if explain else float(scores.median())
            ends = ends_of_colour([low], [told["highest"]], threshold)
            overlay = heat(model.backbone.preprocess.picture(prediction.map.pixels), scores, ends)
            for name, each in (("scores", picture), ("overlay", overlay)):
                each.save(file := BytesIO(), "PNG")
                told[name] = base64.b64encode(file.getvalue()).decode()
            prediction = replace(prediction, map=None, drawn=told)
        drawn.append(prediction)
    return drawn


def check_tokens(backbone: Any, size: tuple[int, int], name: str, most: int) -> None:
    """Raise AdaptError if an image of `size`, with the usual question about it, takes more than `most` tokens."""
    allowed = min(most, backbone.longest)
    [tokens] = backbone.lengths([Chat.about(backbone.question)], [[size]], asks=True)
    if tokens > allowed:
        raise AdaptError(f"{name} takes {tokens:,} tokens, and may have {allowed:,}: send a smaller image")


async def answered(
    request: Request,
    admission: Admission,
    read: Callable[[Request], Awaitable[Read]],
    compute: Callable[[Read], Awaitable[dict[str, object]]],
) -> Response:
    """Return the JSON that `compute` makes of a request that `read` has read.

    Raises AdaptError or HTTPException for an invalid request, Crowded if the server is overloaded, HTTPException with
    status 504 after the time limit, and ClientDisconnect if the client has disconnected.
    """
    seconds = admission.limits.seconds
    try:
        async with asyncio.timeout(seconds) as given, admission.body(request):
            asked = await read(request)
            leaving = asyncio.create_task(wait_for_disconnect(request, given))
            try:
                return JSONResponse(await compute(asked))
            finally:
                leaving.cancel()
    except TimeoutError:
        raise await unanswered(request, seconds) from None


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
