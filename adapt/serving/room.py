"""A limit on what all requests hold together, such as bytes. At the limit, large requests end for smaller ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adapt.errors import AdaptError


class Crowded(AdaptError):
    """An error for a request that the server has no room for at present; the client may send it again."""


class Room:
    """A limit of `most` units, such as bytes, shared by the requests of one event loop."""

    def __init__(self, most: int, of: str) -> None:
        self._most, self._of = most, of
        self._held: dict[asyncio.Timeout, int] = {}

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Reserve `size` units for the `with` block; if there is no room, blocks that hold more are ended first.

        Raises Crowded if no block that holds more is left, and inside a block that is ended.
        """
        while sum(self._held.values()) + size > self._most:
            largest = max(self._held, key=self._held.__getitem__, default=None)
            if largest is None or self._held[largest] <= size:
                raise self._crowded(size)
            del self._held[largest]
            largest.reschedule(0)  # in the past: it times out now
        try:
            async with asyncio.timeout(None) as given:
                self._held[given] = size
                try:
                    yield
                finally:
                    self._held.pop(given, None)
        except TimeoutError:
            if given.expired():
                raise self._crowded(size) from None
            raise

    def _crowded(self, size: int) -> Crowded:
        return Crowded(
            f"the request has {size:,} {self._of}, and with those being answered that is more than {self._most:,}: "
            "try again in a second, or send fewer or smaller images"
        )
