"""Tiny images and data sets that the tests of `adapt.data` read."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import miniatures
import pytest
from PIL import Image
from sample_transforms import Encoder

from adapt.data import FeatureCache
from adapt.data.emoji import bundled
from adapt.data.split import Item

MakeImage = Callable[..., str]


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """Writes an 8x8 image of one colour below tmp_path and returns its path."""

    def make(name: str, colour: Any = (10, 20, 30), mode: str = "RGB", **options: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (8, 8), colour).save(path, **options)
        return str(path)

    return make


@pytest.fixture
def items(make_image: MakeImage) -> list[Item]:
    """Ten images, all different, of two classes."""
    return [Item.of(path=make_image(f"set/{i}.png", (i, 2 * i, 255 - i)), label="ab"[i % 2]) for i in range(10)]


_STYLES = ("noto", "twemoji", "fluent-3d")
_CONCEPTS = [  # concept, class, split, held out
    ("dog face", "animal mammal", "train", False),
    ("cat", "animal mammal", "val", True),
    ("cow", "animal mammal", "test", False),
    ("apple", "food fruit", "train", True),
    ("pear", "food fruit", "test", False),
    ("anger symbol", None, "train", False),
]


@pytest.fixture
def emoji_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bundled set of six concepts in three styles, in place of the real one."""
    archive = tmp_path / "emoji.zip"
    entries = []
    with zipfile.ZipFile(archive, "w") as file:
        for number, (concept, group, split, held_out) in enumerate(_CONCEPTS):
            for style in _STYLES:
                name = f"{style}/{number}.png"
                picture = io.BytesIO()
                Image.new("RGB", (8, 8), (number, 0, 0)).save(picture, "PNG")
                file.writestr(name, picture.getvalue())
                entry = {"file": name, "concept": concept, "class": group, "style": style}
                entries.append(entry | {"split": split, "held_out": held_out})
        index = {"styles": _STYLES, "classes": ["animal mammal", "food fruit"], "items": entries}
        file.writestr("index.json", json.dumps(index))
    monkeypatch.setattr("adapt.data.emoji.bundled.ARCHIVE", archive)
    known = bundled.index, bundled.of_groups
    for each in known:  # of the real archive
        each.cache_clear()
    yield archive
    for each in known:
        each.cache_clear()


@pytest.fixture(scope="session")
def published_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fifteen published data sets in miniature."""
    return miniatures.build(tmp_path_factory.mktemp("published"))


@pytest.fixture
def encode() -> Encoder:
    return Encoder()


@pytest.fixture
def store(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")
