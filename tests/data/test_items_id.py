"""The hash of items: what it depends on, and that nothing is unpacked or refused for it."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from adapt.data import Item, Split, read_folder
from adapt.data.item import items_id


@pytest.fixture
def folder(tiny_split: Split, tmp_path: Path) -> Path:
    """Images in folders of their classes."""
    for number, item in enumerate(tiny_split.train):
        place = tmp_path / "photos" / item.answer / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(item.path, place)
    return tmp_path / "photos"


def test_it_depends_on_names_contents_and_order_and_not_on_the_folder(folder: Path) -> None:
    items = [*read_folder(folder).items()]
    before = items_id(items)
    moved = Path(shutil.copytree(folder, folder.parent / "moved"))
    assert items_id([*read_folder(moved).items()]) == before
    assert items_id(items[::-1]) != before
    Path(items[0].path).write_bytes(Path(items[-1].path).read_bytes())
    assert items_id(items) != before


def test_a_mask_counts(folder: Path) -> None:
    image, mask = (item.path for item in [*read_folder(folder).items()][:2])
    items = [Item.of(path=image, label="abnormal", mask=mask)]
    before = items_id(items)
    Image.new("L", (3, 3)).save(mask)
    assert items_id(items) != before


def test_images_in_a_zip_count_by_their_checksums(folder: Path, tmp_path: Path) -> None:
    ids = []
    for content in (b"one", b"one", b"two"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("dog/1.png", content)
        shutil.copy(tmp_path / "a.zip", tmp_path / f"{len(ids)}.zip")
        ids.append(items_id([Item.of(path=f"{tmp_path}/{len(ids)}.zip!dog/1.png", label="dog")]))
    assert ids[0] == ids[1] != ids[2]


def test_a_file_that_cannot_be_read_is_no_error(tmp_path: Path) -> None:
    paths = (tmp_path / "gone.png", tmp_path, f"{tmp_path}/gone.zip!1.png", f"{tmp_path}/gone.tar!1.png")
    assert len({items_id([Item.of(path=str(path), label="dog")]) for path in paths}) == len(paths)
