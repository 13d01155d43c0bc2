"""Storage of the feature cache: immutable safetensors files (shards), each with some features and their ids.

A shard's name is its checksum, and a rename puts it in place: any number of processes may write and read one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from adapt.common.errors import AdaptError

ID_BYTES = 16
_SUFFIX = ".safetensors"
_STALE_SECONDS = 3600


def read(folder: Path, wanted: Set[bytes]) -> dict[bytes, Tensor]:
    """Return {id: cached features (d,)} for the `wanted` ids that the shards in `folder` contain.

    A damaged shard is deleted, so that its features are computed again. Raises AdaptError if the disk fails.
    """
    rows: dict[bytes, Tensor] = {}
    with _disk(folder, "read"):
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            if rows.keys() >= wanted:
                break
            if not path.is_file():  # a pipe would block
                continue
            try:
                rows |= _read_shard(path, wanted)
            except FileNotFoundError:
                continue  # another process has just trimmed it
            except (SafetensorError, _DamagedError):
                with contextlib.suppress(OSError):  # on a read-only disk it stays, and is never used
                    path.unlink()
    return rows


def write(folder: Path, rows: Mapping[bytes, Tensor]) -> None:
    """Write the features (d,) in `rows` to a new shard in `folder`.

    Raises AdaptError if the shard cannot be written; in that case no incomplete file is left.
    """
    ids = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(-1, ID_BYTES)
    features = torch.stack(list(rows.values()))
    content = save({"ids": ids, "features": features})
    with _disk(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
            os.replace(temporary, folder / (_checksum(ids, features) + _SUFFIX))
        except OSError:
            with contextlib.suppress(OSError):  # the first error says more
                os.unlink(temporary)
            raise


def trim(directory: Path, max_bytes: int) -> None:
    """Delete the least recently used shards in `directory` until the remaining shards take at most `max_bytes`.

    Also deletes incomplete files that killed processes left. Other processes may trim at the same time. Raises
    AdaptError if the disk fails.
    """
    shards = []
    with _disk(directory, "trimmed"):
        for path in directory.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == ".tmp" and time.time() - status.st_mtime > _STALE_SECONDS:
                    path.unlink()
                elif path.suffix == _SUFFIX:
                    shards.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in shards)
        for _, size, path in sorted(shards):
            if total <= max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


def sizes(directory: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folder and the size in bytes of every shard in `directory`."""
    for path in sorted(directory.rglob(f"*{_SUFFIX}")):
        with contextlib.suppress(FileNotFoundError):  # another process has just trimmed it
            if path.is_file():
                yield path.parent, path.stat().st_size


class _DamagedError(Exception):
    """The error for a shard whose content does not match the checksum that is its file name."""


def _read_shard(path: Path, wanted: Set[bytes]) -> dict[bytes, Tensor]:
    with safe_open(path, framework="pt") as shard:
        if set(shard.keys()) != {"ids", "features"}:
            raise _DamagedError
        ids = shard.get_tensor("ids")
        packed = ids.numpy().tobytes()
        row_of = {packed[start : start + ID_BYTES]: start // ID_BYTES for start in range(0, len(packed), ID_BYTES)}
        hits = row_of.keys() & wanted
        if not hits:
            return {}
        features = shard.get_tensor("features")
    if _checksum(ids, features) != path.stem or features.ndim != 2 or len(features) * ID_BYTES != len(packed):
        raise _DamagedError
    # The time of last use, for `trim`. If it is another user's, trimmed by now, or on a read-only disk,
    # the rows are still good.
    with contextlib.suppress(OSError):
        os.utime(path)
    # Copies: the tensors themselves are a mapping of the file.
    return {row_id: features[row_of[row_id]].clone() for row_id in hits}


def _checksum(ids: Tensor, features: Tensor) -> str:
    digest = hashlib.blake2b(f"{features.dtype} {tuple(features.shape)}".encode(), digest_size=16)
    for tensor in (ids, features):
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _disk(folder: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AdaptError(
            f"the feature cache {str(folder)!r} cannot be {verb}: {error.strerror or error}. "
            "Free disk space, set ADAPT_CACHE to another folder, or switch the cache off"
        ) from error
