"""Download of images and tar shards from web addresses, only if the caller allows it; images within limits of time."""

from __future__ import annotations

import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from socket import socket
from typing import IO, TYPE_CHECKING

from adapt.common.disk import read_bounded, replacing
from adapt.common.errors import AdaptError
from adapt.data.decoding.files import MOST_BYTES, is_address

if TYPE_CHECKING:
    from http.client import HTTPMessage
    from urllib.request import Request

    from _typeshed import WriteableBuffer

_SILENCE = 60.0  # seconds, of a server that sends a large file
_SECONDS = 10.0  # from the first step to the last byte, including redirects


def fetched(address: str) -> bytes:
    """Download and return the content of an http or https address, up to the size limit of image files (256 MiB).

    Raises AdaptError if the download takes more than 10 seconds, if the server answers with an error or too many bytes,
    or if the server redirects to an address other than http and https.
    """
    until = time.monotonic() + _SECONDS
    try:
        with urllib.request.build_opener(_WithinTheWeb, _Until(until)).open(address) as answer:
            return read_bounded(answer, MOST_BYTES)
    except urllib.error.HTTPError as error:
        raise AdaptError(
            f"image {address!r} cannot be fetched: the server answers {error.code} {error.reason}. Check the address"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise AdaptError(f"image {address!r} cannot be fetched: {reason}. Check the address and the network") from error


def download(address: str, path: Path) -> None:
    """Download the file at an http or https address to `path`, which is written whole or not at all.

    Raises AdaptError if the server does not answer, ends early, or says nothing for a minute.
    """
    try:
        with (
            urllib.request.build_opener(_WithinTheWeb).open(address, timeout=_SILENCE) as answer,
            replacing(path) as temporary,
            temporary.open("wb") as file,
        ):
            for block in iter(partial(_block, answer, address), b""):
                file.write(block)
            expected = answer.headers.get("Content-Length")
            if expected is not None and file.tell() != int(expected):
                raise _failed(address, f"it ended after {file.tell():,} of {int(expected):,} bytes")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _failed(address, getattr(error, "reason", error)) from error


def _block(answer: IO[bytes], address: str) -> bytes:
    try:
        return answer.read(2**20)
    except (OSError, http.client.HTTPException) as error:  # here, as an OSError below would seem to be the disk's
        raise _failed(address, error) from error


def _failed(address: str, reason: object) -> AdaptError:
    return AdaptError(f"{address!r} cannot be downloaded: {reason}. Check the address and the network")


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


class _Until(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """A urllib handler with a deadline for the entire request, because urllib's own timeout restarts with each read."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self._until = until

    def do_open(
        self, http_class: Callable[..., http.client.HTTPConnection], req: Request, **http_conn_args: object
    ) -> http.client.HTTPResponse:
        def answer(own: socket, **options: object) -> http.client.HTTPResponse:
            return http.client.HTTPResponse(_Reading(own, self._until), **options)  # type: ignore[arg-type]

        def connection(*args: object, **options: object) -> http.client.HTTPConnection:
            made = http_class(*args, **options | {"timeout": _left(self._until)})
            made.response_class = answer  # type: ignore[assignment]
            return made

        return super().do_open(connection, req, **http_conn_args)


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
