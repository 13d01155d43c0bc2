"""The HTTP interface: predictions, answers in words, embeddings, search, adapters, health, metrics, and two pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from adapt.common.errors import AdaptError
from adapt.common.version import __version__
from adapt.models.base import is_native
from adapt.models.prediction import Query
from adapt.serving.adapters import NoSuchAdapter, NotAllowed, ServedAdapters, ServedModel, TooManyAdapters
from adapt.serving.admission import Admission, Crowded, Limits, TooManyPixels
from adapt.serving.chat_requests import ChatCompletions, ChatRequest, Completion, ModelCard, ModelCards
from adapt.serving.embedding_requests import Embedded, EmbeddingRequest, Embeddings, Searched, SearchRequest
from adapt.serving.predict_requests import Asking, ImagesAnswered, ImagesInJson, Message, Predictions
from adapt.serving.web import Around, Counted, Guard, Mistaken, Problem, Token, page, problem
from adapt.serving.worker import Worker


class LoadAdapter(Message):
    """A request to load an adapter, given by its path in the server's folder and an optional name."""

    path: str = Field(min_length=1, max_length=1000)
    name: str | None = Field(default=None, min_length=1, max_length=200)


class AdapterName(Message):
    """The name of a loaded adapter."""

    name: str


class AdapterCard(BaseModel):
    """The description of a loaded adapter."""

    name: str
    method: str
    backbone: str | None
    classes: list[str]
    """The classes that `/predict` answers with; none if the adapter answers in words alone."""
    chats: bool
    """Whether it answers in words."""
    maps: bool
    """Whether it draws maps, which `/predict` gives where `maps` is true."""
    explains: bool
    """Whether what its answers rest on can be mapped, where `explain` is true."""
    boxes: bool
    """Whether its classes can be looked for in windows of images, where `boxes` is true."""
    turned: bool
    """Whether it reads images as displayed, turned by EXIF, which pixels of boxes are of; otherwise as stored."""
    default: bool


class Reloaded(BaseModel):
    """The names of the adapters and indexes that were loaded again or not, and errors of those that cannot be."""

    reloaded: list[str]
    unchanged: list[str]
    failed: dict[str, str]


class Health(BaseModel):
    """The server's state, which is `ok` or `stuck`, and its numbers of loaded adapters and of waiting requests."""

    status: str
    adapters: int
    waiting: int


@dataclass(frozen=True)
class Work:
    """The work of all threads of a server: decoding images, passes of classifiers, and answers in words."""

    admission: Admission
    predictions: Predictions
    conversations: ChatCompletions

    @property
    def _workers(self) -> tuple[Worker[Any], ...]:
        """The threads that decode images, and those that run models."""
        models = self.predictions.batcher, self.predictions.native_batcher, self.conversations.talker
        return self.admission.readers, *models

    @property
    def waiting(self) -> int:
        """The number of requests that wait for an image-decoding thread or for a model."""
        return sum(map(len, self._workers))

    @property
    def stuck(self) -> bool:
        """Whether decoding an image, a pass of a model or a token exceeds the time limit of a request."""
        return max(worker.longest() for worker in self._workers) > self.admission.limits.seconds

    def close(self, seconds: float) -> None:
        """Stop decoding images, and answer the requests that already wait for a model, for at most `seconds`."""
        readers, *models = self._workers
        readers.close(0)
        ends = time.monotonic() + seconds
        for worker in models:
            worker.close(max(0.0, ends - time.monotonic()))


# other mistakes: 422
_STATUS = {NoSuchAdapter: 404, NotAllowed: 403, TooManyAdapters: 409, TooManyPixels: 413, Crowded: 503}
_AGAIN = {"Retry-After": "1"}
_PROBLEMS: dict[int | str, Any] = {
    status: {"model": Problem} for status in (400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503, 504)
}


