"""Files as no one should give them: damaged copies of good ones, and what a reader may do with such."""

from __future__ import annotations

import io
import resource
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pillow_heif
from PIL import Image

from adapt import AdaptError

_MOST_SECONDS, _MOST_BYTES = 10.0, 2**30
_MODES = {"JPEG": "RGB", "PPM": "L", "GIF": "P"}


def damaged(content: bytes, stream: Random) -> bytes:
    """`content` with bytes flipped, a stretch cut out or doubled, or its end cut off."""
    changed = bytearray(content)
    kind, at = stream.randrange(4), stream.randrange(len(content))
    stretch = slice(at, at + stream.randrange(1, 64))
    if kind == 0:
        for _ in range(stream.choice((1, 2, 8))):
            changed[stream.randrange(min(len(content), stream.choice((64, 10**6))))] = stream.randrange(256)
    elif kind == 1:
        del changed[stretch]
    elif kind == 2:
        changed[at:at] = changed[stretch] * stream.randrange(1, 9)
    else:
        del changed[at:]
    return bytes(changed)


def survives(read: Callable[[], Any]) -> bool:
    """Whether `read` gave a result; an AdaptError of one line is the only other end, soon and in little memory."""
    started, before = time.monotonic(), _peak()
    refusal = ""
    try:
        read()
    except AdaptError as error:
        refusal = str(error)
    finally:
        assert time.monotonic() - started < _MOST_SECONDS
        assert _peak() < before + _MOST_BYTES
    assert "\n" not in refusal
    return not refusal


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def picture(image_format: str) -> bytes:
    """A small noisy picture as a file of that format."""
    noise = Image.effect_noise((40, 30), 80).convert(_MODES.get(image_format, "RGBA"))
    content = io.BytesIO()
    options = {"compression": "tiff_deflate"} if image_format == "TIFF" else {}
    if image_format == "HEIF":  # which Pillow itself does not write
        pillow_heif.from_pillow(noise).save(content)
    else:
        noise.save(content, image_format, **options)
    return content.getvalue()
