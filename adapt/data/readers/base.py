"""The interface of a reader, a file that says which data it takes, and reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from adapt.data.split import Split


class Reader:
    """The base of all readers. Another package's reader has an entry point in the group `adapt.readers`."""

    name: ClassVar[str]
    takes: ClassVar[str]
    """The data that it takes, in a few words, such as "a .csv that lists images"."""
    prefix: ClassVar[str] = ""
    """The beginning of all names that it takes, such as "hf:", if they have one in common."""
    root: ClassVar[Literal["none", "may", "needed"]] = "none"
    """Whether a folder may, or must, be given from which the paths inside start."""
    root_is: ClassVar[str] = "the folder that the paths inside start from"
    fallback: ClassVar[bool] = False
    """Whether it takes only what no other reader takes."""

    def claims(self, spec: str) -> bool:
        """Return whether it reads the data that `spec` names, looking only at what tells."""
        return bool(self.prefix) and spec.startswith(self.prefix)

    def read(self, spec: str, root: str | None) -> Split:
        """Return the data set, without opening an image. Raises AdaptError, naming it, for data of another form."""
        raise NotImplementedError

    def specs(self) -> Sequence[str]:
        """Return the names that it takes, if it takes names."""
        return ()

    def folder(self, spec: str) -> str | None:
        """Return the folder all of whose pictures should be in the data; None for a name or a list."""
        return None