def create_app(
    adapters: ServedAdapters,
    limits: Limits | None = None,
    hosts: Collection[str] = ("*",),
    tokens: Collection[Token] = (),
    access_log: bool = False,
) -> FastAPI:
    """Return the FastAPI application that serves `adapters`.

    `hosts` are the host names under which requests may address the server; `localhost` stands for all loopback
    addresses. If there are `tokens`, all requests except for the pages and `/healthz` must contain one of them. With
    an `access_log`, each request is logged as a line of JSON. On shutdown, the application answers waiting requests
    for at most two seconds. Neither the application nor its web pages contact another server.
    """
    limits, metrics = limits or Limits(), Counted(access_log)
    admission = Admission(limits)
    predictions = Predictions(adapters, admission, metrics)
    conversations = ChatCompletions(adapters, admission, metrics)
    work = Work(admission, predictions, conversations)
    metrics.waiting.set_function(lambda: work.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        yield {"refused": metrics.refused}
        await asyncio.to_thread(work.close, 2.0)

    app = FastAPI(title="adapt", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, hosts=hosts, tokens=tokens)
    app.add_middleware(Around, most=limits.body_bytes, metrics=metrics)
    _add_problems(app)
    _add_predict(app, predictions, limits)
    _add_openai(app, adapters, conversations, Embeddings(adapters, admission, metrics, predictions))
    _add_adapters(app, adapters)
    _add_watching(app, adapters, work, metrics)
    app.add_route("/", page("page.html"), include_in_schema=False)
    app.add_route("/chat", page("chat.html"), include_in_schema=False)
    return app


def _add_problems(app: FastAPI) -> None:
    """Register handlers that answer every error with a JSON object, in OpenAI's form for the paths of its interface."""

    @app.exception_handler(AdaptError)
    async def mistake(request: Request, error: AdaptError) -> Response:
        status = _STATUS.get(type(error), 422)
        return problem(request.url.path, str(error), status, _AGAIN if status == 503 else None)

    @app.exception_handler(HTTPException)
    async def refusal(request: Request, error: HTTPException) -> Response:
        return problem(request.url.path, error.detail, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def misfit(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return problem(request.url.path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 422)


def _add_predict(app: FastAPI, predictions: Predictions, limits: Limits) -> None:
    fields = Asking.model_json_schema()["properties"]
    images = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": limits.images,
    }
    upload = {"type": "object", "required": ["images"], "properties": {"images": images, **fields}}
    kinds = {"application/json": ImagesInJson.model_json_schema(), "multipart/form-data": upload}
    content = {kind: {"schema": schema} for kind, schema in kinds.items()}
    body = {"requestBody": {"required": True, "content": content}}

    @app.post("/predict", response_model=ImagesAnswered, responses=_PROBLEMS, openapi_extra=body)
    async def predict(request: Request) -> Response:
        """Classify images, sent as files or as base64 in JSON, with one or more adapters."""
        return await predictions.answer(request)


def _add_openai(app: FastAPI, adapters: ServedAdapters, conversations: ChatCompletions, embeddings: Embeddings) -> None:
    """Register the paths of OpenAI's interface, and that of search, whose requests share parts."""
    parts: dict[str, object] = {}
    started, problems = int(time.time()), {name: {"model": Mistaken} for name in _PROBLEMS}

    def takes(kind: type[Message], problems: dict[int | str, Any] = problems) -> dict[str, Any]:
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        parts.update(schema.pop("$defs", {}))
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        return {"responses": problems, "openapi_extra": {"requestBody": body}}

    @app.post("/v1/chat/completions", response_model=Completion, **takes(ChatRequest))
    async def complete(request: Request) -> Response:
        """Answer a conversation about images in words, at once or as a stream of events."""
        return await conversations.answer(request)

    @app.post("/v1/embeddings", response_model=Embedded, **takes(EmbeddingRequest))
    async def embed(request: Request) -> Response:
        """Return the unit-length features of texts and images."""
        return await embeddings.answer(request)

    @app.post("/search", response_model=Searched, **takes(SearchRequest, _PROBLEMS))
    async def search(request: Request) -> Response:
        """Return the entries of an index that are nearest to texts and images."""
        return await embeddings.search(request)

    @app.get("/v1/models")
    def list_models() -> ModelCards:
        """List the adapters, each of which answers in words or embeds images."""
        return ModelCards(data=[ModelCard(id=name, created=started) for name in adapters.now.models])

    @app.get("/v1/models/{name}", responses=problems)
    def get_model(name: str) -> ModelCard:
        """Return the description of an adapter."""
        adapters.now.named(name)
        return ModelCard(id=name, created=started)

    described = app.openapi

    def with_parts() -> dict[str, object]:
        """Add the schemas to which those of the requests refer."""
        whole = described()
        whole["components"]["schemas"].update(parts)
        return whole

    app.openapi = with_parts  # type: ignore[method-assign]


def _add_adapters(app: FastAPI, adapters: ServedAdapters) -> None:
    @app.get("/adapters", responses={400: {"model": Problem}})
    def list_adapters() -> list[AdapterCard]:
        """List the adapters that are loaded."""
        now = adapters.now
        return [
            AdapterCard(
                name=name,
                method=model.method.name,
                backbone=model.backbone.name,
                classes=list(model.class_names),
                chats=is_native(model),
                maps=model.draws_maps,
                explains=_answers(model, Query(maps=True, explain=True)),
                boxes=_answers(model, Query(boxes=True)),
                turned=model.backbone.preprocess.turned,
                default=name == now.default,
            )
            for name, model in now.models.items()
        ]

    @app.post("/adapters", status_code=201, responses=_PROBLEMS)
    def load_adapter(wanted: LoadAdapter) -> list[AdapterCard]:
        """Load an adapter from the server's folder while the loaded adapters continue to answer requests."""
        adapters.load(wanted.path, wanted.name)
        return list_adapters()

    @app.put("/adapters/default", responses=_PROBLEMS)
    def switch_default(wanted: AdapterName) -> list[AdapterCard]:
        """Make an adapter the default, which answers requests that do not name an adapter."""
        adapters.switch(wanted.name)
        return list_adapters()

    @app.post("/reload", responses=_PROBLEMS)
    def reload_adapters() -> Reloaded:
        """Load the adapters and indexes again whose files have changed; one that cannot be loaded stays as it was."""
        return Reloaded(**adapters.reload())

    @app.delete("/adapters/{name}", responses=_PROBLEMS)
    def unload_adapter(name: str) -> list[AdapterCard]:
        """Unload an adapter; current requests are still answered."""
        adapters.unload(name)
        return list_adapters()


def _answers(model: ServedModel, query: Query) -> bool:
    """Return whether the model can answer the query."""
    try:
        model.check_query(query)
    except AdaptError:
        return False
    return True


def _add_watching(app: FastAPI, adapters: ServedAdapters, work: Work, metrics: Counted) -> None:
    @app.get("/healthz", responses={400: {"model": Problem}, 503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Return the server's state; the HTTP status is 503 while an operation exceeds the time limit of a request."""
        stuck = work.stuck
        response.status_code = 503 if stuck else 200
        return Health(status="stuck" if stuck else "ok", adapters=len(adapters.now.models), waiting=work.waiting)

    @app.get("/metrics", include_in_schema=False)
    def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
