"""Images that do not decode: found, told, refused or left out; and what is found without decoding."""

from __future__ import annotations

import logging
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from adapt.common.errors import AdaptError
from adapt.data import Item, Split, open_image
from adapt.data import check as module
from adapt.data.check import broken_images, without_broken
from adapt.data.decoding.images import check_image


def _png_header(width: int, height: int) -> bytes:
    """A PNG that says it is of that size and holds no pixels."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
              for kind, body in ((b"IHDR", size), (b"IDAT", b""))]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[list[Item], list[str]]:
    """Every kind of image that is good, and the paths of those that are not."""
    noise = Image.effect_noise((64, 64), 80)
    noise.save(tmp_path / "Ämse ☃ 犬.png")
    noise.convert("CMYK").save(tmp_path / "cmyk.jpg")
    noise.save(tmp_path / "progressive.jpg", progressive=True)
    Image.new("I;16", (8, 8), 0x8123).save(tmp_path / "16bit.png")
    Image.new("P", (8, 8)).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("P", (8, 8), 3)] * 3)
    whole = {name: (tmp_path / name).read_bytes() for name in ("progressive.jpg", "Ämse ☃ 犬.png", "a.gif")}
    broken = {
        "half.jpg": whole["progressive.jpg"][:1500],
        "half.png": whole["Ämse ☃ 犬.png"][:2000],
        "half.gif": whole["a.gif"][:30],
        "empty.jpg": b"",
        "page.jpg": b"<html>not found</html>",
        "huge.png": _png_header(20_000, 20_000),
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    Image.new("F", (8, 8)).save(tmp_path / "float.tiff")
    files = sorted(str(path) for path in tmp_path.iterdir())
    items = [Item.of(path=path, label="a") for path in [*files, str(tmp_path / "gone.png")]]
    return items, sorted(str(tmp_path / name) for name in [*broken, "float.tiff", "gone.png"])


def test_what_is_found_is_what_open_image_refuses(mixed: tuple[list[Item], list[str]]) -> None:
    items, broken = mixed
    found = broken_images(items)
    assert sorted(found) == broken
    for item in items:
        if item.path in found:
            with pytest.raises(AdaptError) as refused:
                open_image(item)
            assert str(refused.value).split(":")[0] == found[item.path].split(":")[0]
        else:
            assert open_image(item).mode == "RGB"


def test_a_huge_picture_is_refused_by_its_header(mixed: tuple[list[Item], list[str]], tmp_path: Path) -> None:
    with pytest.raises(
        AdaptError,
        match=r"huge.png' cannot be decoded: .*than the limit of 119,304,646; save a smaller copy\. Replace",
    ):
        check_image(tmp_path / "huge.png")


def test_workers_find_the_same_and_leave_the_random_state(
    mixed: tuple[list[Item], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    items, _ = mixed
    alone = broken_images(items)
    monkeypatch.setattr(module, "_FEW", 0)
    monkeypatch.setattr(module, "_BATCH", 3)
    before = torch.get_rng_state()
    told: list[tuple[int, int]] = []
    assert list(broken_images(items * 2, lambda *done: told.append(done)).items()) == list(alone.items())
    assert told == [(done, len(items)) for done in range(1, len(items) + 1)]  # each file once
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.full
def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import os, pathlib, time
from adapt.common import interrupt
from adapt.data import check

def look(path, turned):
    pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()
    time.sleep(600)

check._FEW = check._BATCH = interrupt._PATIENCE = 1
list(check._of_each(look, dict.fromkeys("abcd", False)))
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    while not [*tmp_path.iterdir()]:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    for _ in range(1200):  # a minute; they would wait for ever
        workers = [pid for pid in workers if _runs(pid)]
        time.sleep(0.05 * bool(workers))
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert workers == []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Two classes of three images; one of the training images is broken, and the only one for the test."""
    items = []
    for i, name in enumerate(("ant", "ant", "bee", "bee", "bee")):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
        items.append(Item.of(path=str(tmp_path / f"{i}.png"), label=name))
    for i in (1, 4):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    return Split("insects", ("ant", "bee"), tuple(items[:4]), (), (items[4],))


def test_broken_images_are_refused_with_their_number(split: Split) -> None:
    with pytest.raises(AdaptError) as caught:
        without_broken(split, "refuse")
    first, second = split.train[1].path, split.test[0].path
    advice = "cannot be decoded: unknown format. Replace or remove the image"
    assert str(caught.value) == (
        f"2 of 5 images of data 'insects' cannot be used: image '{first}' {advice}; image '{second}' {advice}. "
        "List all problems with `adapt data check` and remove the files, or leave them out of a "
        "training with data.broken=skip"
    )


def test_broken_images_are_left_out_with_their_number(split: Split, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "adapt"):
        kept = without_broken(split, "skip")
    assert kept.train == (split.train[0], *split.train[2:])
    assert kept.test == ()
    (line,) = caplog.messages
    assert line.startswith(f"left out 2 of 5 images of data 'insects': image '{split.train[1].path}'")


def test_a_class_without_a_good_image_is_refused(split: Split) -> None:
    Path(split.train[0].path).write_bytes(b"")
    with pytest.raises(AdaptError, match="'insects': no training image of 'ant'"):
        without_broken(split, "skip")


def test_many_broken_images_are_counted(tmp_path: Path) -> None:
    items = tuple(Item.of(path=str(tmp_path / f"{i}.png"), label="a") for i in range(1200))
    with pytest.raises(
        AdaptError,
        match=r"^1,200 of 1,200 images .*/2.png' does not exist; and 1,197 more\. List all problems with `adapt",
    ):
        without_broken(Split("gone", ("a",), items, (), ()), "refuse")


def test_good_images_are_the_same_split(split: Split) -> None:
    good = Split("good", ("ant",), (split.train[0],), (), ())
    assert without_broken(good, "refuse") is good
    with pytest.raises(AdaptError, match="broken is 'drop'; Valid: refuse, skip"):
        without_broken(good, "drop")  # type: ignore[arg-type]
