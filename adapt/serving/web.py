"""What each web application here has: its pages, the bodies of its errors, and the middleware around every request.

The middleware is a guard against unwanted requests, a limit on bodies, metrics, and security headers for browsers.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from fastapi import HTTPException, Request, Response
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from prometheus_client import Counter as Count
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapt.common import plain

logger = logging.getLogger("adapt")
FAILED = "the server failed to answer this request: its log has the error"
OPENAI = "/v1/"  # below which paths are those of OpenAI's interface


class Problem(BaseModel):
    """An error message of one line."""

    detail: str


class Mistake(BaseModel):
    """An error message of one line, and its kind."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: None = None
    code: None = None


class Mistaken(BaseModel):
    """An error in the form of OpenAI's interface."""

    error: Mistake

    @classmethod
    def of(cls, message: str, status: int) -> dict[str, object]:
        """Return the body of an error response."""
        mistake = Mistake(message=message, type="server_error" if status >= 500 else "invalid_request_error")
        return cls(error=mistake).model_dump()


def problem(path: str, message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response for an error of a request to `path`."""
    if not path.startswith(OPENAI):
        return JSONResponse(Problem(detail=message).model_dump(), status, headers)
    status = 400 if status == 422 else status  # as OpenAI's interface has it
    return JSONResponse(Mistaken.of(message, status), status, headers)


_OPEN = ("/", "/chat", "/healthz")  # need no token: the pages ask for it, and monitors have none
_SAFE = ("GET", "HEAD", "OPTIONS")
HOLDER = "adapt.holder"  # where a request's scope has the name of its token
# the keys of a request's id, and of the status and bytes with which its connection refused it
_ID, _REFUSED = "adapt.id", "adapt.refused"


@dataclass(frozen=True)
class Token:
    """A secret that requests send, the name of its holder, and how many of the holder's requests run at one time."""

    secret: str
    name: str = ""
    requests: int | None = None


class Guard:
    """ASGI middleware that answers 400 to unknown host names, 401 to wrong tokens, and 403 to pages of other sites.

    `hosts` are the known host names, in which `*` stands for every name and `localhost` for all loopback addresses. A
    holder of a token who asks for more at one time than the token allows gets 429.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], tokens: Collection[Token]) -> None:
        self.app, self.hosts, self.tokens = app, hosts, tokens
        self._answering = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        name = scope.get(HOLDER, "")
        self._answering[name] += 1
        try:
            await (refusal or self.app)(scope, receive, send)
        finally:
            self._answering[name] -= 1

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _split(f"//{host}").hostname or ""
        known = "*" in self.hosts or name in self.hosts or ("localhost" in self.hosts and is_loopback(name))
        if not known:
            return problem(path, f"the server is not called {host[:100]!r}: use its own name", 400)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        secret = given.strip().encode() if scheme.lower() == "bearer" else b""
        token = [
            each for each in self.tokens if hmac.compare_digest(secret, each.secret.encode())
        ]  # all, in equal time
        if token:
            scope[HOLDER] = token[0].name
        if self.tokens and path not in _OPEN and not token:
            detail = "the token is missing or wrong: send the header Authorization: Bearer TOKEN"
            return problem(path, detail, 401, {"WWW-Authenticate": "Bearer"})
        if token and token[0].requests is not None and self._answering[token[0].name] >= token[0].requests:
            detail = f"{token[0].requests} requests with this token are answered at one time: try again in a second"
            return problem(path, detail, 429, {"Retry-After": "1"})
        if scope["method"] not in _SAFE and origin is not None and _split(origin).netloc.lower() != host.lower():
            detail = (
                f"a page of {origin[:100]!r} may not send requests to {host[:100]!r}: only the server's own page may"
            )
            return problem(path, detail, 403)
        return None


def _split(address: str) -> SplitResult:
    """Return the parts of an address, which are empty if it is invalid."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def is_loopback(name: str) -> bool:
    """Return whether a host name or IP address is a loopback address, such as localhost or 127.0.0.1."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def page(name: str) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of a page, which runs its own script alone and speaks to this server alone."""
    folder = files("adapt.serving")
    text = folder.joinpath(name).read_text(encoding="utf-8")
    for common in ("common.css", "common.js"):
        text = text.replace(f"/* {common} */", folder.joinpath(common).read_text(encoding="utf-8"))
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    )

    async def answer(request: Request) -> Response:
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    return answer


