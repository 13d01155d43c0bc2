"""The server's web pages: one file each, with the style and the script that they share put in, and a policy."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import Request, Response
from starlette.responses import HTMLResponse


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
