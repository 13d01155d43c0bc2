"""Middleware around every request: a limit on its body, metrics, and security headers for browsers."""

from __future__ import annotations

import asyncio
import sys
import time

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapt.serving.web import problem

_SMALL = 2**16  # maximum bytes of a body without images; one of that size is read to its end even if refused
_TAKE_IMAGES = ("/predict", "/v1/chat/completions")
_LEFT = 499  # nginx's status for a client that did not wait, only for the metrics
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_LAST = (b"connection", b"close")  # makes uvicorn stop reading


class Counted:
    """The Prometheus metrics of one server, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("adapt_requests", "Requests.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("adapt_request_seconds", "Time to answer.", ["path"], registry=self.registry)
        self.images = Counter("adapt_images", "Images answered.", ["adapter"], registry=self.registry)
        self.tokens = Counter("adapt_tokens", "Tokens of answers in words.", ["adapter"], registry=self.registry)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.passes = Histogram("adapt_pass_images", "Images in a pass.", buckets=sizes, registry=self.registry)
        self.waiting = Gauge("adapt_waiting_requests", "Requests that wait for a pass.", registry=self.registry)


class Around:
    """ASGI middleware that answers 413 to bodies of more than `most` bytes, supports `HEAD`, and updates the metrics.

    `most` applies to the paths that take images; the limit of all other URL paths is 64 KiB. If a request is answered
    before its large body has arrived, the connection is closed, because reading such bodies from twenty clients blocked
    the event loop for all other clients.
    """

    def __init__(self, app: ASGIApp, most: int, metrics: Counted) -> None:
        self.app, self.most, self.metrics = app, most, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        bare = scope["method"] == "HEAD"  # answered like GET, but without the body
        scope = {**scope, "method": "GET"} if bare else scope
        most = self.most if scope["path"] in _TAKE_IMAGES else min(self.most, _SMALL)
        left, coming = most, announced(scope, sys.maxsize) > _SMALL  # whether a large body is still arriving

        async def receiving() -> Message:
            nonlocal left, coming
            message = await receive()
            left -= len(message.get("body", b""))
            coming = coming and message.get("more_body", False)
            if left < 0:
                raise _too_large(most)
            return message

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS, *([_LAST] if coming else [])]
            elif bare:
                message["body"] = b""
            await send(message)

        try:
            if announced(scope, 0) > most:
                refusal = _too_large(most)
                await problem(scope["path"], refusal.detail, refusal.status_code)(scope, receive, sending)
            else:
                await self.app(scope, receiving, sending)
        except ClientDisconnect:  # the client left while its body or images were read
            status = _LEFT
        except asyncio.CancelledError:  # the server is ending, and has waited as long as it could
            if not status:
                await problem(scope["path"], "the server is shutting down", 503)(scope, receive, sending)
        finally:
            path = getattr(
                scope.get("route"), "path", "other"
            )  # the route, because the path that was sent may be anything
            self.metrics.requests.labels(path, status or 500).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than {most:,} bytes: send fewer or smaller images")


def announced(scope: Scope, otherwise: int) -> int:
    """Return the length of a request's body in bytes from its headers, or `otherwise` if the body is sent in chunks."""
    headers = dict(scope["headers"])
    return otherwise if b"transfer-encoding" in headers else int(headers.get(b"content-length", 0))