_SMALL = 2**16  # maximum bytes of a body without images; one of that size is read to its end even if refused
_TAKE_IMAGES = ("/predict", "/v1/chat/completions", "/v1/embeddings", "/search")
_LEFT = 499  # nginx's status for a client that did not wait, only for the metrics and the log
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_LAST = (b"connection", b"close")  # makes uvicorn stop reading


class Counted:
    """The Prometheus metrics of one server, in a separate registry, and its access log if `log`."""

    def __init__(self, log: bool = False) -> None:
        self.log, self.registry = log, CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Count("adapt_requests", "Requests.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("adapt_request_seconds", "Time to answer.", ["path"], registry=self.registry)
        self.images = Count("adapt_images", "Images answered.", ["adapter"], registry=self.registry)
        self.tokens = Count("adapt_tokens", "Tokens of answers in words.", ["adapter"], registry=self.registry)
        self.windows = Count("adapt_windows", "Windows of images compared.", ["adapter"], registry=self.registry)
        self.alarms = Count("adapt_alarms", "Windows unlike the training.", ["adapter"], registry=self.registry)
        self.window_p = Gauge("adapt_window_p", "p of the last window.", ["adapter"], registry=self.registry)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.passes = Histogram("adapt_pass_images", "Images in a pass.", buckets=sizes, registry=self.registry)
        self.waiting = Gauge("adapt_waiting_requests", "Requests that wait for a pass.", registry=self.registry)

    def answered(self, scope: MutableMapping[str, Any], method: str, status: int, seconds: float, sent: int) -> None:
        """Count a request that was answered after `seconds` with `sent` bytes, and log a line of JSON for it."""
        path = getattr(scope.get("route"), "path", "other")  # the route, because the path that was sent may be anything
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)
        if self.log:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "client": (scope.get("client") or [""])[0], "token": scope.get(HOLDER, ""),
                "method": method, "path": scope.get("path", ""), "status": status,
                "ms": round(1000 * seconds, 1), "bytes": sent, "id": _identified(scope),
            }  # fmt: skip
            logger.info("%s", plain.dump(line))

    def refused(self, scope: MutableMapping[str, Any], status: int, seconds: float, sent: int, answering: bool) -> str:
        """Record that a connection refused a request, and return the request's id.

        If the application is `answering` the request, `Around` counts it; otherwise it is counted here.
        """
        if answering:
            scope[_REFUSED] = status, sent
        else:
            self.answered(scope, "", status, seconds, sent)
        return _identified(scope)


def _identified(scope: MutableMapping[str, Any]) -> str:
    """Return the id of a request, which is its header `X-Request-Id` if that is a plain word."""
    asked = Headers(raw=scope.get("headers", [])).get("x-request-id", "")
    return scope.setdefault(_ID, asked if re.fullmatch(r"[\w.:-]{1,100}", asked, re.ASCII) else uuid.uuid4().hex)


class Around:
    """ASGI middleware that answers 413 to bodies of more than `most` bytes, supports `HEAD`, and updates the metrics.

    A response has the header `X-Request-Id`. `most` applies to the paths that take images; the limit of all other URL
    paths is 64 KiB. If a request is answered before its large body has arrived, the connection is closed, because
    reading such bodies from twenty clients blocked the event loop for all other clients.
    """

    def __init__(self, app: ASGIApp, most: int, metrics: Counted) -> None:
        self.app, self.most, self.metrics = app, most, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, sent = time.perf_counter(), 0, 0
        number, method = _identified(scope), scope["method"]
        bare = method == "HEAD"  # answered like GET, but without the body
        outer = scope
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
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                own = (b"x-request-id", number.encode())
                message["headers"] = [*message["headers"], own, *_HEADERS, *([_LAST] if coming else [])]
            elif bare:
                message["body"] = b""
            sent += len(message.get("body", b""))
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
        except Exception:
            if not status:
                await problem(scope["path"], FAILED, 500)(scope, receive, sending)
            raise  # uvicorn logs it
        finally:
            status, sent = outer.get(_REFUSED, (status or 500, sent))
            self.metrics.answered(scope, method, status, time.perf_counter() - started, sent)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than {most:,} bytes: send fewer or smaller images")


def announced(scope: Scope, otherwise: int) -> int:
    """Return the length of a request's body in bytes from its headers, or `otherwise` if the body is sent in chunks."""
    headers = dict(scope["headers"])
    return otherwise if b"transfer-encoding" in headers else int(headers.get(b"content-length", 0))
