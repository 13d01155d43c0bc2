"""Images inside a JSON or JSONL file, as data URIs or base64: the n-th of a row is `FILE.jsonl!ROW/N`."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from functools import lru_cache

from adapt.data.readers.lines import read_text


def rows_of(text: str, lines: bool) -> Iterator[object]:
    """Yield the rows of a JSON list, or of a file with a JSON value on each of its `lines`.

    A line that is not JSON is yielded as the ValueError about it, so that the other rows keep their numbers. Raises
    ValueError for other text that is not JSON, and for JSON that is no list.
    """
    if not lines:
        try:
            content = json.loads(text, object_pairs_hook=_without_twins)
        except json.JSONDecodeError as error:
            if error.msg == "Extra data":
                raise ValueError("it has a JSON value on each line: name it .jsonl") from None
            raise
        if not isinstance(content, list):
            raise ValueError("expected a list of rows")
        yield from content
        return
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                yield json.loads(line, object_pairs_hook=_without_twins)
        except ValueError as error:
            yield ValueError(f"line {number}: {error}")


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice: leave one out")
    return row


def images_in(row: object, key: str = "") -> Iterator[str]:
    """Yield the images that a row itself contains, in order: data URIs, and base64 under the key bytes or base64."""
    if isinstance(row, dict):
        for name, value in row.items():
            yield from images_in(value, str(name))
    elif isinstance(row, list):
        for value in row:
            yield from images_in(value, key)
    elif isinstance(row, str) and is_inline(row, key):
        yield row


def is_inline(value: str, key: str = "") -> bool:
    """Return whether a text in a row, under `key`, is an image itself."""
    return value.startswith("data:image/") or key in ("bytes", "base64")


def read_member(file: str, member: str) -> bytes:
    """Return the bytes of an image inside a file of rows; `member` is `ROW/N`, both counted from 1.

    Raises LookupError if there is no such image, ValueError if it is not valid base64.
    """
    row, _, number = member.partition("/")
    known = os.stat(file)
    rows = _rows(file, known.st_mtime_ns, known.st_size)
    encoded = list(images_in(rows[int(row) - 1]))[int(number) - 1]
    return decoded(encoded)


def decoded(encoded: str) -> bytes:
    """Return the bytes of a data URI, or of base64. Raises ValueError if it is neither."""
    return base64.b64decode(encoded.rpartition(",")[2] if encoded.startswith("data:") else encoded, validate=True)


@lru_cache(maxsize=1)
def _rows(file: str, changed: int, size: int) -> list[object]:
    return list(rows_of(read_text(file), file.endswith(".jsonl")))
