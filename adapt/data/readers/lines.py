"""Reading text files that list data, within limits of size."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from adapt.common.disk import open_regular, read_bounded
from adapt.common.errors import AdaptError
from adapt.common.shown import unguarded

_MOST_BYTES = 512 * 2**20
# Gzipped lists of images are a tenth of their size; a file that unpacks to far more is not a list.
_MOST_RATIO, _MOST_OF_FEW = 64, 16 * 2**20


_SEARCHED = 4096  # bytes
_SEPARATOR = re.compile(r"sep=(.)\r?\n")

# Reading a list raises ValueError for malformed JSON or UTF-8, EOFError and zlib.error for a damaged gzip.
UNREADABLE = (OSError, EOFError, ValueError, zlib.error)


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark. The file may be gzipped (`.gz`).

    Raises OSError if the file is missing or too large, EOFError or zlib.error if gzipped content is damaged, and
    ValueError for another encoding.
    """
    with open_regular(path) as file:
        if not os.fspath(path).endswith(".gz"):
            content = read_bounded(file, _MOST_BYTES)
        else:
            most = max(_MOST_OF_FEW, _MOST_RATIO * os.fstat(file.fileno()).st_size)
            with gzip.open(file) as unpacked:
                content = read_bounded(unpacked, min(most, _MOST_BYTES))  # type: ignore[arg-type]  # read as any file
    if b"\0" in content[:_SEARCHED] and not content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise ValueError("it has zero bytes, as UTF-16 without a byte order mark has: save it as UTF-8")
    # spreadsheets and some editors put a byte order mark in front
    return content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")


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
    return [line for _, line in numbered_lines(path)]


def numbered_lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Return the lines of `read_lines` with their numbers in the file, from 1."""
    with readable(f"list {os.fspath(path)!r}"):
        return [(at, line.strip()) for at, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]


def csv_rows(path: str | os.PathLike[str]) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Return the columns of a CSV file and its rows, as {column: text}, without the marks of `guarded`.

    Raises AdaptError if the file cannot be read.
    """
    with readable(f"CSV {os.fspath(path)!r}"):
        reader = csv_reader(path)
        rows = [{name: unguarded(cell or "") for name, cell in row.items() if name} for row in reader]
        return reader.fieldnames or (), rows


def csv_reader(path: str | os.PathLike[str]) -> csv.DictReader[str]:
    """Return a csv.DictReader of a CSV file, whose columns are separated by commas, or by semicolons or tabs.

    Spreadsheets write semicolons where numbers have decimal commas, and may say so in a first line such as `sep=;`.

    Raises the errors of `read_text`, csv.Error in the first line and during iteration, and AdaptError if two columns
    have one name.
    """
    text = read_text(path)
    said = _SEPARATOR.match(text)
    widths = {each: len(next(csv.reader(io.StringIO(text, newline=""), delimiter=each), ())) for each in ",;\t"}
    separator = said[1] if said else max(widths, key=widths.__getitem__)  # commas if as wide
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    if said:
        next(reader.reader)  # read, not cut off, as errors count lines
    columns, where = list(reader.fieldnames or ("",)), f"CSV {os.fspath(path)!r}"
    for column in columns:
        if column and columns.count(column) > 1:
            raise AdaptError(f"{where} has two columns {column!r}; expected one: rename or remove the other")
    return reader
