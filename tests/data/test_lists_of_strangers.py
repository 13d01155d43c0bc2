"""Lists with values, sizes and files that no one should give: refused by name, soon and in little memory."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from adapt.common.errors import AdaptError
from adapt.data import read_csv, read_names, read_split
from adapt.data.readers import lines

ENTRIES = {
    "train": [["b/1.jpg", 1, "hot_dog"], ["a/1.jpg", 0, "apple"]],
    "val": [["b/2.jpg", 1, "hot_dog"]],
    "test": [["a/2.jpg", 0, "apple"]],
}


def _json(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "split_zhou_Food.json"
    path.write_text(json.dumps(content))
    return path


def _with(**parts: Any) -> dict[str, Any]:
    return {**ENTRIES, **parts}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_with(test=[["x.jpg", 3 * 10**9, "pear"]]), "no image has label 2. Number the labels from 0"),
        (_with(test=[["x.jpg", True, "hot_dog"]]), "test has ['x.jpg', True, 'hot_dog']; expected"),
        (_with(test=[["x.jpg", 2, "pe\nar"]]), "the name 'pe\\nar' of label 2 has a line break or control character"),
        (_with(test=[["x.jpg", 2, "pe\ud800ar"]]), "the name 'pe\\ud800ar' of label 2 is not valid UTF-8"),
        (_with(test=[["x\0.jpg", 0, "apple"]]), "the image path 'x\\x00.jpg' is not a valid file name"),
        (_with(test=[["x\ud800.jpg", 0, "apple"]]), "the image path 'x\\ud800.jpg' is not a valid file name"),
    ],
)
def test_split_files_of_strangers(tmp_path: Path, content: Any, message: str) -> None:
    for root in (None, "/data"):
        with pytest.raises(AdaptError, match=re.escape(message)):
            read_split(_json(tmp_path, content), root=root)


def test_a_long_entry_is_cut_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="expected \\[path, label from 0, class name\\]") as caught:
        read_split(_json(tmp_path, _with(test=[["x" * 10**5] * 10**2])))
    assert len(str(caught.value)) < 2000


def test_brackets_in_thousands(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for read in (read_split, read_names):
        with pytest.raises(AdaptError, match=r"deep.json' cannot be read: maximum recursion depth"):
            read(tmp_path / "deep.json")


def test_a_gzip_that_unpacks_to_far_more_than_a_list(tmp_path: Path) -> None:
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(b"[" + b" " * 17 * 2**20 + b"]"))
    with pytest.raises(AdaptError, match=r"bomb.json.gz' cannot be read: it has more than 16,777,216 bytes"):
        read_split(tmp_path / "bomb.json.gz")


@pytest.mark.parametrize(("read", "name"), [(read_split, "a.json"), (read_csv, "a.csv"), (read_names, "a.csv")])
def test_lists_that_are_pipes_or_endless(tmp_path: Path, read: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(AdaptError, match=f"{name}' cannot be read: it is a named pipe, not a regular file"):
        read(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).write_text("x" * 100)
    monkeypatch.setattr(lines, "_MOST_BYTES", 99)
    with pytest.raises(AdaptError, match=f"{name}' cannot be read: it has more than 99 bytes"):
        read(tmp_path / name)


def test_a_domain_of_two_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('path,label,domain\na.png,cat,"sketch\nphoto"\n')
    with pytest.raises(AdaptError, match=r"the domain 'sketch\\nphoto' has a line break or control character"):
        read_csv(tmp_path / "a.csv")
