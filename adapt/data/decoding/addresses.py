"""Image files at web addresses, fetched only if the caller allows it, within limits."""

from __future__ import annotations

import http.client
import io
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from socket import socket
from typing import IO, TYPE_CHECKING, Any

from adapt.data.decoding.files import MOST_BYTES
from adapt.disk import read_bounded
from adapt.errors import AdaptError

if TYPE_CHECKING:
    from http.client import HTTPMessage
    from urllib.request import Request

    from _typeshed import WriteableBuffer

_SECONDS = 10.0  # from the first step to the last byte, including redirects


def is_address(source: str) -> bool:
    """Return whether it begins like a web address."""
    return re.match(r"https?://", source, re.IGNORECASE) is not None


def fetched(address: str) -> bytes:
    """Return the content of an http or https address, at most as many bytes as an image's file may have.

    Raises AdaptError if it has not arrived within 10 seconds, however slowly it trickles in, if the server answers with
    an error or more bytes, and if it redirects to anything other than http and https.
    """
    until = time.monotonic() + _SECONDS
    try:
        with urllib.request.build_opener(_WithinTheWeb, _Http(until), _Https(until)).open(address) as answer:
            return read_bounded(answer, MOST_BYTES)
    except urllib.error.HTTPError as error:
        raise AdaptError(f"image {address!r} cannot be fetched: the server says {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise AdaptError(f"image {address!r} cannot be fetched: {reason}. Check the address and the network") from error


class _WithinTheWeb(urllib.request.HTTPRedirectHandler):
    """A handler that follows redirects to http and https only; urllib's own follows to ftp too."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not is_address(newurl):
            raise ValueError(f"it leads to {newurl!r}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _left(until: float) -> float:
    """Return the seconds until then. Raises TimeoutError if none are left."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")  # as a socket says it
    return left


class _Until(urllib.request.AbstractHTTPHandler):
    """A handler of urllib whose connections end at a given time: urllib's own timeout restarts with each byte."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self._until = until

    def do_open(
        self, http_class: Callable[..., http.client.HTTPConnection], req: Request, **http_conn_args: object
    ) -> http.client.HTTPResponse:
        def answer(own: socket, **options: Any) -> http.client.HTTPResponse:
            return http.client.HTTPResponse(_Reading(own, self._until), **options)  # type: ignore[arg-type]

        def connection(*args: object, **options: object) -> http.client.HTTPConnection:
            made = http_class(*args, **options | {"timeout": _left(self._until)})
            made.response_class = answer  # type: ignore[assignment]
            return made

        return super().do_open(connection, req, **http_conn_args)


class _Http(_Until, urllib.request.HTTPHandler):
    pass


class _Https(_Until, urllib.request.HTTPSHandler):
    pass


class _Reading(io.RawIOBase):
    """The bytes that a socket receives until a given time, in place of the socket from which an answer is read."""

    def __init__(self, own: socket, until: float) -> None:
        self._socket, self._bytes, self._until = own, own.makefile("rb", buffering=0), until

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._socket.settimeout(_left(self._until))
        return self._bytes.readinto(buffer)

    def close(self) -> None:
        self._bytes.close()
        super().close()
