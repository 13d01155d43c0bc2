"""How much is taken in at one time. Where it gets too much, who asks for most gives way to who asks for less."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adapt.errors import AdaptError


class Crowded(AdaptError):
    """There is no room for a request now: it may come again."""


class Room:
    """Room for `most` of something, such as bytes, for the requests of one event loop."""

    def __init__(self, most: int, of: str) -> None:
        self._most, self._of = most, of
        self._held: dict[asyncio.Timeout, int] = {}

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Keeps room for `size` inside. Raises Crowded where only smaller ones are in, and in who must give way."""
        while sum(self._held.values()) + size > self._most:
            largest = max(self._held, key=self._held.__getitem__, default=None)
            if largest is None or self._held[largest] <= size:
                raise self._crowded(size)
            del self._held[largest]
            largest.reschedule(0)  # a time that is past
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
            f"the request has {size:,} {self._of}, and with what is being answered that is more than {self._most:,}: "
            "come again in a second, or ask about fewer or smaller images"
        )
