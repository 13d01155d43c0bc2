"""What each web application here has: its pages, the bodies of its errors, and a guard against unwanted requests."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from importlib.resources import files
from ipaddress import ip_address
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

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


class Guard:
    """ASGI middleware that answers 400 to unknown host names, 401 to wrong tokens, and 403 to pages of other sites.

    `hosts` are the known host names, in which `*` stands for every name and `localhost` for all loopback addresses.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str | None) -> None:
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _split(f"//{host}").hostname or ""
        known = "*" in self.hosts or name in self.hosts or ("localhost" in self.hosts and is_loopback(name))
        if not known:
            return problem(path, f"the server is not called {host[:100]!r}: use its own name", 400)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), (self.token or "").encode())
        if self.token is not None and path not in _OPEN and not right:
            detail = "the token is missing or wrong: send the header Authorization: Bearer TOKEN"
            return problem(path, detail, 401, {"WWW-Authenticate": "Bearer"})
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
