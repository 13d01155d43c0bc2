"""What costs a server most of what clients may send, of the kinds that its limits allow and a few that they do not."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

from PIL import Image, PngImagePlugin

SIDE = 8000  # of a picture of as many pixels as a request may have
IMAGES = 32
BYTES = 20 * 2**20
_FORM, _JSON = "multipart/form-data; boundary=b", "application/json"
Body = tuple[str, bytes]  # with its type of content


def picture(side: int, kind: str = "PNG", mode: str = "RGBA", **how: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side), "white" if mode != "L" else 128).save(file, kind, **how)
    return file.getvalue()


def form(*images: bytes, **fields: str) -> Body:
    head = b"--b\r\nContent-Disposition: form-data; name="
    parts = [b'"images"; filename="a"\r\n\r\n' + image for image in images]
    parts += [f'"{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    return _FORM, b"".join(head + part + b"\r\n" for part in parts) + b"--b--\r\n"


def chat(image: bytes) -> Body:
    """A conversation with the adapter that is called chat."""
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    asked = {"model": "chat", "max_tokens": 16, "messages": [{"role": "user", "content": content}]}
    return _JSON, json.dumps(asked).encode()


def _scans() -> Body:
    """A progressive JPEG whose last scan comes again and again, as often as is allowed."""
    content = picture(SIDE, "JPEG", "L", progressive=True)
    last, end = content.rfind(b"\xff\xda"), content.rfind(b"\xff\xd9")
    return form(content[:end] + content[last:end] * (32 - content.count(b"\xff\xda")) + content[end:])


def _texts() -> Body:
    """Small pictures beside texts that unpack to 60 MiB."""
    info = PngImagePlugin.PngInfo()
    for number in range(60):
        info.add_text(f"{number}", "a" * (2**20 - 10), zip=True)
    return form(*[picture(8, pnginfo=info)] * IMAGES)


def _padded() -> Body:
    image = picture(SIDE)
    return form(image + bytes(BYTES - len(image) - 500))


_ASK = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
_CHUNKED = (
    b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
)

# what one connection sends at once
AT_ONCE: dict[str, Callable[[], bytes]] = {
    "thousands of requests": lambda: (_ASK + b"\r\n") * 4000,
    "a quarter of a megabyte of headers": lambda: _ASK + b"".join(b"X-%d: a\r\n" % n for n in range(25_000)) + b"\r\n",
    "chunks of a byte": lambda: _CHUNKED + b"\r\n" + b"1\r\n \r\n" * 40_000 + b"0\r\n\r\n",
}
WORST: dict[str, Callable[[], Body]] = {
    "grey pictures of 10,900 x 10,900": lambda: form(*[picture(10_900, mode="L")] * IMAGES),
    "one PNG of all pixels": lambda: form(picture(SIDE)),
    "one deflated TIFF of all pixels": lambda: form(picture(SIDE, "TIFF", compression="tiff_adobe_deflate")),
    "one AVIF of all pixels": lambda: form(picture(SIDE, "AVIF", "RGB", speed=10)),
    "one WebP of most pixels": lambda: form(picture(6600, "WEBP", "RGB", quality=10, method=0)),
    "32 PNGs of all pixels": lambda: form(*[picture(int((SIDE**2 / IMAGES) ** 0.5))] * IMAGES),
    "32 images of few pixels": lambda: form(*[picture(16)] * IMAGES),
    "boxes in a picture of most pixels": lambda: form(picture(7000), boxes="true"),
    "what 15 pictures rest on": lambda: form(*[picture(64)] * 15, explain="true"),
    "a JPEG of 32 scans": _scans,
    "PNGs with texts": _texts,
    "a PNG of all pixels and bytes": _padded,
    "JSON of millions of keys": lambda: (_JSON, b"{" + b",".join(b'"%d":1' % i for i in range(1_700_000)) + b"}"),
    "JSON of one string": lambda: (_JSON, b'{"images":["' + b"A" * (BYTES - 100) + b'"]}'),
}
