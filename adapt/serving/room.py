"""A limit on what all requests hold together, such as bytes. At the limit, large requests end for smaller ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from adapt.common.errors import AdaptError

PATIENCE = 1.0  # seconds that a request waits for room, so that who is refused does not come again at once
_TURN = 0.05  # seconds


class Crowded(AdaptError):
    """The error for a request that the busy server cannot take at present; the client may send the request again."""


async def comes(free: Callable[[], bool], patience: float) -> bool:
    """Wait until `free` returns true, for at most `patience` seconds, and return whether it did."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + patience
    while not free():
        if loop.time() >= ends:
            return False
        await asyncio.sleep(_TURN)
    return True


class Room:
    """A limit of `most` units, such as bytes, on all requests of one event loop together.

    A request waits `patience` seconds for room.
    """

    def __init__(self, most: int, of: str, patience: float = PATIENCE) -> None:
        self._most, self._of, self._patience = most, of, patience
        self._held: dict[asyncio.Timeout, int] = {}

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Reserve `size` units for the `with` block, if necessary after aborting blocks with larger reservations.

        Raises Crowded if the limit is reached, and no block has a larger reservation or ends soon; and in each block
        that is aborted.
        """
        if not await comes(lambda: self._made_for(size), self._patience):
            raise self._crowded(size)
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

    def _made_for(self, size: int) -> bool:
        """Return whether there is room, if necessary after aborting blocks with larger reservations."""
        while sum(self._held.values()) + size > self._most:
            largest = max(self._held, key=self._held.__getitem__, default=None)
            if largest is None or self._held[largest] <= size:
                return False
            del self._held[largest]
            largest.reschedule(0)  # in the past: it times out now
        return True

    def _crowded(self, size: int) -> Crowded:
        return Crowded(
            f"the request has {size:,} {self._of}, and with those being answered that is more than {self._most:,}: "
            "try again in a second, or send fewer or smaller images"
        )
