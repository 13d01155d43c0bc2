"""Download of images and tar shards from web addresses, only if the caller allows it; images within limits of time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from adapt.common.disk import replacing
from adapt.common.errors import AdaptError
from adapt.data.decoding.files import MOST_BYTES

_SILENCE = 60.0  # seconds, of a server that sends a large file
_SECONDS = 10.0  # from the first step to the last byte, including redirects


def fetched(address: str) -> bytes:
    """Download and return the content of an http or https address, up to the size limit of image files (256 MiB).

    Raises AdaptError if the download takes more than 10 seconds, if the server answers with an error or too many bytes,
    or if the server redirects to an address other than http and https.
    """
    with _explained(f"image {address!r} cannot be fetched"), ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _content(address)).result()  # this thread may have a loop, as in a notebook


async def _content(address: str) -> bytes:
    content = bytearray()
    async with (
        asyncio.timeout(_SECONDS),
        httpx.AsyncClient(**_options(None)) as client,
        client.stream("GET", address) as answer,
    ):
        answer.raise_for_status()
        async for part in answer.aiter_raw():
            content += part
            if len(content) > MOST_BYTES:
                raise OSError(f"it has more than {MOST_BYTES:,} bytes")
    return bytes(content)


def download(address: str, path: Path) -> None:
    """Download the file at an http or https address to `path`, which is written whole or not at all.

    Raises AdaptError if the server does not answer, ends early, or says nothing for a minute.
    """
    with (
        _explained(f"{address!r} cannot be downloaded"),
        httpx.Client(**_options(_SILENCE)) as client,
        client.stream("GET", address) as answer,
        replacing(path) as temporary,
        temporary.open("wb") as file,
    ):
        answer.raise_for_status()
        for block in answer.iter_raw():
            file.write(block)


def _options(timeout: float | None) -> dict[str, Any]:
    """Return a client's options: redirects, the system's certificates, and bytes as they are sent."""
    own = {"follow_redirects": True, "verify": ssl.create_default_context(), "timeout": timeout}
    return own | {"headers": {"Accept-Encoding": "identity"}}


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn errors of a download in the `with` block into an AdaptError that begins with `what`."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        answer = f"the server answers {error.response.status_code} {error.response.reason_phrase}"
        raise AdaptError(f"{what}: {answer}. Check the address") from error
    except httpx.UnsupportedProtocol as error:
        leads = f"it leads to {str(error.request.url)!r}, which is not allowed"
        raise AdaptError(f"{what}: {leads}. Check the address") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        reason = "timed out" if isinstance(error, TimeoutError | httpx.TimeoutException) else error
        raise AdaptError(f"{what}: {reason}. Check the address and the network") from error
