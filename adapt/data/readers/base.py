"""The interface of a reader, which decides which data it accepts, and reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

from adapt.data.split import Split


class Reader:
    """The base class of data set readers. A reader in another package needs an entry point in `adapt.readers`."""

    name: ClassVar[str]
    takes: ClassVar[str]
    """The data that it takes, in a few words, such as "a .csv that lists images"."""
    prefix: ClassVar[str] = ""
    """The beginning of all names that it takes, such as "hf:", if they have one in common."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """The ends of the names of all files that it takes, such as ".csv", if it takes files."""
    root: ClassVar[Literal["none", "may", "needed"]] = "none"
    """Whether a folder may, or must, be given from which the paths inside start."""
    root_is: ClassVar[str] = "the folder that the paths inside start from"
    takes_columns: ClassVar[bool] = False
    """Whether `reads` takes `columns`, which are columns of the data with what they are called here."""
    columns: Mapping[str, str] = {}
    fallback: ClassVar[bool] = False
    """Whether it takes only what no other reader takes."""

    def claims(self, spec: str) -> bool:
        """Return whether this reader accepts the data set `spec`, after opening as few files as possible."""
        named = bool(self.prefix) and spec.startswith(self.prefix)
        return named or (spec.endswith(self.suffixes) and os.path.isfile(spec))

    reads: ClassVar[Callable[..., Split]]
    """A function that reads what is behind the prefix, for `read`; it is given a root as well unless there is none."""

    def read(self, spec: str, root: str | None) -> Split:
        """Return the data set `spec` without opening images. Raises AdaptError, naming the data set, on failure."""
        own, more = spec.removeprefix(self.prefix), {"columns": self.columns} if self.takes_columns else {}
        return self.reads(own, **more) if self.root == "none" else self.reads(own, root, **more)

    def specs(self) -> Sequence[str]:
        """Return the names of data sets that this reader accepts; empty if the reader does not recognise names."""
        return ()

    def folder(self, spec: str) -> str | None:
        """Return the folder whose images should all be in the data set `spec`, or None for a name or a list."""
        return None


class FolderReader(Reader):
    """The base class of readers of folders, all of whose images should be in the data set."""

    def folder(self, spec: str) -> str:
        return os.path.abspath(spec.removeprefix(self.prefix))
