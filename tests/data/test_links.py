"""Symbolic links in folders and lists: one picture, one entry."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from listed import relative, touch

from adapt.common.errors import AdaptError
from adapt.data import read_csv, read_domain_folders, read_folder, read_split


@pytest.mark.parametrize("target", [".", "..", "../..", "deep"])
def test_links_in_a_class_folder_add_no_picture(tmp_path: Path, target: str) -> None:
    names = [path for i in range(10) for path in (f"ant/deep/{i}.png", f"bee/far/{i}.png")]
    root = touch(tmp_path / "set", *names)
    before = read_folder(root)
    (root / "ant/again").symlink_to(target)
    (root / "ant/deep/again.png").symlink_to("0.png")
    (root / "itself").symlink_to("itself")
    split = read_folder(root)
    assert split == before
    assert len(list(split.items())) == 20


def test_a_folder_behind_a_link_is_read(tmp_path: Path) -> None:
    touch(tmp_path / "pool", "a/1.png", "a/2.png", "b/1.png")
    touch(tmp_path / "set/a", "0.png")
    for link, target in (("set/a/more", "pool/a"), ("set/b", "pool/b"), ("set/a/more-of-it", "pool/a")):
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "link").symlink_to("set")
    for root in (tmp_path / "set", tmp_path / "link"):
        split = read_folder(root)
        assert sorted(relative(split.items(), root)) == ["a/0.png", "a/more/1.png", "a/more/2.png", "b/1.png"]


def test_a_picture_counts_where_it_lies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = touch(tmp_path / "set", "train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png")
    (root / "test/a/0.png").symlink_to("../../train/a/1.png")
    (root / "train/a/3.png").symlink_to("../b/1.png")
    split = read_folder(root)
    assert relative(split.items(), root) == ["train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png"]
    assert caplog.messages == [
        f"image folder '{root}': left out 2 links of pictures that count elsewhere, such as '{root}/test/a/0.png' "
        f"(test a) is the same picture as '{root}/train/a/1.png' (train a)."
    ]


def test_a_picture_counts_in_one_domain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = touch(tmp_path / "set", *(f"{domain}/{name}/1.png" for domain in ("art", "photo") for name in "ab"))
    (root / "art/a/0.png").symlink_to("../../photo/a/1.png")
    (root / "art/a/2.png").symlink_to("1.png")
    for domain in ("art", "photo"):
        (root / domain / "b/pool.png").symlink_to(touch(tmp_path, "pool.png") / "pool.png")
    (root / "photo/b/more").symlink_to("../../art/b")
    kept = ["art/a/1.png", "art/b/1.png", "art/b/pool.png", "photo/a/1.png", "photo/b/1.png"]
    assert sorted(relative(read_domain_folders(root).items(), root)) == kept
    told = f"such as '{root}/art/a/0.png' (art a) is the same picture as '{root}/photo/a/1.png' (photo a)."
    assert caplog.messages == [f"folder '{root}': left out 3 links of pictures that count elsewhere, {told}"]
    table = _written(root / "list.csv", "path,label,domain\nart/a/0.png,a,art\nphoto/a/1.png,a,photo\n")
    assert relative(read_csv(table).items(), root) == ["photo/a/1.png"]
    assert caplog.messages[1:] == [f"CSV '{table}': left out 1 links of pictures that count elsewhere, {told}"]
    _written(table, "path,label,domain\nphoto/a/1.png,a,art\nphoto/a/1.png,a,photo\n")
    with pytest.raises(AdaptError, match=r"a/1.png' is of two domains, 'art' and 'photo'. Keep one of the lines"):
        read_csv(table)


@pytest.mark.parametrize(("one", "other"), [("test/a/1.png", "train/a/1.png"), ("train/a/1.png", "train/b/1.png")])
def test_links_that_put_one_picture_into_two_places_are_refused(tmp_path: Path, one: str, other: str) -> None:
    root = touch(tmp_path / "set", "train/a/0.png", "train/b/0.png", "test/b/0.png")
    picture = touch(tmp_path, "pool.png") / "pool.png"
    for link in (one, other):
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(picture)
    with pytest.raises(AdaptError, match=f"{other}' .* is the same picture as .*{one}' .* symbolic links. Remove one"):
        read_folder(root)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_link_in_a_list_adds_no_picture(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.png" for i in range(20)))
    for i in range(20):
        (tmp_path / f"link{i}.png").symlink_to(f"{i}.png")
    listed = [f"{i}.png" for i in range(20)]
    links = [f"link{name}" for name in listed]
    text = "path,label\n" + "".join(f"{name},a\n" for pair in zip(links, listed) for name in pair)
    assert sorted(relative(read_csv(_written(tmp_path / "list.csv", text)).items(), tmp_path)) == sorted(listed)
    content = {"train": [["0.png", 0, "a"]], "val": [["0.png", 0, "a"]], "test": [["link0.png", 0, "a"]]}
    with pytest.raises(
        AdaptError, match=r"link0.png' \(test\) is the same picture as '.*/0.png' \(train\), through symbolic"
    ):
        read_split(_written(tmp_path / "split.json", json.dumps(content)), root=tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = touch(tmp_path, "a/deep/1.png")
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(AdaptError, match=r"folder '.*deep' cannot be read: Permission denied"):
        read_folder(root)
