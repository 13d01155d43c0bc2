"""Safetensors files with a strictly checked header, and a checksum over the content.

The checksum covers metadata, names, types, shapes and bytes in sorted order, so that it does not depend on the order in
which a writer stores the tensors. SHA-256 takes 0.6 ms for each MiB if the processor has instructions for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.shown import shown

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "checksum"  # its key in the metadata
_MAX_HEADER = 16 * 2**20  # bytes; parsing takes about thirty times as much memory
_MAX_VALUES = 250_000  # ten descriptors for each class of ImageNet-21k; more would take seconds to check
_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


class What(NamedTuple):
    """The words of error messages about a kind of file: the name of the kind, and the advice for a damaged file."""

    name: str
    advice: str


ADAPTER = What("adapter", "fetch or train the adapter again")


class Described(NamedTuple):
    """The metadata of a safetensors file without the checksum, and separately the recorded checksum, if any."""

    metadata: dict[str, str]
    checksum: str | None


def write(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes are the same for equal tensors and metadata.

    Raises OSError if writing fails, as on a full disk, and AdaptError for a header that is larger than `read` accepts.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, {**metadata, CHECKSUM: checksum(tensors, metadata)})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the file's metadata by key, because safetensors writes keys in random order, and check the header size."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        for size, most, unit in ((length, _MAX_HEADER, "bytes"), (text.count(b","), _MAX_VALUES, "values")):
            _check_size(size, most, unit, "the new file", ": leave out classes, descriptors or other texts")
        file.seek(8)
        file.write(text.ljust(length))


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the checksum of tensors and metadata in the form `sha256:` followed by 64 hexadecimal digits."""
    import torch

    kinds = [(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in sorted(tensors.items())]
    digest = hashlib.sha256(json.dumps([sorted(metadata.items()), kinds]).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def describe(path: Path, what: What = ADAPTER) -> Described:
    """Return the header of the file at `path`. Raises AdaptError for a missing or truncated file or an invalid header.

    Duplicate keys and unusual types, which safetensors itself accepts, are invalid here.
    """
    try:
        header = plain.parse(_header_text(path, what))
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("the metadata contain values that are not strings")
        for name, entry in header.items():
            shape = tuple(entry["shape"])
            if entry["dtype"] not in _TYPES:
                raise ValueError(f"tensor {name!r} is of type {entry['dtype']!r}; expected one of {', '.join(_TYPES)}")
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(f"tensor {name!r} has the shape {shape!r}; expected integers of at least 0")
        recorded = metadata.pop(CHECKSUM, None)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdaptError(f"{path} has no readable header ({shown(error)}); {what.advice}") from error
    return Described(metadata, recorded)


def _header_text(path: Path, what: What) -> bytes:
    if not path.is_file():
        raise AdaptError(f"there is no {what.name} at {path}: check the path")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= path.stat().st_size - 8:
                raise AdaptError(f"{path} is truncated or not a safetensors file; {what.advice}")
            _check_size(length, _MAX_HEADER, "bytes", path)
            text = file.read(length)
    except OSError as error:
        raise AdaptError(f"{path} cannot be read: {error.strerror or error}") from error
    _check_size(text.count(b","), _MAX_VALUES, "values", path)
    return text


def _check_size(size: int, most: int, unit: str, source: object, advice: str = "") -> None:
    if size > most:
        raise AdaptError(f"{source} has a header of {size:,} {unit}; expected at most {most:,}{advice}")


def read(path: Path, what: What = ADAPTER) -> dict[str, Tensor]:
    """Return the tensors of the file at `path`. Raises AdaptError if the file is damaged or its checksum is wrong."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    described = describe(path, what)
    try:
        tensors = dict(load_file(path))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise AdaptError(f"{path} is truncated or damaged ({shown(error)}); {what.advice}") from error
    if described.checksum not in (None, checksum(tensors, described.metadata)):
        raise AdaptError(f"{path} is damaged: its tensors and header do not match its checksum; {what.advice}")
    return tensors


def check_finite(tensors: dict[str, Tensor], source: str) -> None:
    """Raise AdaptError if a tensor from `source` has values that are not finite."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise AdaptError(
                f"tensor {name!r} of {source} has values that are not finite: train again at a lower learning rate"
            )
