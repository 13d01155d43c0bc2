"""Data as no one should give it: a result or an AdaptError of one line; tests/faults has thousands more of them."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hostile import damaged, picture, survives
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapt.data import load, open_image, read_names, read_split
from adapt.data.decoding.images import check_image
from adapt.data.decoding.pictures import FORMATS

_quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_text = st.text(max_size=12)
_label = st.integers(0, 3) | st.integers() | st.booleans() | st.none() | st.floats() | _text
_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=12,
)
_entry = st.tuples(_text, _label, st.sampled_from("abcd") | _text).map(list) | _json
_split = st.fixed_dictionaries({part: st.lists(_entry, max_size=5) for part in ("train", "val", "test")})


@_quick
@given(_split | _json)
def test_splits_that_are_made_up(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    for root in (None, tmp_path):
        survives(lambda root=root: read_split(tmp_path / "a.json", root))
    survives(lambda: read_names(tmp_path / "a.json"))


@_quick
@given(st.lists(st.lists(st.sampled_from(("path", "label", "split", "train", "a.png", "=1")) | _text, max_size=5)))
def test_csv_files_that_are_made_up(tmp_path: Path, rows: list[list[str]]) -> None:
    lines = io.StringIO()
    csv.writer(lines).writerows([["path", "label", "split"], *rows])
    for text in (lines.getvalue(), lines.getvalue().partition("\n")[2]):
        (tmp_path / "a.csv").write_text(text, errors="replace")
        survives(lambda: load(tmp_path / "a.csv"))
        survives(lambda: read_names(tmp_path / "a.csv"))


@_quick
@given(st.binary(max_size=64))
def test_bytes_that_are_made_up(tmp_path: Path, content: bytes) -> None:
    for name in ("a.json", "a.csv", "a.json.gz", "a.png", "a.zip"):
        (tmp_path / name).write_bytes(content)
    survives(lambda: read_split(tmp_path / "a.json"))
    survives(lambda: read_split(tmp_path / "a.json.gz"))
    survives(lambda: load(tmp_path / "a.csv"))
    survives(lambda: open_image(tmp_path / "a.png"))
    survives(lambda: open_image(f"{tmp_path}/a.zip!a.png"))


@_quick
@given(st.text(max_size=40))
def test_paths_that_are_made_up(tmp_path: Path, path: str) -> None:
    for each in (path, f"{tmp_path}/{path}", f"{path}.zip!{path}", f"{path}.arrow!{path}", f"{path}.scenes!{path}"):
        assert not survives(lambda each=each: open_image(each))


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it decodes all the same
@pytest.mark.parametrize("image_format", FORMATS)
def test_damaged_pictures(tmp_path: Path, image_format: str) -> None:
    whole, stream = picture(image_format), Random(image_format)
    (tmp_path / "a.png").write_bytes(whole)
    assert survives(lambda: open_image(tmp_path / "a.png"))
    for _ in range(40):
        (tmp_path / "a.png").write_bytes(damaged(whole, stream))
        for read in (open_image, check_image):
            survives(lambda read=read: read(tmp_path / "a.png"))


def test_damaged_archives_and_tables(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", picture("PNG"))
    table = pyarrow.table({"image": [{"bytes": picture("PNG"), "path": "a.png"}] * 3})
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    stream = Random(0)
    for suffix, member in (("zip", "a.png"), ("arrow", "image/1")):
        whole = (tmp_path / f"a.{suffix}").read_bytes()
        assert survives(lambda suffix=suffix, member=member: open_image(f"{tmp_path}/a.{suffix}!{member}"))
        for number in range(40):
            path = tmp_path / f"{number}.{suffix}"  # they are kept open by name
            path.write_bytes(damaged(whole, stream))
            survives(lambda path=path, member=member: open_image(f"{path}!{member}"))
