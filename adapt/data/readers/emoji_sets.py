"""The reader of bundled data sets, by their names."""

from __future__ import annotations

from collections.abc import Sequence

from adapt.data.emoji import bundled
from adapt.data.readers.base import Reader


class EmojiSets(Reader):
    name = "emoji_sets"
    takes = "a bundled name"
    reads = staticmethod(bundled.read_bundled)

    def claims(self, spec: str) -> bool:
        return bundled.is_bundled(spec)

    def specs(self) -> Sequence[str]:
        return bundled.names()
