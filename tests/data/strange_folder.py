"""A folder of class folders with one file of every kind that people have, and what is known of each."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pillow_heif
from PIL import Image

TURNED, MIRRORED = 6, 2  # EXIF orientations: a camera held upright, and a picture seen in a mirror


def noise(number: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture that is like no other, the same wherever it is asked for."""
    pixels = bytes((number * 37 + 11 * place + place * place) % 251 for place in range(size[0] * size[1] * 3))
    return Image.frombytes("RGB", size, pixels)


def held(orientation: int) -> bytes:
    """EXIF that says how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return content.getvalue()


def heic(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    pillow_heif.from_pillow(picture).save(content)
    return content.getvalue()


def build(root: Path) -> Path:
    """Classes `cat` and `dog`, in the parts train and test, and files beside them; returns the folder."""
    for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (root / folder).mkdir(parents=True)
    jpeg = encoded(noise(3), "JPEG")
    files = {
        "train/cat/good.png": encoded(noise(1), "PNG"),
        "train/cat/phone.heic": heic(noise(2)),
        "train/cat/web.avif": encoded(noise(4), "AVIF"),
        "train/cat/sideways.jpg": encoded(noise(5), "JPEG", exif=held(TURNED)),
        "train/cat/mirrored.png": encoded(noise(6), "PNG", exif=held(MIRRORED)),
        "train/cat/scan.png": encoded(Image.new("I;16", (40, 40), 0x8123), "PNG"),
        "train/cat/print.jpg": encoded(noise(7).convert("CMYK"), "JPEG"),
        "train/cat/moving.gif": encoded(noise(8), "GIF", save_all=True, append_images=[noise(9), noise(10)]),
        "train/cat/cut.jpg": jpeg[: len(jpeg) // 2],
        "train/cat/empty.jpg": b"",
        "train/cat/large.png": encoded(Image.new("RGB", (8000, 6000), (9, 8, 7)), "PNG", compress_level=1),
        "train/cat/really_png.jpg": encoded(noise(11), "PNG"),
        "train/cat/same.jpg": jpeg,
        "train/cat/same_again.jpg": jpeg,
        "train/dog/rewritten.bmp": encoded(noise(1), "BMP"),
        "train/dog/alone.png": encoded(noise(12), "PNG"),
        "test/cat/copied.jpg": jpeg,
        "test/cat/other.png": encoded(noise(13), "PNG"),
        "test/dog/cat_in_training.jpg": jpeg,
        "train/cat/raw.CR2": b"not decoded",
        "train/cat/photo.txt": encoded(noise(14), "JPEG"),
        "train/dog/nameless": encoded(noise(15), "PNG"),
        "loose.png": encoded(noise(16), "PNG"),
        "train/cat/notes.txt": b"P is the first letter of these notes",
        "train/cat/Thumbs.db": b"\xd0\xcf\x11\xe0",
        "labels.json": b"{}",
        "train/cat/.hidden.jpg": b"nothing",
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    os.utime(root)
    return root
