"""The HTTP interface: predictions, the adapters that give them, health, metrics, and a page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import HTMLResponse, JSONResponse

from adapt import __version__
from adapt.errors import AdaptError
from adapt.serving.adapters import NoSuchAdapter, NotAllowed, ServedAdapters, TooManyAdapters
from adapt.serving.guard import Guard
from adapt.serving.messages import (
    AdapterCard,
    AdapterName,
    Asking,
    Health,
    ImagesAnswered,
    ImagesInJson,
    LoadAdapter,
    Problem,
)
from adapt.serving.middleware import Around, Counted
from adapt.serving.predicting import Limits, Predictions
from adapt.serving.reading import TooManyPixels

_STATUS = {NoSuchAdapter: 404, NotAllowed: 403, TooManyAdapters: 409, TooManyPixels: 413}  # other mistakes: 422
_PROBLEMS: dict[int | str, Any] = {
    status: {"model": Problem} for status in (400, 401, 403, 404, 409, 413, 415, 422, 500, 503, 504)
}


def create_app(
    adapters: ServedAdapters,
    limits: Limits | None = None,
    hosts: Collection[str] = ("*",),
    token: str | None = None,
) -> FastAPI:
    """Return the FastAPI application that serves `adapters`.

    `hosts` are the host names under which requests may address the server; `localhost` stands for all loopback
    addresses. If there is a `token`, all requests except for `/` and `/healthz` must contain the token. On shutdown,
    the application answers waiting requests for at most two seconds. Neither the application nor its web page contacts
    another server.
    """
    limits, metrics = limits or Limits(), Counted()
    predictions = Predictions(adapters, limits, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(predictions.close, 2.0)

    app = FastAPI(title="adapt", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, hosts=hosts, token=token)
    app.add_middleware(Around, most=limits.body_bytes, metrics=metrics)
    _add_problems(app)
    _add_predict(app, predictions)
    _add_adapters(app, adapters)
    _add_watching(app, predictions)
    _add_page(app)
    return app


def _add_problems(app: FastAPI) -> None:
    """Register handlers that answer every error with a JSON object, whose `detail` is a message of one line."""

    @app.exception_handler(AdaptError)
    async def mistake(request: Request, error: AdaptError) -> Response:
        return JSONResponse({"detail": str(error)}, _STATUS.get(type(error), 422))

    @app.exception_handler(RequestValidationError)
    async def misfit(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    @app.exception_handler(Exception)  # the error is logged as well
    async def failure(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": "the server failed to answer this request: its log has the error"}, 500)


def _add_predict(app: FastAPI, predictions: Predictions) -> None:
    described: dict[str, Any] = {"response_model": ImagesAnswered, "responses": _PROBLEMS}

    @app.post("/predict", **described, openapi_extra={"requestBody": _body(predictions.limits)})
    async def predict(request: Request) -> Response:
        """Classify images, sent as files or as base64 in JSON, with one or more adapters."""
        return await predictions.answer(request)


def _body(limits: Limits) -> dict[str, Any]:
    """Return the OpenAPI description of the body of a `/predict` request, which is JSON or an HTML form."""
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
        """List the adapters that are loaded."""
        return cards()

    @app.post("/adapters", status_code=201, responses=_PROBLEMS)
    def load_adapter(wanted: LoadAdapter) -> list[AdapterCard]:
        """Load an adapter from the server's folder while the loaded adapters continue to answer requests."""
        adapters.load(wanted.path, wanted.name)
        return cards()

    @app.put("/adapters/default", responses=_PROBLEMS)
    def switch_default(wanted: AdapterName) -> list[AdapterCard]:
        """Make an adapter the default, which answers requests that do not name an adapter."""
        adapters.switch(wanted.name)
        return cards()

    @app.delete("/adapters/{name}", responses=_PROBLEMS)
    def unload_adapter(name: str) -> list[AdapterCard]:
        """Unload an adapter; current requests are still answered."""
        adapters.unload(name)
        return cards()


def _add_watching(app: FastAPI, predictions: Predictions) -> None:
    @app.get("/healthz", responses={400: {"model": Problem}, 503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Return the server's state; the HTTP status is 503 while an operation exceeds the time limit of a request."""
        stuck, adapters = predictions.stuck, len(predictions.adapters.now.models)
        response.status_code = 503 if stuck else 200
        return Health(status="stuck" if stuck else "ok", adapters=adapters, waiting=predictions.waiting)

    @app.get("/metrics", include_in_schema=False)
    def prometheus() -> Response:
        return Response(generate_latest(predictions.metrics.registry), media_type=CONTENT_TYPE_LATEST)


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
