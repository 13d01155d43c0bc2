"""Connections with time limits, so that a client that sends slowly, too much or nothing does not block others.

uvicorn's own protocol waits forever for the rest of a request, and accepts connections until there are no file
descriptors left.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

_OVERHEAD = 2**18  # maximum bytes of a request beside its body
_ORDER = itertools.count()


class Connection(HttpToolsProtocol):
    """A uvicorn connection with time limits for headers (`head_seconds`), and for a body or a response (`seconds`).

    If there are more than `most` connections, the connection that has waited longest for a complete request is closed.
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
        self._overhead = 0
        self._since: int | None = None  # order of starting to wait for a complete request; None while there is one
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
        if self._overhead > _OVERHEAD and not self.transport.is_closing():
            self._refuse(431, f"the request has more than {_OVERHEAD:,} bytes beside its body: send shorter headers")

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._wait(self._seconds)

    def on_body(self, body: bytes) -> None:
        self._overhead -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._overhead = 0
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
        self._refuse(400, msg)

    def _wait(self, seconds: float) -> None:
        self._stop()
        self._since = next(_ORDER)
        self._ends = self.loop.call_later(
            seconds, self._refuse, 408, f"no complete request arrived within {seconds:g} seconds"
        )

    def _stop(self) -> None:
        self._since = None
        if self._ends is not None:
            self._ends.cancel()

    def _go_on(self) -> None:
        if self._gives_up is not None:
            self._gives_up.cancel()

    def _refuse(self, status: int, detail: str) -> None:
        """Close the connection, after an error response with `status` and `detail` if no response has started yet."""
        if self._overhead and (self.cycle is None or not self.cycle.response_started):
            body = json.dumps({"detail": detail}).encode()
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {len(body)}\r\n"
            self.transport.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
        self.transport.close()
