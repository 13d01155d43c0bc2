"""Seeded damage to safetensors files: what disks and transfers do to bytes, and what hands do to headers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Header = dict[str, Any]
Damage = Callable[[bytes, random.Random], bytes]


def taken_apart(content: bytes) -> tuple[Header, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(header: Header | str, data: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def _data_start(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _flipped(content: bytes, first: int, stop: int, draw: random.Random) -> bytes:
    """With one bit of a byte in `[first, stop)` turned over."""
    changed = bytearray(content)
    if first < stop:
        changed[draw.randrange(first, stop)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_in_header(content: bytes, draw: random.Random) -> bytes:
    return _flipped(content, 0, _data_start(content), draw)


def flip_in_data(content: bytes, draw: random.Random) -> bytes:
    return _flipped(content, _data_start(content), len(content), draw)


def other_byte_in_header(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    changed[draw.randrange(8, _data_start(content))] = draw.choice(b' "{}[]:,-.0123456789eaENn\\\x00\xff')
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def longer(content: bytes, draw: random.Random) -> bytes:
    return content + draw.randbytes(draw.randrange(1, 64))


def wiped(content: bytes, draw: random.Random) -> bytes:
    """With a block of zeros, as after a power cut."""
    first = draw.randrange(len(content))
    size = min(draw.choice((16, 512, 4096)), len(content) - first)
    return content[:first] + bytes(size) + content[first + size :]


def shifted(content: bytes, draw: random.Random) -> bytes:
    """With a few bytes lost in the middle."""
    first = draw.randrange(len(content))
    return content[:first] + content[first + draw.randrange(1, 9) :]


def _tensors(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def key_dropped(content: bytes, draw: random.Random) -> bytes:
    header, data = taken_apart(content)
    owner, name = _some_key(header, draw)
    del owner[name]
    return put_together(header, data)


def key_renamed(content: bytes, draw: random.Random) -> bytes:
    header, data = taken_apart(content)
    owner, name = _some_key(header, draw)
    owner[draw.choice((f"{name}x", name[:-1], name.upper(), "", "\ud800"))] = owner.pop(name)
    return put_together(header, data)


def key_twice(content: bytes, draw: random.Random) -> bytes:
    header, data = taken_apart(content)
    name = draw.choice(list(header))
    return put_together(f"{json.dumps(header)[:-1]}, {json.dumps(name)}: {json.dumps(header[name])}}}", data)


def tensor_renamed(content: bytes, draw: random.Random) -> bytes:
    header, data = taken_apart(content)
    if names := _tensors(header):
        name = draw.choice(names)
        header[f"{name}x"] = header.pop(name)
    return put_together(header, data)


def _some_key(header: Header, draw: random.Random) -> tuple[Header, str]:
    """A key of the header, of its metadata, or of one tensor's description, with what it is a key of."""
    owner = draw.choice([header, header["__metadata__"], *(header[name] for name in _tensors(header)[:1])])
    return owner, draw.choice(list(owner))


def tensor_described_otherwise(content: bytes, draw: random.Random) -> bytes:
    header, data = taken_apart(content)
    names = _tensors(header)
    if not names:
        return flip_in_header(content, draw)
    entry = header[draw.choice(names)]
    field = draw.choice(("dtype", "shape", "data_offsets"))
    if field == "dtype":
        entry["dtype"] = draw.choice(
            ("F16", "BF16", "F64", "I32", "F8_E4M3", "F8_E8M0", "F4", "C64", "BOOL", "X", 3, None)
        )
    elif field == "shape":
        entry["shape"] = draw.choice(
            (
                [2**62, 2],
                [3_000_000, 128],
                [-1],
                [0],
                [],
                entry["shape"][::-1],
                [*entry["shape"], 1],
                "x",
                5,
                [1.5],
                None,
            )
        )
    else:
        first, stop = entry["data_offsets"]
        entry["data_offsets"] = draw.choice(
            ([0, stop], [first, 2**63], [stop, first], [-4, 4], [first + 4, stop + 4], 7, [])
        )
    return put_together(header, data)


WRONG = (
    None, True, -1, 0, 3_000_000, 10**18, 10**30, 1.5, 1e300, "x", "", "\n\x1b[31mforged", "\ud800", [], [[]], {},
    {"a": 1}, ["x"], [1, 2], "x" * 100_000,
)  # fmt: skip
RAW = (
    "", "{", "nan", "NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 100_000, "[" * 900 + "]" * 900,
    '{"a":' * 500 + "1" + "}" * 500, '{"a":1,"a":2}', "\x00", '"\\ud800"',
)  # fmt: skip


def metadata_is_wrong(content: bytes, draw: random.Random) -> bytes:
    """One value of the metadata is another, or no JSON at all."""
    header, data = taken_apart(content)
    metadata = header["__metadata__"]
    key = draw.choice(list(metadata))
    metadata[key] = draw.choice(RAW) if draw.random() < 0.4 else json.dumps(draw.choice(WRONG))
    return put_together(header, data)


def metadata_is_wrong_inside(content: bytes, draw: random.Random) -> bytes:
    """A value somewhere inside config, fingerprint and the like is another."""
    header, data = taken_apart(content)
    metadata = header["__metadata__"]
    found = {key: json.loads(value) for key, value in metadata.items() if value.startswith(("{", "["))}
    key = draw.choice(list(found))
    owner: Any = found[key]
    while True:
        places = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
        if not places:
            return metadata_is_wrong(content, draw)
        place = draw.choice(places)
        if isinstance(owner[place], dict | list) and owner[place] and draw.random() < 0.7:
            owner = owner[place]
            continue
        owner[place] = draw.choice(WRONG)
        break
    metadata[key] = json.dumps(found[key])
    return put_together(header, data)


def metadata_is_not_text(content: bytes, draw: random.Random) -> bytes:
    header, data = taken_apart(content)
    header["__metadata__"][draw.choice(list(header["__metadata__"]))] = draw.choice((1, None, [], {}, 1.5))
    return put_together(header, data)


def not_finite(content: bytes, draw: random.Random) -> bytes:
    """Four bytes of the data are a NaN or an infinity."""
    at = _data_start(content) + 4 * draw.randrange(max(1, (len(content) - _data_start(content)) // 4))
    return content[:at] + draw.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f")) + content[at + 4 :]


BYTES: tuple[Damage, ...] = (
    flip_in_header,
    flip_in_data,
    other_byte_in_header,
    cut,
    longer,
    wiped,
    shifted,
    not_finite,
)
KEYS: tuple[Damage, ...] = (key_dropped, key_renamed, key_twice, tensor_renamed)
HANDS: tuple[Damage, ...] = (
    tensor_described_otherwise, metadata_is_wrong, metadata_is_wrong_inside, metadata_is_not_text,
)  # fmt: skip
ALL = (*BYTES, *KEYS, *HANDS)
