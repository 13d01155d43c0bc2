"""A desk to run snippets on: a folder with the files that the pages speak of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pages
import pytest

from adapt import data, methods
from adapt.backbones import families
from adapt.data import readers
from adapt.data.item import TASKS


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `photo.png`, `scene.png`, and `photos/` with ten images of each of two classes."""
    for listing in (families._listing, readers._listing, TASKS, methods._listing):
        monkeypatch.setattr(listing, "_registered", {})
    monkeypatch.chdir(tmp_path)
    for stored, called in (("example", "photo"), ("scene", "scene")):
        shutil.copy(pages.ROOT / "notebooks" / f"{stored}.png", f"{called}.png")
    (tmp_path / "notebooks").symlink_to(pages.ROOT / "notebooks")
    items = data.load("emoji").train
    for class_name in sorted({item.answer for item in items})[:2]:
        folder = tmp_path / "photos" / class_name.replace(" ", "_")
        folder.mkdir(parents=True)
        for number, item in enumerate([item for item in items if item.answer == class_name][:10]):
            data.open_image(item).save(folder / f"{number}.png")
    return tmp_path
