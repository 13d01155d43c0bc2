"""Reading text files that list data, within limits of size."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from adapt.common.cells import unguarded
from adapt.common.disk import open_regular, read_bounded
from adapt.common.errors import AdaptError

_MOST_BYTES = 512 * 2**20
# Gzipped lists of images are a tenth of their size; a file that unpacks to far more is not a list.
_MOST_RATIO, _MOST_OF_FEW = 64, 16 * 2**20


# Reading a list raises ValueError for malformed JSON or UTF-8, EOFError and zlib.error for a damaged gzip.
UNREADABLE = (OSError, EOFError, ValueError, zlib.error)


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a file, which may be gzipped (`.gz`), without a byte order mark.

    Raises OSError if the file is missing or too large, EOFError or zlib.error if gzipped content is damaged, and
    ValueError if the text is not UTF-8.
    """
    with open_regular(path) as file:
        if not os.fspath(path).endswith(".gz"):
            content = read_bounded(file, _MOST_BYTES)
        else:
            most = max(_MOST_OF_FEW, _MOST_RATIO * os.fstat(file.fileno()).st_size)
            with gzip.open(file) as unpacked:
                content = read_bounded(unpacked, min(most, _MOST_BYTES))  # type: ignore[arg-type]  # read as any file
    return content.decode("utf-8-sig")  # spreadsheets and some editors put a byte order mark in front


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn errors of reading or parsing a file in the `with` block into an AdaptError that calls the file `where`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise AdaptError(f"{where} cannot be read: it is not UTF-8 ({error}). Save it as UTF-8") from error
    except (*UNREADABLE, RecursionError, csv.Error) as error:  # RecursionError: JSON with thousands of brackets
        reason = (error.strerror or error) if isinstance(error, OSError) else error  # without the path again
        raise AdaptError(f"{where} cannot be read: {reason}") from error


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Return the stripped, non-empty lines of a file. Raises AdaptError if the file cannot be read."""
    with readable(f"list {os.fspath(path)!r}"):
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def csv_rows(path: str | os.PathLike[str]) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Return the columns of a CSV file and its rows, as {column: text}, without the marks of `adapt.common.cells`.

    Raises AdaptError if the file cannot be read.
    """
    with readable(f"CSV {os.fspath(path)!r}"):
        reader = csv_reader(path)
        rows = [{name: unguarded(cell or "") for name, cell in row.items() if name} for row in reader]
        return reader.fieldnames or (), rows


def csv_reader(path: str | os.PathLike[str]) -> csv.DictReader[str]:
    """Return a csv.DictReader of a CSV file.

    Raises the errors of `read_text`, csv.Error in the first line and during iteration, and AdaptError if two columns
    have one name, or if columns are separated by semicolons or tabs, as some spreadsheets write them.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    columns, where = list(reader.fieldnames or ("",)), f"CSV {os.fspath(path)!r}"
    for column in columns:
        if column and columns.count(column) > 1:
            raise AdaptError(f"{where} has two columns {column!r}; expected one: rename or remove the other")
    for separator in (";", "\t"):
        if len(columns) == 1 and separator in columns[0]:
            raise AdaptError(f"{where}: the columns are separated by {separator!r}; expected ','. Save it with commas")
    return reader
