"""Image files at web addresses: fetched only where the caller allows it, within limits."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from typing import Any

from adapt.data.decoding.files import MOST_BYTES
from adapt.disk import read_bounded
from adapt.errors import AdaptError

_SECONDS = 10  # without a byte


def is_address(source: str) -> bool:
    """Whether it begins as an address of the web does."""
    return re.match(r"https?://", source, re.IGNORECASE) is not None


def fetched(address: str) -> bytes:
    """What is at an http or https address, of at most as many bytes as an image's file may have.

    Raises AdaptError where it does not answer within 10 seconds, answers with an error or more bytes, or leads
    elsewhere than to http and https.
    """
    try:
        with urllib.request.build_opener(_WithinTheWeb).open(address, timeout=_SECONDS) as answer:
            return read_bounded(answer, MOST_BYTES)
    except urllib.error.HTTPError as error:
        raise AdaptError(f"Image {address!r} cannot be fetched: the server says {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise AdaptError(f"Image {address!r} cannot be fetched: {reason}. Check the address and the network") from error


class _WithinTheWeb(urllib.request.HTTPRedirectHandler):
    """urllib's own follows to ftp too."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        if not is_address(newurl):
            raise ValueError(f"it leads to {newurl!r}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
