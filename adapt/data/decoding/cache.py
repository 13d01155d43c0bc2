"""A cache of image features on disk, by backbone and transform (the key), image content, and augmented view.

It consists of immutable safetensors files (shards), each with some features and their ids. A shard's name is its
checksum, and a rename puts it in place: any number of processes may write and read one folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.data.decoding.decoded import Decoded
from adapt.data.decoding.draws import Draw
from adapt.data.decoding.files import read_bytes
from adapt.data.decoding.image_set import ImageSet
from adapt.data.decoding.images import in_batches
from adapt.data.item import Item, no_label

if TYPE_CHECKING:
    from adapt.backbones.preprocess import Transform

logger = logging.getLogger("adapt")


ID_BYTES = 16
_SUFFIX = ".safetensors"
_STALE_SECONDS = 3600


def _read_shards(folder: Path, wanted: Set[bytes]) -> dict[bytes, Tensor]:
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
            except SafetensorError:
                with suppress(OSError):  # on a read-only disk it stays, and is never used
                    path.unlink()
    return rows


def _write_shard(folder: Path, rows: Mapping[bytes, Tensor]) -> None:
    """Write the features (d,) in `rows` to a new shard in `folder`, whole or not at all."""
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
            with suppress(OSError):  # the first error says more
                os.unlink(temporary)
            raise


def _trim(directory: Path, max_bytes: int) -> None:
    """Delete the least recently used shards in `directory` until the remaining shards take at most `max_bytes`.

    Also deletes incomplete files that killed processes left. Other processes may trim at the same time. Raises
    AdaptError if the disk fails.
    """
    shards: list[tuple[float, int, Path]] = []
    with _disk(directory, "trimmed"):
        for path in directory.rglob("*"):
            with suppress(FileNotFoundError):
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


def _read_shard(path: Path, wanted: Set[bytes]) -> dict[bytes, Tensor]:
    """Return what a shard has of `wanted`. Raises SafetensorError if its content does not match its file's name."""
    with safe_open(path, framework="pt") as shard:
        if set(shard.keys()) != {"ids", "features"}:
            raise SafetensorError("it has other tensors than a shard")
        ids = shard.get_tensor("ids")
        packed = ids.numpy().tobytes()
        row_of = {packed[start : start + ID_BYTES]: start // ID_BYTES for start in range(0, len(packed), ID_BYTES)}
        hits = row_of.keys() & wanted
        if not hits:
            return {}
        features = shard.get_tensor("features")
    if _checksum(ids, features) != path.stem or features.ndim != 2 or len(features) * ID_BYTES != len(packed):
        raise SafetensorError("its content does not match the checksum that is its name")
    # The time of last use, for `trim`. If it is another user's, trimmed by now, or on a read-only disk,
    # the rows are still good.
    with suppress(OSError):
        os.utime(path)
    # Copies: the tensors themselves are a mapping of the file.
    return {row_id: features[row_of[row_id]].clone() for row_id in hits}


def _checksum(ids: Tensor, features: Tensor) -> str:
    digest = hashlib.blake2b(f"{features.dtype} {tuple(features.shape)}".encode(), digest_size=16)
    for tensor in (ids, features):
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _disk(folder: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AdaptError(
            f"the feature cache {str(folder)!r} cannot be {verb}: {error.strerror or error}. "
            "Free disk space, set ADAPT_CACHE to another folder, or switch the cache off"
        ) from error


_FORMAT = "1"  # part of every folder's name: a newer format leaves older shards untouched
_SHARD_ROWS, _SHARD_BYTES = 1024, 2**26  # the most that a killed run loses
_MANY = 32  # images, of fewer of which it saves too little to speak of
_told: set[Path] = set()  # the directories about whose failure this process has warned


class FeatureCache:
    """A disk cache of image features in `directory` (default: `$ADAPT_CACHE` or `~/.cache/adapt/features`).

    Features of an image are computed once, even if the image occurs in several data sets, few-shot samples or
    processes. Above `max_bytes` (default: `$ADAPT_CACHE_GIB`, or 4 GiB), the least recently used shards are deleted. If
    the disk fails, is full or is read-only, features in the cache are still used, all other features are computed each
    time, and a warning is logged once.

    Raises AdaptError if `$ADAPT_CACHE_GIB` is not a positive number.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, max_bytes: int | None = None) -> None:
        default = os.environ.get("ADAPT_CACHE") or Path.home() / ".cache" / "adapt" / "features"
        self.directory = Path(directory or default)
        text = os.environ.get("ADAPT_CACHE_GIB") or "4"
        try:
            gib = float(text)
        except ValueError:
            gib = -1.0
        if max_bytes is None and not 0 < gib < float("inf"):
            raise AdaptError(f"ADAPT_CACHE_GIB is {text!r}; expected the maximum size of the cache in GiB, such as 4")
        self.max_bytes = int(gib * 2**30) if max_bytes is None else max_bytes

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return {folder: (number of files, bytes)} for the cache, which has one folder per backbone and transform."""
        folders: dict[str, tuple[int, int]] = {}
        for path in sorted(self.directory.rglob(f"*{_SUFFIX}")):
            with suppress(FileNotFoundError):  # another process has just trimmed it
                if path.is_file():
                    files, total = folders.get(path.parent.name, (0, 0))
                    folders[path.parent.name] = files + 1, total + path.stat().st_size
        return folders

    def clear(self) -> None:
        """Delete all cached features, but no other files in the cache directory."""
        _trim(self.directory, 0)

    def features(
        self,
        items: Sequence[Item],
        transform: Transform,
        encode: Callable[[Any], Sequence[Tensor] | Tensor],
        key: str | None,
        *,
        views: int = 0,
        batch_size: int = 64,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Return the features `(n, d)` of `items` on the CPU, computing only features that are not cached.

        With `views` above 0, the features are `(n, views, d)`, for `views` random augmentations of each image by
        `transform`. The random seed of an augmentation depends only on the image's content and the augmentation's
        number, so that augmentation 0 of an image is the same in every data set.

        `encode` maps images (b, 3, h, w) to features (b, d), and runs in inference mode. `key` identifies the backbone
        and the transform; if `key` is None, the cache is not used. `progress` is called with the number of encoded
        images and the total number of images to encode.

        Raises AdaptError if there are no items, or if an image cannot be decoded.
        """
        rows = self.rows(
            items, transform, encode, key, views=views, batch_size=batch_size, workers=workers, progress=progress
        )
        features = torch.stack(rows)
        return features.view(len(items), views, -1) if views else features

    def rows(
        self,
        items: Sequence[Item],
        transform: Transform,
        encode: Callable[[Any], Sequence[Tensor] | Tensor],
        key: str | None,
        *,
        views: int = 0,
        batch_size: int = 64,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Tensor]:
        """Return the features `(d,)` of each item or view, where d may differ; the arguments are those of `features`.

        Items with the same image share a tensor.
        """
        if not items:
            raise AdaptError("there are no images to compute features of: choose data that has images")
        ids = [row_id for item in items for row_id in _row_ids(item, views)]
        draws: dict[bytes, Draw] = {}
        for position, row_id in enumerate(ids):
            draws.setdefault(row_id, Draw(position // max(views, 1), seed=int.from_bytes(row_id[:8]) >> 1))
        rows = self._read(key, draws.keys())
        if len(rows) >= _MANY:
            _tell(len(rows), len(draws))
        missing = {row_id: draw for row_id, draw in draws.items() if row_id not in rows}
        images = ImageSet(items, transform)
        for computed in _compute(missing, images, encode, batch_size, workers, progress):
            self._write(key, computed)
            rows |= computed
        return [rows[row_id] for row_id in ids]

    def of_opened(
        self,
        opened: Iterable[tuple[str, Any]],
        encode: Callable[[list[Any]], Sequence[Tensor] | Tensor],
        key: str | None,
        batch_size: int = 64,
    ) -> Iterator[list[Tensor]]:
        """Yield the features `(d,)` of images that are decoded already, each given with its path, in batches.

        `encode` and `key` are as in `features`, but for the images, which are not preprocessed. What is computed is
        written a shard at a time.
        """
        computed, known, count = dict[bytes, Tensor](), 0, 0
        for batch in in_batches(opened, batch_size):
            ids = [_row_ids(Item((path,), no_label()), 0)[0] for path, _ in batch]
            rows = self._read(key, set(ids))
            opened_as = {row_id: image for row_id, (_, image) in zip(ids, batch, strict=True)}
            if missing := [row_id for row_id in opened_as if row_id not in rows and row_id not in computed]:
                own = _encode(encode, [opened_as[row_id] for row_id in missing])
                computed |= zip(missing, own, strict=True)
            known, count = known + len(batch) - len(missing), count + len(batch)
            yield [rows[row_id] if row_id in rows else computed[row_id] for row_id in ids]
            if len(computed) >= _SHARD_ROWS:
                self._write(key, computed)
                computed = {}
        if computed:
            self._write(key, computed)
        if known >= _MANY:
            _tell(known, count)

    def _folder(self, key: str) -> Path:
        return self.directory / hashlib.sha256(f"{_FORMAT}\n{key}".encode()).hexdigest()[:32]

    def _read(self, key: str | None, wanted: Set[bytes]) -> dict[bytes, Tensor]:
        rows: dict[bytes, Tensor] = {}
        if key is not None:
            with self._tolerant():
                rows = _read_shards(self._folder(key), wanted)
        return rows

    def _write(self, key: str | None, computed: Mapping[bytes, Tensor]) -> None:
        if key is not None:
            with self._tolerant():
                for length in sorted({len(row) for row in computed.values()}):  # a shard holds rows of one
                    rows = {row_id: row for row_id, row in computed.items() if len(row) == length}
                    _write_shard(self._folder(key), rows)
                _trim(self.directory, self.max_bytes)

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Log a warning, once per cache directory, instead of raising an AdaptError in the `with` block."""
        try:
            yield
        except AdaptError as error:
            if self.directory not in _told:
                _told.add(self.directory)
                logger.warning("%s. Until the cache works, features are computed each time.", error)


_contents: dict[str, bytes] | None = None  # hashes of images by path, in a block of `unchanging_images`


@contextmanager
def unchanging_images() -> Iterator[None]:
    """Read and hash each image at most once in the `with` block, where no image file may change."""
    global _contents
    before, _contents = _contents, {} if _contents is None else _contents
    try:
        yield
    finally:
        _contents = before


def _tell(known: int, count: int) -> None:
    logger.info("the features of %s of %s images are reused", f"{known:,}", f"{count:,}")


def _row_ids(item: Item, views: int) -> list[bytes]:
    """Return the cache ids of an item, hashes of the image content: one id per view, or a single id without views."""
    known = {} if _contents is None else _contents
    if (content := known.get(item.path)) is None:
        content = known[item.path] = hashlib.blake2b(read_bytes(item.path)).digest()
    names = [f"{view}" for view in range(views)] or [""]
    return [hashlib.blake2b(content + name.encode(), digest_size=ID_BYTES).digest() for name in names]


def _compute(
    missing: dict[bytes, Draw],
    dataset: ImageSet,
    encode: Callable[[Any], Sequence[Tensor] | Tensor],
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[dict[bytes, Tensor]]:
    """Encode the images that are missing in the cache, and yield {id: features (d,)} for one shard at a time."""
    if not missing:  # or workers would be started for nothing
        return
    chunks = [*in_batches(missing, batch_size)]
    decoded = Decoded(dataset, [[missing[row_id] for row_id in chunk] for chunk in chunks], workers)
    shard: dict[bytes, Tensor] = {}
    done = 0
    for chunk, (images, _) in zip(chunks, decoded, strict=True):
        shard.update(zip(chunk, _encode(encode, images), strict=True))
        done += len(chunk)
        if progress:
            progress(done, len(missing))
        if len(shard) >= _SHARD_ROWS or sum(row.nbytes for row in shard.values()) >= _SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard


def _encode(encode: Callable[[Any], Sequence[Tensor] | Tensor], images: object) -> list[Tensor]:
    with torch.inference_mode():
        features = encode(images)
    for row in features:
        if row.ndim != 1:
            raise ValueError(f"encode returned a row of shape {tuple(row.shape)}; expected (d,)")
    # Copies outside inference mode: tensors of inference mode cannot take part in a later backward.
    return [row.cpu().clone() for row in features]
