"""One folder with every kind of file: `data check` names all, and nothing is used, or passed over, in silence."""

from __future__ import annotations

import builtins
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import strange_folder
from PIL import Image
from strange_folder import encoded, noise

from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.data import Item, Split, checks, load, open_image
from adapt.data.check import broken_images
from adapt.data.decoding import pictures


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strange_folder.build(tmp_path_factory.mktemp("strange") / "pets")


@pytest.fixture
def no_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pillow-heif is not installed."""
    own = builtins.__import__

    def importing(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return own(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", importing)


def findings(source: Path, root: Path | None = None) -> tuple[list[str], list[str]]:
    """The problems, and the notes, with paths from the folder on."""
    split, inconsistent = checks.read_leniently(str(source), root)
    found = checks.found_in(checks.look(str(source), split, inconsistent))
    lines = [(each.stops, each.line.replace(f"{source}/", "")) for each in found]
    return tuple([line for stops, line in lines if stops is kind] for kind in (True, False))


@pytest.mark.full
def test_every_kind_is_named(strange: Path) -> None:
    problems, notes = findings(strange)
    assert len(problems) == 2
    assert problems[0].startswith("image 'train/cat/cut.jpg' cannot be decoded: ")
    assert problems[1] == (
        "image 'train/cat/empty.jpg' cannot be decoded: the file is empty. Replace or remove the image"
    )
    assert notes == [
        "4 files that look like pictures are passed over (1 .png, 1 .txt, 1 .cr2, 1 without a suffix): loose.png, "
        "train/cat/photo.txt, train/cat/raw.CR2 and 1 more",
        "the same picture with another label: train/dog/rewritten.bmp, train 'dog' (train/cat/good.png, train 'cat'), "
        "test/dog/cat_in_training.jpg, test 'dog' (train/cat/same.jpg, train 'cat')",
        "test images that are training images too: test/cat/copied.jpg (train/cat/same.jpg)",
        "the same picture twice in one part: train/cat/same_again.jpg (train/cat/same.jpg)",
        "2 files are turned upright by EXIF (data.exif=stored takes them as they are stored): train/cat/mirrored.png, "
        "train/cat/sideways.jpg",
        "1 file is of 16 bits a channel, of which the upper 8 are read: train/cat/scan.png",
        "1 file is in CMYK, converted to RGB without a colour profile: train/cat/print.jpg",
        "1 file is animated or of several pages, of which the first counts: train/cat/moving.gif",
        "1 file is of another format than the name says, but readable: train/cat/really_png.jpg",
        "1 file is of more than 24 megapixels, which are slow to decode in every epoch: smaller copies serve as well: "
        "train/cat/large.png",
    ]


def test_lists_have_a_row_for_each_file(strange: Path) -> None:
    split, _ = checks.read_leniently(str(strange), None)
    found = checks.found_in(checks.look(str(strange), split))
    lists = grouped((finding.list, row) for finding in found for row in finding.rows)
    rows = {name: {Path(row["path"]).name: row for row in rows} for name, rows in lists.items()}
    assert {name: sorted(own) for name, own in rows.items()} == {
        "unreadable": ["cut.jpg", "empty.jpg"],
        "skipped": ["loose.png", "nameless", "photo.txt", "raw.CR2"],
        "contradictions": ["cat_in_training.jpg", "rewritten.bmp"],
        "copies": ["copied.jpg"],
        "duplicates": ["same_again.jpg"],
        "turned": ["mirrored.png", "sideways.jpg"],
        "unusual": ["large.png", "moving.gif", "print.jpg", "scan.png"],
        "misnamed": ["really_png.jpg"],
    }
    assert {name: row["why"] for name, row in rows["skipped"].items()} == {
        "loose.png": "in no folder of a class",
        "nameless": "it is PNG, and is called otherwise",
        "photo.txt": "it is JPEG, and is called otherwise",
        "raw.CR2": ".cr2 is not read",
    }
    assert rows["unusual"]["large.png"]["why"] == "8,000 x 6,000 pixels"
    assert rows["turned"]["sideways.jpg"]["why"] == "EXIF orientation 6"


def test_what_can_be_used_is_used_as_it_is_noted(strange: Path) -> None:
    of = {Path(item.path).name: item for item in load(strange).items()}
    assert broken_images(list(of.values())).keys() == {of[name].path for name in ("cut.jpg", "empty.jpg")}
    assert open_image(of["phone.heic"]).size == (48, 32)
    assert open_image(of["web.avif"]).size == (48, 32)
    assert open_image(of["sideways.jpg"], turned=True).size == (32, 48)
    assert open_image(of["scan.png"]).getpixel((0, 0)) == (0x81,) * 3
    assert open_image(of["large.png"]).size == (8000, 6000)
    assert open_image(of["really_png.jpg"]).tobytes() == noise(11).tobytes()


def test_heic_without_the_extra_is_counted_and_named(tmp_path: Path, no_heic: None) -> None:
    (tmp_path / "cats").mkdir()
    for number in range(6):
        (tmp_path / f"cats/{number}.heic").write_bytes(_heic(number))
    for number in (6, 7):
        (tmp_path / f"cats/{number}.jpg").write_bytes(encoded(noise(number), "JPEG"))
    problems, notes = findings(tmp_path)
    assert problems == [
        '6 files are HEIC and cannot be read here: install pillow-heif (pip install "adapt-vlm[heic]"): '
        "cats/0.heic, cats/1.heic, cats/2.heic and 3 more"
    ]
    assert notes == ["only one class, 'cats': there is nothing to distinguish"]
    with pytest.raises(AdaptError, match=r"cats/0\.heic' cannot be decoded: HEIC needs pillow-heif: pip install"):
        open_image(tmp_path / "cats/0.heic")


def _heic(number: int) -> bytes:
    """What `ftyp` begins such a file with; without the library nothing behind it is read."""
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes([number])


def test_avif_where_pillow_has_none(strange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.features, "check", lambda feature: False)
    problems, _ = findings(strange)
    assert problems[0] == (
        "1 file is AVIF and cannot be read here: install Pillow 11.3 or later, built with libavif "
        '(pip install -U "pillow>=11.3"): train/cat/web.avif'
    )


def test_a_class_without_an_image_keeps_nothing_else_from_being_told(tmp_path: Path) -> None:
    for name in ("cat", "dog", "emu"):
        (tmp_path / name).mkdir()
    for number in range(3):
        (tmp_path / f"cat/{number}.png").write_bytes(encoded(noise(number), "PNG"))
    (tmp_path / "emu/broken.png").write_bytes(b"no image")
    (tmp_path / "dog/raw.nef").write_bytes(b"raw")
    with pytest.raises(AdaptError, match="no training image of 'dog'"):
        load(tmp_path)
    problems, notes = findings(tmp_path)
    assert problems == [
        f"data '{tmp_path.name}': no training image of 'dog'. Add training images of each class, or "
        "remove classes that have none",
        "image 'emu/broken.png' cannot be decoded: unknown format. Replace or remove the image",
        "class 'dog' has no image",
        "class 'emu' has no training image that can be read, of 1",
    ]
    assert notes == [
        "one training image each, too few to hold any back: emu",
        "1 file that looks like a picture is passed over (1 .nef): dog/raw.nef",
    ]


def test_bad_rows_are_counted_by_kind(tmp_path: Path) -> None:
    good = {"question": "what?", "answer": "a dog", "split": "train"}
    bad = [{**good, "answer": number} for number in range(3)] + [{**good, "answer": " "}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [good, *bad])), encoding="utf-8")
    split, problems = checks.read_leniently(str(path), None)
    found = [finding for finding in checks.found_in(checks.look(str(path), split, problems)) if finding.stops]
    assert [len(finding.rows) for finding in found] == [3, 1]
    assert found[0].line.endswith("row 2: answer is 0; expected a text, or a list of parts (and 2 more of this kind)")
    assert "row 5: answer 1 has no words" in found[1].line


def test_a_folder_without_class_folders_names_what_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(1), "PNG"))
    problems, notes = findings(tmp_path)
    assert len(problems) == 1
    assert "has no images in folders of their classes" in problems[0]
    assert notes == ["1 file that looks like a picture is passed over (1 .png): a.png"]


def test_data_without_training_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "test/cat").mkdir(parents=True)
    (tmp_path / "test/cat/a.png").write_bytes(encoded(noise(1), "PNG"))
    problems, notes = findings(tmp_path)
    assert problems == []
    assert notes == [
        "no training images: the data can be used for evaluation, not training (their folder is called train)"
    ]


def test_the_log_has_one_line_of_what_is_passed_over(strange: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "adapt"):
        for source in (strange, strange / "test", "emoji"):
            load(source, note=True)
    assert caplog.messages == [
        "pets: 4 files that look like pictures are passed over: 1 .png, 1 .txt, 1 .cr2, 1 without a suffix. "
        "`adapt data check` names them"
    ]


def test_a_file_that_is_listed_twice_and_a_class_alone(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "list.csv").write_text("path,label,split\n" + "0.png,sky,train\n" * 2)
    _, notes = findings(tmp_path / "list.csv")
    path = tmp_path / "0.png"
    assert notes == [
        "only one class, 'sky': there is nothing to distinguish",
        f"the same picture twice in one part: {path.name} ({path.name})",
    ]


def test_items_that_share_their_first_image_alone_are_no_copies(tmp_path: Path) -> None:
    rows = []
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        turns = [{"role": "user", "content": "<image><image>same?"}, {"role": "assistant", "content": "no"}]
        rows.append({"messages": turns, "images": ["0.png", f"{number}.png"], "split": "test" if number else "train"})
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    shared = "val or test conversations with an image, or of a group, of an earlier part: 0.png (0.png)"
    assert findings(tmp_path / "chats.json") == ([], [f"3 {shared}, 0.png (0.png), 0.png (0.png)"])


def test_single_images_and_copies_across_parts(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    paths[3].write_bytes(paths[0].read_bytes())
    *train, test = (Item.of(path=str(path), label=name) for path, name in zip(paths, ("sky", "sky", "sea", "sky")))
    split = Split("two", ("sky", "sea"), tuple(train), (), (test,))
    assert [finding.line for finding in checks.found_in(checks.look("two", split))] == [
        "one training image each, too few to hold any back: sea",
        f"test images that are training images too: {paths[3]} ({paths[0]})",
    ]
