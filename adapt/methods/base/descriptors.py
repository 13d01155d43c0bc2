"""Descriptors of classes as a setting: a table of texts by class, or the name of a file with the table."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator

from adapt.common.errors import AdaptError
from adapt.data.readers.names_file import read_descriptors
from adapt.methods.base.traits import ChecksAdapter

Table = dict[str, tuple[str, ...]]  # descriptors by class


def _described(table: Table | str) -> Table | str:
    if not table:
        raise ValueError("there are no descriptors: give a table of descriptors, or the name of a file with a table")
    for name, phrases in {} if isinstance(table, str) else table.items():
        if not all(phrase.strip() for phrase in phrases):
            raise ValueError(f"a descriptor of {name!r} is empty: remove the empty descriptor, or write a phrase")
    return table


Descriptors = Annotated[Table | str, AfterValidator(_described)]


class HoldsDescriptors(ChecksAdapter):
    """The trait of methods with the setting `descriptors`, whose adapters hold the descriptors and not their file."""

    of_each_part = True
    config: Any

    def check_settings(self) -> None:
        if isinstance(self.config.descriptors, str):
            raise AdaptError(
                "the adapter is damaged: its setting descriptors names a file; expected the descriptors themselves"
            )

    def hold_descriptors(self) -> None:
        """Replace the name of a file in the setting `descriptors` by the table in the file."""
        given = self.config.descriptors
        if isinstance(given, str):
            try:
                table = read_descriptors(given)
            except AdaptError as error:
                raise AdaptError(f"{error} (the file is set by method.descriptors)") from error
            self.config = self.config.model_copy(update={"descriptors": table})
