"""The server's process: uvicorn with time limits on connections, and a limit on the time until it ends."""

from __future__ import annotations

import functools
import resource
import signal
import socket
from types import FrameType
from typing import cast

import uvicorn
from PIL import PngImagePlugin
from starlette.types import ASGIApp

from adapt.common.interrupt import ending, stop_elsewhere
from adapt.serving.connections import Connection

_HEAD_SECONDS = 10.0
_CONNECTIONS, _OTHER_FILES = 1000, 64  # maximum number of connections; other files that a server has open
_GRACE, _END = 5, 9  # seconds: for waiting requests, and until the process is ended


def run(app: ASGIApp, listening: socket.socket, seconds: float) -> None:
    """Serve `app` on the socket `listening` until a signal ends the server; clients have `seconds` to send a body."""
    PngImagePlugin.MAX_TEXT_MEMORY = 2**22  # bytes that a header may unpack to; the default is sixteen times as much
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = max(1, min(_CONNECTIONS, files - _OTHER_FILES)) if files != resource.RLIM_INFINITY else _CONNECTIONS
    connection = functools.partial(Connection, head_seconds=_HEAD_SECONDS, seconds=seconds, most=most)
    config = uvicorn.Config(
        app,
        http=cast("type[Connection]", connection),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    for number in set(ending()) - {signal.SIGINT, signal.SIGTERM}:  # uvicorn handles these itself
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGTERM))
    _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        signal.alarm(_END)  # the system then ends the process, even if no Python code runs
        stop_elsewhere()
        super().handle_exit(sig, frame)
