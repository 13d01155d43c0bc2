"""Download of images from web addresses, within limits of time and size, and only if the caller allows it."""

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
    """Return whether `source` starts with http:// or https://."""
    return re.match(r"https?://", source, re.IGNORECASE) is not None


def fetched(address: str) -> bytes:
    """Return the content of an http or https address, which may be no larger than an image file may be (256 MiB).

    Raises AdaptError if the content has not arrived completely within 10 seconds, if the server answers with an error
    or too many bytes, and if it redirects to anything other than http and https.
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
    """A handler that follows redirects only to http and https, whereas urllib's own also follows them to ftp."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not is_address(newurl):
            raise ValueError(f"it leads to {newurl!r}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _left(until: float) -> float:
    """Return the seconds left until the time `until`. Raises TimeoutError if it has passed."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")  # as a socket says it
    return left


class _Until(urllib.request.AbstractHTTPHandler):
    """A urllib handler with a deadline for the entire request: urllib's own timeout restarts with each byte."""

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
    """A readable stream over a socket that raises TimeoutError when the deadline has passed."""

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
