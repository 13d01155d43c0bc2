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
    """Download and return the content of an http or https address, up to the size limit of image files (256 MiB).

    Raises AdaptError if the download takes more than 10 seconds, if the server answers with an error or too many bytes,
    or if the server redirects to an address other than http and https.
    """
    until = time.monotonic() + _SECONDS
    try:
        with urllib.request.build_opener(_WithinTheWeb, _Http(until), _Https(until)).open(address) as answer:
            return read_bounded(answer, MOST_BYTES)
    except urllib.error.HTTPError as error:
        raise AdaptError(
            f"image {address!r} cannot be fetched: the server answers {error.code} {error.reason}. Check the address"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise AdaptError(f"image {address!r} cannot be fetched: {reason}. Check the address and the network") from error


class _WithinTheWeb(urllib.request.HTTPRedirectHandler):
    """A urllib handler that follows redirects to http and https only, whereas urllib's default also allows ftp."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not is_address(newurl):
            raise ValueError(f"it leads to {newurl!r}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _left(until: float) -> float:
    """Return the seconds left until the deadline `until`. Raises TimeoutError if the deadline has passed."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")  # as a socket says it
    return left


class _Until(urllib.request.AbstractHTTPHandler):
    """A urllib handler with a deadline for the entire request, because urllib's own timeout restarts with each read."""

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
    """A readable stream over a socket; a read after the deadline raises TimeoutError."""

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
