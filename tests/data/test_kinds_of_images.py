"""Whatever is a picture becomes the same picture; what is none is refused by what it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adapt import AdaptError
from adapt.data import Item, open_image
from adapt.data.decoding import addresses
from adapt.data.decoding.images import picture_batches

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def server(file: Path) -> Iterator[str]:
    """The address of a server on this machine with `/a.png`, and with ways to it, to a file, and to ftp.

    Of `/slow` and `/slow-headers` there comes a byte every 50 ms, 200 in all.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/slow"):
                self.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"x: " if self.path == "/slow-headers" else b"\r\n"))
                with suppress(OSError):  # of who asked and went away
                    for _ in range(200):
                        self.wfile.write(b"x")
                        time.sleep(0.05)
                return
            to = {"/away": "/a.png", "/out": f"file://{file}", "/ftp": "ftp://127.0.0.1/a.png"}.get(self.path)
            self.send_response(302 if to else 200 if self.path == "/a.png" else 404)
            if to:
                self.send_header("Location", to)
            self.end_headers()
            if self.path == "/a.png":
                self.wfile.write(file.read_bytes())

        def log_message(self, *args: Any) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def kinds(file: Path) -> dict[str, Any]:
    content, tensor = file.read_bytes(), torch.from_numpy(PIXELS).permute(2, 0, 1)
    return {
        "path": file,
        "text": str(file),
        "item": Item.of(path=str(file), label="a"),
        "bytes": content,
        "bytearray": bytearray(content),
        "view": memoryview(content),
        "picture": Image.open(BytesIO(content)),
        "array": PIXELS,
        "floats": PIXELS / 255,
        "halves": (PIXELS / 255).astype(np.float16),
        "tensor": tensor,
        "float tensor": tensor / 255,
        "bfloat16": (tensor / 255).to(torch.float64).requires_grad_(),
        "fortran": np.asfortranarray(PIXELS),
    }


def test_every_kind_is_the_same_picture(file: Path) -> None:
    for kind, source in kinds(file).items():
        assert np.array_equal(np.asarray(open_image(source)), PIXELS), kind
        (batch,) = picture_batches(source, 4)
        assert [picture.size for picture in batch] == [(9, 6)], kind


@pytest.mark.parametrize("one", [True, False])
def test_grey_and_transparent_arrays(one: bool) -> None:
    grey = PIXELS[..., :1] if one else PIXELS[..., 0]
    assert np.array_equal(np.asarray(open_image(grey)), PIXELS[..., :1].repeat(3, -1))
    assert np.array_equal(np.asarray(open_image(torch.from_numpy(PIXELS[..., 0]))), PIXELS[..., :1].repeat(3, -1))
    clear = np.concatenate([PIXELS, np.zeros((6, 9, 1), np.uint8)], -1)
    assert np.asarray(open_image(clear)).min() == 255


def test_lists_iterators_and_stacks(file: Path) -> None:
    stack = np.stack([PIXELS] * 5)
    sources = [[file] * 5, (file for _ in range(5)), stack, torch.from_numpy(stack).permute(0, 3, 1, 2), [*stack]]
    objects = np.empty(5, object)
    objects[:] = [file, PIXELS, str(file), file.read_bytes(), open_image(file)]
    paths = [str(file)] * 5
    arrays = [np.array(paths), np.array(paths, np.dtypes.StringDType()), np.array([Path(path) for path in paths])]
    contents = np.array([file.read_bytes()] * 5)
    for source in (*sources, objects, *arrays, contents, list(kinds(file).values())[:5]):
        assert [len(batch) for batch in picture_batches(source, 2)] == [2, 2, 1]
    assert list(picture_batches([], 2)) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((2, 3, 4, 5)), r"array of shape \(2, 3, 4, 5\); expected \(h, w\), or \(h, w, c\)"),
        (np.zeros((3, 8, 8)), r"\(3, 8, 8\); expected"),
        (torch.zeros(8, 8, 3), r"\(8, 8, 3\); expected \(h, w\), or \(c, h, w\)"),
        (np.zeros((0, 8, 3)), r"\(0, 8, 3\); expected"),
        (np.full((8, 8, 3), 255.0), "floats from 255 to 255; expected 0 to 1"),
        (np.full((8, 8, 3), np.nan), "floats from nan"),
        (torch.full((3, 8, 8), -1.5), r"already normalised by a backbone's transform, call model\(pixels\) instead"),
        (np.zeros((8, 8, 3), int), "array of int64; expected uint8"),
        (np.zeros((1, 500, 3), np.uint8), "the longer side may be at most 100 times"),
        (b"no picture", "image 'in memory' cannot be decoded: unknown format"),
        ({"a": 1}, r"\{'a': 1\} is not an image; expected a path, the bytes"),
        (3, "3 is not an image"),
        (None, "None is not an image"),
    ],
)
def test_what_is_no_picture(source: Any, words: str) -> None:
    with pytest.raises(AdaptError, match=words):
        open_image(source)


def test_what_is_no_list_of_pictures() -> None:
    with pytest.raises(AdaptError, match=r"array of shape \(\); expected"):
        list(picture_batches(np.array("a.png"), 2))
    with pytest.raises(AdaptError, match="3 is not an image; expected a path"):
        list(picture_batches(3, 2))


def test_an_address_is_fetched_where_that_is_allowed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.array_equal(np.asarray(open_image(f"{server}/a.png", urls=True)), PIXELS)
    assert np.array_equal(np.asarray(open_image(f"{server}/away", urls=True)), PIXELS)
    assert [picture.size for picture in next(picture_batches([f"{server}/a.png"] * 2, 2, urls=True))] == [(9, 6)] * 2
    for address, words in (
        ("/none.png", "the server answers 404"),
        ("/out", "is not allowed"),
        ("/ftp", "it leads to 'ftp:"),
    ):
        with pytest.raises(AdaptError, match=words):
            open_image(server + address, urls=True)
    with pytest.raises(AdaptError, match="is a web address, but downloads are not allowed: give urls=True"):
        open_image(f"{server}/a.png")
    with pytest.raises(AdaptError, match="cannot be fetched"):
        open_image("http://127.0.0.1:1/a.png", urls=True)
    monkeypatch.setattr(addresses, "MOST_BYTES", 99)
    with pytest.raises(AdaptError, match="more than 99 bytes"):
        open_image(f"{server}/a.png", urls=True)


@pytest.mark.parametrize("path", ["/slow", "/slow-headers"])
def test_an_address_whose_bytes_trickle_in_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(addresses, "_SECONDS", 0.3)
    with pytest.raises(AdaptError, match=f"{path}' cannot be fetched: timed out"):
        open_image(server + path, urls=True)


def test_a_file_address_is_a_path_that_is_not_there(file: Path) -> None:
    with pytest.raises(AdaptError, match="does not exist"):
        open_image(f"file://{file}", urls=True)
