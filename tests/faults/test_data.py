"""Data of strangers, flipped, cut and made up: every reader gives a result, or an AdaptError of one line."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import forked_runs
import pytest
import torch
from hostile import damaged, picture, survives
from PIL import Image
from sample_transforms import to_tensor

from adapt.data import FeatureCache, Item, open_image, read_csv, read_names, read_split
from adapt.data.decoding.images import check_image
from adapt.data.decoding.pictures import FORMATS

pytestmark = pytest.mark.faults

FLIPS = 2000  # damaged files of each kind
_SPLIT = {"train": [["a.png", 0, "cat"], ["b.png", 1, "dog"]], "val": [], "test": [["c.png", 1, "dog"]]}


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it decodes all the same
@pytest.mark.parametrize("image_format", FORMATS)
def test_pictures(tmp_path: Path, image_format: str) -> None:
    whole, stream, path = picture(image_format), Random(image_format), tmp_path / "a.png"
    for _ in range(FLIPS):
        path.write_bytes(damaged(whole, stream))
        for read in (open_image, check_image):
            survives(lambda read=read: read(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives(tmp_path: Path, method: int) -> None:
    content, stream = io.BytesIO(), Random(method)
    with zipfile.ZipFile(content, "w", method) as archive:
        archive.writestr("a.png", picture("PNG"))
        archive.writestr("b.png", picture("PNG"))
    for number in range(FLIPS):
        path = tmp_path / f"{number}.zip"  # archives are kept open by name
        path.write_bytes(damaged(content.getvalue(), stream))
        for member in ("a.png", "b.png"):
            survives(lambda member=member, path=path: open_image(f"{path}!{member}"))


def test_tables(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    content, stream = pyarrow.BufferOutputStream(), Random("arrow")
    table = pyarrow.table({"image": [{"bytes": picture("PNG"), "path": "a.png"}] * 3, "label": [0, 1, 0]})
    with pyarrow.ipc.new_stream(content, table.schema) as writer:
        writer.write_table(table)
    whole = content.getvalue().to_pybytes()

    def read_all() -> None:
        for number in range(FLIPS):
            path = tmp_path / f"{number}.arrow"
            path.write_bytes(damaged(whole, stream))
            survives(lambda path=path: open_image(f"{path}!image/1"))

    # in a process of its own: what a damaged table makes of pyarrow's pointers may end it
    error = tmp_path / "error"
    code = forked_runs.join(forked_runs.fork(read_all, error))
    assert code == 0, error.read_text() if error.exists() else code


@pytest.mark.parametrize(
    ("read", "name", "text"),
    [
        (read_split, "a.json", json.dumps(_SPLIT)),
        (read_csv, "a.csv", 'path,label,split\n"a.png",cat,train\nb.png,"dog, wild",train\nc.png,cat,test\n'),
        (read_names, "a.csv", 'class,name\ncat,"cat, wild"\ndog,dog\n'),
        (read_names, "a.json", '{"cat": "a cat", "dog": "a dog"}'),
    ],
)
def test_lists(tmp_path: Path, read: Callable[[Path], Any], name: str, text: str) -> None:
    stream = Random(f"{read.__name__} {name}")
    for _ in range(FLIPS):
        (tmp_path / name).write_bytes(damaged(text.encode(), stream))
        survives(lambda: read(tmp_path / name))


def test_shards_of_the_cache(tmp_path: Path) -> None:
    items = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        items.append(Item.of(path=str(path), label="a"))
    store, stream = FeatureCache(tmp_path / "cache"), Random("shards")

    def features() -> torch.Tensor:
        return store.features(items, to_tensor, lambda images: images[:, :, 0, 0] * 1.0, "k")

    expected = features()
    (shard,) = store.directory.rglob("*.safetensors")
    whole = shard.read_bytes()
    for _ in range(FLIPS // 4):
        shard.write_bytes(damaged(whole, stream))
        assert torch.equal(features(), expected)
