"""Images are read one at a time, those of small requests first, and none that nobody waits for."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from io import BytesIO

import pytest
from PIL import Image

import adapt
from adapt.serving import admission
from adapt.serving.admission import ImageReaders, size_of


class Gate:
    """What a reader looks at: it notes each part, and lets those that are to wait pass once it is open."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.begun, self.open = threading.Semaphore(0), threading.Event()

    def look(self, part: str) -> str:
        self.seen.append(part)
        if part.startswith("wait"):
            self.begun.release()
            assert self.open.wait(30)
        return part.upper()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageReaders]:
    """Two, one of which takes no part of more than 10."""
    monkeypatch.setattr(admission, "processors", lambda: 1)
    opened = ImageReaders(small=10)
    yield opened
    opened.close()


def test_what_is_found_comes_in_order_and_the_first_error_ends_it(readers: ImageReaders, gate: Gate) -> None:
    assert readers.read("abc", [1, 99, 3], gate.look).result(30) == ["A", "B", "C"]

    def fails(part: str) -> str:
        gate.look(part)
        raise adapt.AdaptError(f"no {part}")

    with pytest.raises(adapt.AdaptError, match="no d"):
        readers.read("de", [1, 1], fails).result(30)
    assert gate.seen == ["a", "b", "c", "d"]


def test_a_thread_that_waits_holds_no_picture(readers: ImageReaders) -> None:
    """The last one of each thread stayed in memory until the next came: 256 MB of one with transparency."""
    seen: list[weakref.ref[Image.Image]] = []

    def look(part: str) -> Image.Image:
        picture = Image.new("L", (2, 2))
        seen.append(weakref.ref(picture))
        return picture

    assert len(readers.read("ab", [1, 1], look).result(30)) == 2
    until = time.monotonic() + 30
    while any(each() is not None for each in seen) and time.monotonic() < until:
        time.sleep(0.01)
    assert [each() for each in seen] == [None, None]


def test_of_which_least_is_left_goes_first(readers: ImageReaders, gate: Gate) -> None:
    for size in (99, 1):
        readers.read(["wait"], [size], gate.look)
        assert gate.begun.acquire(timeout=30)
    rest = [
        readers.read(parts, sizes, gate.look)
        for parts, sizes in ((["x", "y"], [50, 50]), (["a", "b"], [20, 40]), (["c"], [30]))
    ]
    assert len(readers) == 3
    gate.open.set()
    for each in rest:
        each.result(30)
    assert gate.seen[2:] == ["c", "a", "b", "x", "y"]


def test_large_ones_leave_a_thread_for_small_ones(readers: ImageReaders, gate: Gate) -> None:
    large = [readers.read(["wait", "rest"], [99, 99], gate.look) for _ in range(3)]
    assert gate.begun.acquire(timeout=30)
    assert readers.read("s", [10], gate.look).result(30) == ["S"]
    assert gate.seen == ["wait", "s"]
    gate.open.set()
    assert [each.result(30) for each in large] == [["WAIT", "REST"]] * 3


def test_what_is_given_up_ends_at_the_next_image(readers: ImageReaders, gate: Gate) -> None:
    given_up = readers.read(["wait", "b", "c"], [99, 99, 99], gate.look)
    assert gate.begun.acquire(timeout=30)
    waiting = readers.read("d", [99], gate.look)
    assert given_up.cancel()
    assert waiting.cancel()
    gate.open.set()
    assert readers.read("e", [99], gate.look).result(30) == ["E"]
    assert gate.seen == ["wait", "e"]


def test_it_says_for_how_long_a_thread_has_been_at_an_image(readers: ImageReaders, gate: Gate) -> None:
    assert readers.longest() == 0
    done = readers.read(["wait"], [1], gate.look)
    assert gate.begun.acquire(timeout=30)
    assert readers.longest() > 0
    gate.open.set()
    done.result(30)
    readers.read("ab", [99, 99], gate.look).result(30)
    readers.close()


def _jpeg(**how: object) -> bytes:
    file = BytesIO()
    Image.new("L", (64, 32), 128).save(file, "JPEG", **how)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow's, of so large a picture
def test_pixels_are_counted_by_the_header() -> None:
    file = BytesIO()
    Image.new("L", (10_900, 2), 128).resize((10_900, 10_900)).save(file, "PNG")
    assert size_of(file.getvalue()[:100], "a") == (10_900, 10_900)  # nothing behind the header is there
    with pytest.raises(adapt.AdaptError, match="image 'a' cannot be decoded: unknown format"):
        size_of(b"no picture", "a")


def test_scans_of_a_jpeg_are_counted_but_not_those_of_its_thumbnail() -> None:
    plain, progressive = _jpeg(), _jpeg(progressive=True)
    assert [admission._scans(each) for each in (plain, progressive)] == [1, 6]
    thumbnail = b"\xff\xe1" + (len(progressive) + 2).to_bytes(2) + progressive
    inside = plain[:2] + thumbnail + plain[2:] + progressive  # and a second picture behind the first, as in MPO
    assert admission._scans(inside) == 1
    last, end = progressive.rfind(b"\xff\xda"), progressive.rfind(b"\xff\xd9")
    many = progressive[:end] + progressive[last:end] * 26 + progressive[end:]
    assert size_of(many, "a") == (64, 32)
    with pytest.raises(adapt.AdaptError, match="'a' cannot be decoded: the image is a JPEG with more than 32 scans"):
        size_of(many[:end] + progressive[last:end] + many[end:], "a")
