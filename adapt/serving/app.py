"""The HTTP interface: predictions, the adapters that give them, health, metrics, and a page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse

from adapt import __version__
from adapt.data.decoding.decoded import processors
from adapt.errors import AdaptError
from adapt.models.many import SideBySide
from adapt.serving.adapters import NoSuchAdapter, NotAllowed, ServedAdapters, TooManyAdapters
from adapt.serving.batching import Answered, Asked, Batcher
from adapt.serving.messages import (
    AdapterCard,
    AdapterName,
    Asking,
    Health,
    ImagesAnswered,
    ImagesInJson,
    LoadAdapter,
    Problem,
    Sent,
    answers,
    sent,
)
from adapt.serving.middleware import Around, Counted
from adapt.serving.threads import without_team

_STATUS = {NoSuchAdapter: 404, NotAllowed: 403, TooManyAdapters: 409}  # of other mistakes: 422
_PROBLEMS: dict[int | str, Any] = {
    status: {"model": Problem} for status in (400, 403, 404, 409, 413, 415, 422, 503, 504)
}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and all of them together."""

    body_bytes: int = 20 * 2**20
    images: int = 32
    """Of a request, and of a pass."""
    requests: int = 64
    """That are read and answered at one time."""
    seconds: float = 30.0
    """Until there must be an answer."""


def create_app(adapters: ServedAdapters, limits: Limits | None = None, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """The application over `adapters`; `hosts` are the names by which it may be asked.

    Closing it answers what waits. Nothing that it serves, its page included, calls another server.
    """
    limits, metrics = limits or Limits(), Counted()
    batcher = Batcher(limits.images, metrics.passes.observe)
    readers = ThreadPoolExecutor(processors(), "adapt-reader", without_team)  # of images beside one another
    metrics.waiting.set_function(lambda: len(batcher))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        readers.shutdown()
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title="adapt", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts])
    app.add_middleware(Around, most=limits.body_bytes, metrics=metrics)
    _add_problems(app)
    _add_predict(app, adapters, limits, metrics, batcher, readers)
    _add_adapters(app, adapters)
    _add_watching(app, adapters, metrics, batcher)
    _add_page(app)
    return app


def _add_problems(app: FastAPI) -> None:
    """Every refusal is one line under `detail`."""

    @app.exception_handler(AdaptError)
    async def mistake(request: Request, error: AdaptError) -> Response:
        return JSONResponse({"detail": str(error)}, _STATUS.get(type(error), 422))

    @app.exception_handler(RequestValidationError)
    async def misfit(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)


def _add_predict(
    app: FastAPI,
    adapters: ServedAdapters,
    limits: Limits,
    metrics: Counted,
    batcher: Batcher,
    readers: ThreadPoolExecutor,
) -> None:
    def read(given: Sent, together: SideBySide, answer: Future[Answered]) -> None:
        """Decodes the images and hands them to the batcher, which need not wait for the loop."""
        pixels = [together.pixels(content, name=name) for name, content in given.files]
        batcher.ask(Asked(together, given.wanted, pixels, answer))

    async def results(request: Request) -> Any:
        given, now = await sent(request, limits.images), adapters.now
        names = given.asking.adapters or [now.default]
        together, answer = now.together(names), Future[Answered]()
        try:
            await asyncio.get_running_loop().run_in_executor(readers, read, given, together, answer)
            rows = await asyncio.wrap_future(answer)
        finally:
            answer.cancel()  # nothing, once it is there; else nobody waits for it any longer
        for name in names:
            metrics.images.labels(name).inc(len(rows))
        return answers(given.files, names, rows)

    taken = asyncio.Semaphore(limits.requests)
    described: dict[str, Any] = {"response_model": ImagesAnswered, "responses": _PROBLEMS}

    @app.post("/predict", **described, openapi_extra={"requestBody": _body(limits)})
    async def predict(request: Request) -> Response:
        """Classify images, sent as files or as base64 in JSON, by one adapter or several side by side."""
        if taken.locked():  # before the body is read, which takes memory
            detail = f"{limits.requests} requests are being answered already: come again in a second"
            return JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})
        try:
            async with taken, asyncio.timeout(limits.seconds):
                return JSONResponse(await results(request))
        except TimeoutError:
            return JSONResponse({"detail": f"there was no answer within {limits.seconds:g} seconds"}, 504)


def _body(limits: Limits) -> dict[str, Any]:
    """The two forms of a request's body, for OpenAPI: the endpoint reads either by its content type."""
    fields = Asking.model_json_schema()["properties"]
    images = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": limits.images,
    }
    upload = {"type": "object", "required": ["images"], "properties": {"images": images, **fields}}
    in_json = ImagesInJson.model_json_schema()
    return {
        "required": True,
        "content": {"application/json": {"schema": in_json}, "multipart/form-data": {"schema": upload}},
    }


def _add_adapters(app: FastAPI, adapters: ServedAdapters) -> None:
    def cards() -> list[AdapterCard]:
        now = adapters.now
        return [
            AdapterCard(
                name=name,
                method=model.method.name,
                backbone=model.backbone.name,
                classes=list(model.class_names),
                default=name == now.default,
            )
            for name, model in now.models.items()
        ]

    @app.get("/adapters", responses={400: {"model": Problem}})
    def list_adapters() -> list[AdapterCard]:
        """The adapters that are loaded."""
        return cards()

    @app.post("/adapters", status_code=201, responses=_PROBLEMS)
    def load_adapter(wanted: LoadAdapter) -> list[AdapterCard]:
        """Load an adapter of the server's folder, while others are asked."""
        adapters.load(wanted.path, wanted.name)
        return cards()

    @app.put("/adapters/default", responses=_PROBLEMS)
    def switch_default(wanted: AdapterName) -> list[AdapterCard]:
        """Make an adapter the one that answers where none is named."""
        adapters.switch(wanted.name)
        return cards()

    @app.delete("/adapters/{name}", responses=_PROBLEMS)
    def unload_adapter(name: str) -> list[AdapterCard]:
        """Unload an adapter; requests that have begun are still answered."""
        adapters.unload(name)
        return cards()


def _add_watching(app: FastAPI, adapters: ServedAdapters, metrics: Counted, batcher: Batcher) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", responses={400: {"model": Problem}})
    async def health() -> Health:
        """Whether the server answers."""
        return Health(status="ok", adapters=len(adapters.now.models), waiting=len(batcher))

    @app.get("/metrics", include_in_schema=False)
    def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    text = files("adapt.serving").joinpath("page.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src blob:; "
        "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    )

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})
