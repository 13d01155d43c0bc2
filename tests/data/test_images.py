"""Decoding: every kind of file becomes RGB as it should, or an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapt.data import Item, open_image
from adapt.errors import AdaptError


@pytest.mark.parametrize(
    ("name", "mode", "colour", "options", "expected"),
    [
        ("rgb.png", "RGB", (1, 2, 3), {}, (1, 2, 3)),
        ("grey.png", "L", 77, {}, (77, 77, 77)),
        ("bits.png", "1", 1, {}, (255, 255, 255)),
        ("clear.png", "RGBA", (0, 0, 0, 0), {}, (255, 255, 255)),
        ("half.png", "RGBA", (200, 0, 0, 128), {}, (227, 127, 127)),
        ("clear.webp", "RGBA", (0, 0, 0, 0), {"lossless": True, "exact": True}, (255, 255, 255)),
        ("grey-clear.png", "LA", (0, 0), {}, (255, 255, 255)),
        ("palette.png", "P", 0, {}, (0, 0, 0)),
        ("palette-clear.png", "P", 0, {"transparency": 0}, (255, 255, 255)),
        ("key-clear.png", "RGB", (9, 9, 9), {"transparency": (9, 9, 9)}, (255, 255, 255)),
        ("16bit.png", "I;16", 0x8123, {}, (0x81, 0x81, 0x81)),
        ("16bit.tiff", "I;16", 0xFF00, {}, (255, 255, 255)),
        ("cmyk.tiff", "CMYK", (255, 0, 0, 0), {}, (0, 255, 255)),
    ],
)
def test_modes(make_image: Any, name: str, mode: str, colour: Any, options: dict[str, Any], expected: Any) -> None:
    picture = open_image(make_image(name, colour, mode, **options))
    assert picture.mode == "RGB"
    assert picture.getpixel((4, 4)) == expected


def test_a_cmyk_jpeg(make_image: Any) -> None:
    red, green, blue = open_image(make_image("cmyk.jpg", (255, 0, 0, 0), "CMYK")).getpixel((4, 4))  # type: ignore[misc]
    assert red < 5
    assert min(green, blue) > 250


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_exif_orientation_is_left_as_the_published_pipelines_leave_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (8, 4)


def test_an_item_is_opened_by_its_path(make_image: Any) -> None:
    assert open_image(Item(make_image("ä 犬.png", (7, 8, 9)), 0, "a")).getpixel((0, 0)) == (7, 8, 9)


def test_a_picture_in_memory_is_converted_alike() -> None:
    assert open_image(Image.new("RGBA", (8, 8), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(AdaptError, match="Image in memory cannot be decoded: pixels of 32 bits"):
        open_image(Image.new("F", (8, 8)))


def test_broken_files_are_named(tmp_path: Path, make_image: Any) -> None:
    whole = Path(make_image("whole.png")).read_bytes()
    advice = "Replace it or take it out of the data"
    for name, content, reason in (
        ("text.jpg", b"not an image", "unknown format"),
        ("empty.png", b"", "unknown format"),
        ("half.png", whole[: len(whole) // 2], ".*"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AdaptError, match=f"Image '.*{name}' cannot be decoded: {reason}. {advice}"):
            open_image(tmp_path / name)


def test_missing_files_are_named_with_the_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"Image '.*/a.png' does not exist\.$"):
        open_image(tmp_path / "a.png")
    with pytest.raises(AdaptError, match=r"does not exist: there is no folder '.*/no'. Check the root of the data set"):
        open_image(tmp_path / "no" / "where" / "a.png")
    with pytest.raises(AdaptError, match=r"cannot be read: .*Is a directory"):
        open_image(tmp_path)


def test_missing_and_broken_members_are_named(tmp_path: Path, emoji_zip: Path) -> None:
    with pytest.raises(AdaptError, match=r"emoji.zip!noto/none.png' does not exist: the archive has no such member"):
        open_image(f"{emoji_zip}!noto/none.png")
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    with pytest.raises(AdaptError, match=r"broken.zip!a.png' cannot be read: File is not a zip file"):
        open_image(tmp_path / "broken.zip!a.png")


def test_pixels_without_a_range_are_refused(make_image: Any) -> None:
    for name, mode, colour in (("float.tiff", "F", 0.5), ("wide.tiff", "I", 70000)):
        with pytest.raises(AdaptError, match=f"{name}' cannot be decoded: pixels of 32 bits have no fixed range"):
            open_image(make_image(name, colour, mode))


def test_a_picture_above_the_pixel_limit_is_refused(make_image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_image("large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(AdaptError, match=r"large.png' cannot be decoded: Image size .64 pixels. exceeds limit of 60"):
        open_image(path)
