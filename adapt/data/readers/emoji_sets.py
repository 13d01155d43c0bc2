"""The reader of bundled data sets, by their names."""

from __future__ import annotations

from collections.abc import Sequence

from adapt.data.emoji import bundled
from adapt.data.readers.base import Reader
from adapt.data.split import Split


class EmojiSets(Reader):
    name = "emoji_sets"
    takes = "a bundled name"

    def claims(self, spec: str) -> bool:
        return bundled.is_bundled(spec)

    def read(self, spec: str, root: str | None) -> Split:
        return bundled.read_bundled(spec)

    def specs(self) -> Sequence[str]:
        return bundled.names()
