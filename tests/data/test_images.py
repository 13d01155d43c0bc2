"""Decoding: every kind of file becomes RGB as it should, or an error that names it."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from adapt.common.errors import AdaptError
from adapt.data import Item, open_image
from adapt.data.check import broken_images
from adapt.data.decoding import files, pictures
from adapt.data.decoding.files import read_bytes
from adapt.data.decoding.images import check_image, each_of


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
    assert open_image(Item.of(path=make_image("ä 犬.png", (7, 8, 9)), label="a")).getpixel((0, 0)) == (7, 8, 9)


def test_a_picture_in_memory_is_converted_alike() -> None:
    assert open_image(Image.new("RGBA", (8, 8), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(AdaptError, match="image in memory cannot be decoded: pixels of 32 bits"):
        open_image(Image.new("F", (8, 8)))


def test_broken_files_are_named(tmp_path: Path, make_image: Any) -> None:
    whole = Path(make_image("whole.png")).read_bytes()
    advice = "Replace or remove the image"
    for name, content, reason in (
        ("text.jpg", b"not an image", "unknown format"),
        ("empty.png", b"", "the file is empty"),
        ("half.png", whole[: len(whole) // 2], ".*"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AdaptError, match=f"image '.*{name}' cannot be decoded: {reason}. {advice}"):
            open_image(tmp_path / name)


def test_missing_files_are_named_with_the_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"image '.*/a.png' does not exist$"):
        open_image(tmp_path / "a.png")
    with pytest.raises(
        AdaptError, match=r"does not exist: there is no folder '.*/no' \(paths in a list start from its root"
    ):
        open_image(tmp_path / "no" / "where" / "a.png")
    with pytest.raises(AdaptError, match=r"is a folder: give the images in it"):
        open_image(tmp_path)


def test_missing_and_broken_members_are_named(tmp_path: Path, emoji_zip: Path) -> None:
    with pytest.raises(AdaptError, match=r"emoji.zip!noto/none.png' does not exist: the archive has no such member"):
        open_image(f"{emoji_zip}!noto/none.png")
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    with pytest.raises(AdaptError, match=r"broken.zip!a.png' cannot be read: File is not a zip file"):
        open_image(tmp_path / "broken.zip!a.png")


def test_pixels_without_a_range_are_refused(make_image: Any) -> None:
    for name, mode, colour in (("float.tiff", "F", 0.5), ("wide.tiff", "I", 70000), ("signed.tiff", "I", -5)):
        with pytest.raises(AdaptError, match=f"{name}' cannot be decoded: pixels of 32 bits have no fixed range"):
            open_image(make_image(name, colour, mode))


def test_a_picture_above_the_pixel_limit_is_refused(make_image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_image("large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(AdaptError, match="the image has more pixels than the limit of 40; save a smaller copy"):
        open_image(path)


@pytest.mark.parametrize("size", [(1, 300_000), (300_000, 1), (3, 301)])
def test_a_picture_too_narrow_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "narrow.png")
    with pytest.raises(AdaptError, match=f"is {size[0]} x {size[1]} pixels; the longer side may be at most 100 times"):
        open_image(tmp_path / "narrow.png")
    path = str(tmp_path / "narrow.png")
    assert list(broken_images([Item.of(path=path, label="a")])) == [path]


def test_a_picture_as_narrow_as_may_be(tmp_path: Path) -> None:
    Image.new("RGB", (3, 300)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").size == (3, 300)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("name", "most"), [("a.png", 42), ("a.webp", 16)])
def test_fewer_pixels_are_decoded_than_pillow_decodes(
    make_image: Any, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    path = make_image(name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32)
    with pytest.raises(AdaptError, match=f"the image has 64 pixels, more than the limit of {most}"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(path).size == (8, 8)


def test_transparency_is_said_once(make_image: Any, caplog: pytest.LogCaptureFixture) -> None:
    pictures._note_white.cache_clear()
    caplog.set_level("INFO", "adapt")
    for _ in range(2):
        open_image(make_image("clear.png", 0, "P", transparency=0))
    assert caplog.messages == ["there are transparent images, which are laid over white"]


@pytest.mark.parametrize(("mode", "bytes_each"), [("RGBA", 4), ("LA", 2), ("I;16", 2)])
def test_large_pictures_are_converted_by_bands_to_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, bytes_each: int
) -> None:
    noise = Random(0).randbytes(30 * 31 * bytes_each)
    Image.frombytes(mode, (30, 31), noise).save(tmp_path / "noise.png")
    whole = open_image(tmp_path / "noise.png")
    monkeypatch.setattr(pictures, "_BAND", 7 * 30)
    assert open_image(tmp_path / "noise.png").tobytes() == whole.tobytes()


def test_only_the_formats_that_are_listed_are_decoded(make_image: Any, tmp_path: Path) -> None:
    for name, image_format in (("eps.png", "EPS"), ("pcx.png", "PCX"), ("icon.png", "ICO")):
        content = io.BytesIO()
        Image.new("RGB", (8, 8)).save(content, image_format)
        (tmp_path / name).write_bytes(content.getvalue())
        with pytest.raises(AdaptError, match=f"{name}' cannot be decoded: unknown format"):
            open_image(tmp_path / name)
    for suffix in (".bmp", ".gif", ".jpeg", ".pgm", ".ppm", ".tiff", ".webp"):
        assert open_image(make_image(f"a{suffix}", 10, "L")).size == (8, 8)


def test_ghostscript_is_not_run(make_image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    calls: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **more: calls.append(given))
    with pytest.raises(AdaptError, match="unknown format"):
        open_image(Path(make_image("a.eps")).rename(Path(make_image("a.png"))))
    assert calls == []


def test_pipes_sockets_and_devices_are_refused_unopened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.png"))
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, reason in (
        ("pipe", "it is a named pipe, not a regular file"),
        ("socket", "it is a socket, not a regular file"),
        ("device", "it is a device, not a regular file"),
        ("loop", ".*Too many levels of symbolic links.*"),
    ):
        item = Item.of(path=str(tmp_path / f"{name}.png"), label="a")
        for read in (open_image, check_image, lambda item: read_bytes(item.path)):
            with pytest.raises(AdaptError, match=f"image .*{name}.png' cannot be read: {reason}"):
                read(item)


def test_an_archive_that_is_a_pipe(tmp_path: Path) -> None:
    for suffix in ("zip!a.png", "arrow!image/0"):
        os.mkfifo(tmp_path / f"pipe.{suffix.partition('!')[0]}")
        with pytest.raises(AdaptError, match="cannot be read: it is a named pipe"):
            open_image(f"{tmp_path}/pipe.{suffix}")


def test_a_file_too_large_to_be_a_picture(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(AdaptError, match=r"sparse.png' cannot be read: it has more than 268,435,456 bytes"):
        read_bytes(tmp_path / "sparse.png")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: int) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("a.png", bytes(2**20))
    whole = archive.read_bytes()
    monkeypatch.setattr(files, "MOST_BYTES", 2**19)
    with pytest.raises(AdaptError, match="the image unpacks to 1,048,576 bytes, more than the limit of 524,288"):
        open_image(f"{archive}!a.png")
    # a header that says less than there is
    (tmp_path / "liar.zip").write_bytes(whole.replace((2**20).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(AdaptError, match=r"liar.zip!a.png' cannot be read: Bad CRC-32"):
        open_image(f"{tmp_path / 'liar.zip'}!a.png")


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "secret.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", b"x")
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    archive.write_bytes(content)
    with pytest.raises(
        AdaptError, match=r"secret.zip!a.png' cannot be read: the archive is encrypted: save the archive without"
    ):
        open_image(f"{archive}!a.png")


@pytest.mark.parametrize("member", ["nowhere/1", "image/7", "image/x", "image", "label/0", ""])
def test_cells_that_a_table_has_not(tmp_path: Path, member: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"image": [{"bytes": None}], "label": [0]})
    with pyarrow.OSFile(str(tmp_path / "t.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(AdaptError, match=r"image '.*t.arrow!.*' (cannot be read|does not exist)"):
        open_image(f"{tmp_path}/t.arrow!{member}")


def test_a_scene_of_no_set(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"image '.*' (cannot be read|does not exist)"):
        open_image(f"{tmp_path}/nothing.scenes!train/00000.png")


def test_an_open_file_is_no_sequence_of_images() -> None:
    with pytest.raises(AdaptError, match=r"is an open file; expected .*: give what its read\(\) returns"):
        each_of(io.BytesIO(b"a\nb"))
