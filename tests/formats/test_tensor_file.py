"""The checksum of a safetensors file, and headers that the library's own reader would take."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from pathlib import Path

import pytest
import safetensors.torch
import torch
from faults import corrupt
from torch import Tensor

from adapt import AdaptError
from adapt.common.disk import replacing
from adapt.formats import tensor_file

METADATA = {"who": "me", "what": "a test"}


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {"b": torch.randn(3, 4), "a": torch.arange(5), "c": torch.zeros(0, 2), "d": torch.tensor(1.5).half()}


@pytest.fixture
def file(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    tensor_file.write(tensors, tmp_path / "a.safetensors", METADATA)
    return tmp_path / "a.safetensors"


def test_what_is_written_is_read(file: Path, tensors: dict[str, Tensor]) -> None:
    found = tensor_file.read(file)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert tensor_file.describe(file).metadata == METADATA


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("," * 249_981, None),  # beside those between names, types, shapes and offsets
        ("," * 250_001, r"header of 250,\d+ values; expected at most 250,000: leave out classes, descriptors"),
        ("x" * 2**24, r"header of 16,777,\d+ bytes; expected at most 16,777,216: leave out classes, descriptors"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(
    text: str, message: str | None, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    refused = pytest.raises(AdaptError, match=message) if message else nullcontext()
    with refused, replacing(path) as temporary:
        tensor_file.write(tensors, temporary, {"text": text})
    assert path.exists() == (message is None)
    assert message or tensor_file.describe(path).metadata == {"text": text}


def test_every_flipped_bit_of_the_data_is_found(file: Path) -> None:
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for bit in range(8 * (len(whole) - start)):
        changed = bytearray(whole)
        changed[start + bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(AdaptError, match="is damaged: its tensors and header do not match its checksum"):
            tensor_file.read(file)


def test_flipped_bits_of_the_header_are_found_or_change_nothing(file: Path, tensors: dict[str, Tensor]) -> None:
    whole, refused = file.read_bytes(), 0
    for seed in range(300):
        file.write_bytes(corrupt.flip_in_header(whole, random.Random(seed)))
        try:
            found = tensor_file.read(file)
        except AdaptError:
            refused += 1
            continue
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert refused > 250


def test_the_layout_of_the_file_does_not_matter(file: Path, tensors: dict[str, Tensor]) -> None:
    header, data = corrupt.taken_apart(file.read_bytes())
    turned, moved = {}, b""
    for name in sorted(tensors, reverse=True):
        first, stop = header[name]["data_offsets"]
        turned[name] = header[name] | {"data_offsets": [len(moved), len(moved) + stop - first]}
        moved += data[first:stop]
    turned["__metadata__"] = dict(reversed(header["__metadata__"].items()))
    file.write_bytes(corrupt.put_together(json.dumps(turned, indent=1), moved))
    assert torch.equal(tensor_file.read(file)["b"], tensors["b"])


@pytest.mark.parametrize("kind", ["shape", "dtype", "name", "metadata", "value"])
def test_the_checksum_covers_what_is_said_of_the_bytes(kind: str, tensors: dict[str, Tensor]) -> None:
    metadata = dict(METADATA)
    before = tensor_file.checksum(tensors, metadata)
    if kind == "shape":
        tensors["b"] = tensors["b"].reshape(4, 3)
    elif kind == "dtype":
        tensors["b"] = tensors["b"].view(torch.int32)
    elif kind == "name":
        tensors["e"] = tensors.pop("d")
    elif kind == "value":
        tensors["a"][3] = 4
    else:
        metadata["who"] = "you"
    assert tensor_file.checksum(tensors, metadata) != before


@pytest.mark.parametrize("error", [safetensors.SafetensorError, OSError, ValueError, RuntimeError])
def test_whatever_the_library_cannot_read_is_damaged(
    error: type[Exception], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        raise error("it is odd\ninside")

    monkeypatch.setattr(safetensors.torch, "load_file", fails)
    with pytest.raises(
        AdaptError, match=r"a\.safetensors is truncated or damaged \(it is odd.*inside\); fetch or train"
    ):
        tensor_file.read(file)


def test_files_of_others_have_no_checksum(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    assert tensor_file.describe(tmp_path / "x.safetensors").checksum is None
    assert tensor_file.read(tmp_path / "x.safetensors")["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"__metadata__": {"a": 1}}', "the metadata contain values that are not strings"),
        ('{"x": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}}', "'x' is of type 'F8_E4M3'"),
        ('{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}', r"'x' has the shape \(-1,\)"),
        ('{"x": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 0]}}' % ("9" * 5000), "Exceeds the limit"),
        ('{"x": NaN}', "NaN is not allowed in JSON"),
        ("[]", "no readable header"),
        ('{"x": 5}', "no readable header"),
        ('{"x": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', r"'x' has the shape \(True,\)"),
        ('{"x": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}', "no readable header"),
        ('{"x": {"dtype": "F32"}}', "no readable header"),
        ('{"__metadata__": 1}', "no readable header"),
        ("x", "is truncated or not a safetensors file"),
    ],
)  # fmt: skip
def test_headers_that_make_no_sense(header: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(corrupt.put_together(header, b""))
    with pytest.raises(AdaptError, match=message) as caught:
        tensor_file.read(tmp_path / "x.safetensors")
    assert str(tmp_path / "x.safetensors") in str(caught.value)


TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool]
TYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


@pytest.mark.parametrize("kind", TYPES)
def test_types_that_can_be_computed_with(kind: torch.dtype, tmp_path: Path) -> None:
    tensor_file.write({"x": torch.ones(2, 3).to(kind)}, tmp_path / "x.safetensors", {})
    assert tensor_file.read(tmp_path / "x.safetensors")["x"].dtype == kind


def test_an_empty_file_of_tensors(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(corrupt.put_together("{}", b""))
    described = tensor_file.describe(tmp_path / "x.safetensors")
    assert (described.metadata, described.checksum) == ({}, None)
    with pytest.raises(AttributeError):
        described.checksum = "x"  # type: ignore[misc]


def test_a_header_beyond_all_bounds_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write((40 * 2**20).to_bytes(8, "little"))
        file.truncate(50 * 2**20)
    with pytest.raises(AdaptError, match=r"has a header of 41,943,040 bytes; expected at most 16,777,216"):
        tensor_file.read(tmp_path / "x.safetensors")
