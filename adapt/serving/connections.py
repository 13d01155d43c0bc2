"""Connections under time limits, so that who sends slowly, or too much, or nothing, keeps nobody out.

uvicorn's own protocol waits for ever for the rest of a request, and takes connections until there are no more file
descriptors.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OVERHEAD = 2**18  # bytes of a request that are not its body
_ORDER = itertools.count()


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which waits for headers and for a body so many seconds each, and for a reader of answers.

    Where there are more than `most`, the one that has been without a whole request for the longest is closed.
    """

    def __init__(self, *args: Any, head_seconds: float, seconds: float, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_seconds, self._seconds, self._most = head_seconds, seconds, most
        self._overhead = 0
        self._since: int | None = None  # in which order it has no whole request to answer; none while it has
        self._ends: asyncio.TimerHandle | None = None
        self._gives_up: asyncio.TimerHandle | None = None  # on who does not read what it asked for

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait(self._head_seconds)
        if len(self.connections) > self._most:
            idle = {each._since: each for each in self.connections if isinstance(each, Connection)}
            oldest = idle[min(since for since in idle if since is not None)]  # itself, where no other is idle
            self.connections.discard(oldest)  # it is told that it is lost only later
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._go_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > _OVERHEAD and not self.transport.is_closing():
            self._refuse(431, f"the request has more than {_OVERHEAD:,} bytes beside its body")

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
        if self.cycle.response_complete:  # answered before it was there
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
            seconds, self._refuse, 408, f"no whole request came within {seconds:g} seconds"
        )

    def _stop(self) -> None:
        self._since = None
        if self._ends is not None:
            self._ends.cancel()

    def _go_on(self) -> None:
        if self._gives_up is not None:
            self._gives_up.cancel()

    def _refuse(self, status: int, detail: str) -> None:
        """Ends the connection, and says why where no answer has begun."""
        if self._overhead and (self.cycle is None or not self.cycle.response_started):
            body = json.dumps({"detail": detail}).encode()
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {len(body)}\r\n"
            self.transport.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
        self.transport.close()
