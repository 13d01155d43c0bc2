"""The server's process: uvicorn with a limit on the time until it ends, and connections with time limits.

A client that sends slowly, too much or nothing does not block others: uvicorn's own protocol waits forever for the rest
of a request, and accepts connections until there are no file descriptors left.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from types import FrameType
from typing import cast

import uvicorn
from PIL import PngImagePlugin
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from adapt.common.interrupt import ending, stop_elsewhere

_OVERHEAD = 2**16  # maximum bytes of a request beside its body, which may be in chunks
_OF_CHUNKS = 64  # bytes of a body to each byte more, or chunk more, that it may take
_CHUNKS = 2048
_HEADERS = 100
_QUEUED = 16  # requests of one connection that wait for their turn
_LATE = 1.0  # seconds until a client that sends too much is told so
_ORDER = itertools.count()


class Connection(HttpToolsProtocol):
    """A uvicorn connection with time limits for headers (`head_seconds`), and for a body or a response (`seconds`).

    If there are more than `most` connections, the connection that has waited longest for a complete request is closed.
    A connection on which more than 16 requests wait is closed too, because everything that one read brings is parsed in
    the event loop, while no other client is answered. A client that sends too much is told so after a second only, so
    that it does not do it again at once, and not at all while earlier requests have no answer.

    If the application's lifespan state has a function `refused`, it is called for a request that is refused with its
    scope as far as it was read, the status, the seconds since the request began, the bytes of the response's body, and
    whether the application is answering the request. It returns the request's id.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        head_seconds: float,
        seconds: float,
        most: int,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_seconds, self._seconds, self._most = head_seconds, seconds, most
        self._overhead = self._body = self._chunks = 0  # bytes, and pieces, of the request that is being read
        # of a client that sends too much, to which nobody listens any more
        self._refusal: tuple[int, str] | None = None
        self._in_head, self._may_tell = True, True
        self._since: int | None = None  # order of starting to wait for a complete request; None while there is one
        self._began: float | None = None  # time of the first byte of the request that is being read
        self._ends: asyncio.TimerHandle | None = None
        self._gives_up: asyncio.TimerHandle | None = None  # closes on a client that does not read its answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._wait(self._head_seconds)
        if len(self.connections) > self._most:
            idle = {each._since: each for each in self.connections if isinstance(each, Connection)}
            oldest = idle[min(since for since in idle if since is not None)]  # this one, if no other is idle
            self.connections.discard(oldest)  # connection_lost would do so only later
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._go_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._overhead += len(data)
        super().data_received(data)
        too_much = self._overhead > _OVERHEAD + self._body // _OF_CHUNKS
        if too_much and self._refusal is None and not self.transport.is_closing():
            detail = f"the request has more than {_OVERHEAD:,} bytes beside its body"
            self._refusal = 431, f"{detail}: send shorter headers or larger chunks"
            self._refuse_late()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._began = self.loop.time()
        if len(self.pipeline) >= _QUEUED:
            self._stop_parsing(429, f"more than {_QUEUED} requests wait on this connection: wait for their answers")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > _HEADERS:
            self._stop_parsing(431, f"the request has more than {_HEADERS} headers: send fewer")

    def on_headers_complete(self) -> None:
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
            self._stop_parsing(400, f"the request has {hosts} headers Host; expected one")
        super().on_headers_complete()
        self._in_head = False
        self._wait(self._seconds)

    def on_body(self, body: bytes) -> None:
        self._overhead -= len(body)
        self._body += len(body)
        self._chunks += 1
        if self._chunks > _CHUNKS + self._body // _OF_CHUNKS:
            self._stop_parsing(431, f"the body has more than {_CHUNKS:,} small chunks: send larger ones")
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._overhead = self._body = self._chunks = 0
        self._in_head, self._began = True, None
        self._stop()
        if self.cycle.response_complete:  # answered before the body was complete
            self._wait(self._head_seconds)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.cycle.more_body:
            self._wait(self._head_seconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._gives_up = self.loop.call_later(self._seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def send_400_response(self, msg: str) -> None:
        if self._refusal is None:
            self._refuse(400, msg)
        else:
            self._refuse_late()

    def _stop_parsing(self, status: int, detail: str) -> None:
        """Keep the parser from reading on, after which it calls `send_400_response`."""
        self._refusal = status, detail
        raise ValueError(detail)

    def _refuse_late(self) -> None:
        self._may_tell = not self.pipeline
        self.transport.pause_reading()
        self.pipeline.clear()
        self._wait(_LATE)

    def _wait(self, seconds: float) -> None:
        self._stop()
        self._since = next(_ORDER)
        late = 408, f"no complete request arrived within {seconds:g} seconds"
        self._ends = self.loop.call_later(
            min(seconds, _LATE) if self._refusal else seconds, self._refuse, *(self._refusal or late)
        )

    def _stop(self) -> None:
        self._since = None
        if self._ends is not None:
            self._ends.cancel()

    def _go_on(self) -> None:
        if self._gives_up is not None:
            self._gives_up.cancel()

    def _refuse(self, status: int, detail: str) -> None:
        """Close the connection, after an error response with `status` and `detail` unless others come before it."""
        self._stop()
        # the last cycle is that of an earlier request until the headers of this one are complete
        first = self.cycle is None or (
            self.cycle.response_complete if self._in_head else not self.cycle.response_started
        )
        told = self._began is not None and self._may_tell and not self.pipeline and first
        body = json.dumps({"detail": detail}).encode() if told else b""
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {len(body)}\r\n"
        refused = self.app_state.get("refused")
        if refused and self._began is not None and (told or self._in_head):
            seconds = self.loop.time() - self._began
            head += f"X-Request-Id: {refused(self.scope, status, seconds, len(body), not self._in_head)}\r\n"
        if told:
            self.transport.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
        self._began = None
        self.transport.close()


_HEAD_SECONDS = 10.0
_CONNECTIONS, _OTHER_FILES = 1000, 64  # maximum number of connections; other files that a server has open
_GRACE, _END = 5, 9  # seconds: for waiting requests, and until the process is ended


def run(app: ASGIApp, listening: socket.socket, seconds: float, reload: Callable[[], object] | None = None) -> None:
    """Serve `app` on the socket `listening` until a signal ends the server; clients have `seconds` to send a body.

    SIGHUP calls `reload`, if given, in a thread; of a server that a terminal started it says that the terminal closed.
    """
    sys.setswitchinterval(1e-4)  # or a pass waits for a busy event loop 5 ms at each of its hundreds of operations
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
    if reload is not None and hasattr(signal, "SIGHUP") and not (sys.stdin and sys.stdin.isatty()):
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=reload, daemon=True).start())
    _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        signal.alarm(_END)  # the system then ends the process, even if no Python code runs
        stop_elsewhere()
        super().handle_exit(sig, frame)
