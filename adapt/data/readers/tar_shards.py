"""Data sets in tar shards, as webdataset has them: `KEY.jpg` beside `KEY.cls`, `KEY.txt` or `KEY.json`.

A sample is all files of one key, which is a member's path up to the first dot of its name:

* an image, or several (`KEY.0.jpg`, `KEY.1.jpg`) for a conversation;
* `.cls`: the name of its class, or its number among the lines of `classnames.txt`, beside the shards or above them;
* or `.txt`: its caption, a line each if there are several;
* or `.json`: a conversation, in a form that `chats_file` reads, about the sample's images in their order.

Shards are read by the places of their files, not as a stream. Training draws images in the same order as from files, a
run resumes within a shard, and any number of workers may read. Shards at web addresses are downloaded once, whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, product, zip_longest
from math import prod
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.decoding.files import is_address, tar_member, tar_places
from adapt.data.readers import parts
from adapt.data.readers.base import Reader
from adapt.data.readers.folder import IMAGE_SUFFIXES
from adapt.data.readers.lines import UNREADABLE, read_lines, readable
from adapt.data.readers.rows import IMAGES, Listed, check_parts, listed, to_split
from adapt.data.split import Split

logger = logging.getLogger("adapt")
NAMES = "classnames.txt"
_MOST = 100_000  # shards
_SEVERAL = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_KINDS = ("cls", "txt", "json")  # of what a sample has beside its images


@dataclass
class _Sample:
    """The files of one key in a shard: paths of its images, and its label, caption or conversation."""

    shard: str
    key: str
    images: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"tar shard {self.shard!r}: the sample {self.key!r}"


def read_tar_shards(spec: str) -> Split:
    """Return the data set in a folder of `.tar` files, or in the shards of a pattern such as `train-{000..009}.tar`.

    A shard is of train, val or test if its folder or name says so; without such words, samples are divided by adapt's
    ratios. Raises AdaptError, naming the shard and the sample, if a shard is missing or damaged, and if a sample has no
    image, or neither class, caption nor conversation.
    """
    folder, shards = _shards_of(spec)
    if not shards:
        raise AdaptError(f"tar shards {spec!r}: the folder {folder!r} has no .tar files")
    samples = [sample for shard in shards for sample in _samples(shard)]
    if not samples:
        raise AdaptError(f"tar shards {spec!r} have no samples")
    kind = _kind(samples)
    class_names = _class_names(folder) if kind == "cls" else None
    named = {  # the parts that the names of a shard and of its folder say
        shard: [part for word in re.split(r"[\W\d_]+", name) if (part := parts.part_of(word)) in parts.NAMES]
        for shard, name in shards.items()
    }
    part_of = {shard: said[-1] if said else "" for shard, said in named.items()}
    rows = [
        row._replace(part=part_of[sample.shard]) for sample in samples for row in _listed(sample, kind, class_names)
    ]
    if kind == "json":
        from adapt.data.readers.chats_file import check_one_task

        check_one_task(rows, f"tar shards {spec!r}: sample")
    check_parts(rows, f"tar shards {spec!r}", "Name its shard so")
    return to_split(Path(folder).name, folder, rows, class_names, parts.RATIOS, seed=0)


def _shards_of(spec: str) -> tuple[str, dict[str, str]]:
    """Return the folder of the shards, and {path: name} with the names below the folder; web addresses are fetched."""
    if os.path.isdir(spec):
        folder = os.path.abspath(spec)
        return folder, {str(path): str(path.relative_to(folder)) for path in sorted(Path(folder).rglob("*.tar"))}
    given = expanded(spec)
    if is_address(spec):
        paths = [_downloaded(address, number, len(given)) for number, address in enumerate(given, 1)]
    else:
        paths = given = list(map(os.path.abspath, given))
    for path in paths:
        if not os.path.isfile(path):
            raise AdaptError(f"tar shards {spec!r}: {path!r} does not exist. Give the pattern of those that do")
    home = os.path.commonpath([os.path.dirname(name) for name in given])
    names = [os.path.relpath(name, home) for name in given]
    return os.path.commonpath([os.path.dirname(path) for path in paths]), dict(zip(paths, names, strict=True))


def expanded(pattern: str) -> list[str]:
    """Return the names of a pattern with braces, such as `a-{00..02}.tar`. Raises AdaptError if they are too many."""
    fixed = _SEVERAL.split(pattern)[::2]
    choices = [_choices(each) for each in _SEVERAL.findall(pattern)]
    count = prod(map(len, choices))
    if not 0 < count <= _MOST:
        raise AdaptError(f"{pattern!r} stands for {count:,} shards; expected 1 to {_MOST:,}")
    return ["".join(chain.from_iterable(zip_longest(fixed, values, fillvalue=""))) for values in product(*choices)]


def _choices(inside: str) -> Sequence[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if last - first >= _MOST:
        raise AdaptError(f"{{{inside}}} stands for {last - first + 1:,} shards; expected at most {_MOST:,}")
    return [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]


def _downloaded(address: str, number: int, count: int) -> str:
    """Return the path of a shard in the cache, to which it is downloaded once."""
    home = Path(os.environ.get("ADAPT_CACHE") or Path.home() / ".cache" / "adapt")
    file, mark, query = address.partition("?")  # by which an address may ask for another version
    folder, _, name = file.rpartition("/")
    path = home / "tar-shards" / hashlib.sha256((folder + mark + query).encode()).hexdigest()[:16] / name
    if not path.is_file():
        from adapt.data.decoding.addresses import download

        logger.info("downloading %s (%s of %s)", address, number, count)
        download(address, path)
    return str(path)


def _samples(shard: str) -> Iterator[_Sample]:
    """Yield the samples of a shard, in the order of their first files."""
    found: dict[str, _Sample] = {}
    try:
        for member in tar_places(shard):
            folder, _, name = member.rpartition("/")
            stem, _, suffix = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            sample = found.setdefault(key, _Sample(shard, key))
            kind = suffix.rpartition(".")[2].lower()
            if f".{kind}" in IMAGE_SUFFIXES:
                sample.images.append(f"{shard}!{member}")
            elif kind in _KINDS:
                sample.texts[kind] = tar_member(shard, member).decode("utf-8")
    except UNREADABLE as error:
        raise AdaptError(f"tar shard {shard!r} cannot be read: {error}. Replace it") from error
    yield from (sample for sample in found.values() if sample.images or sample.texts)


def _kind(samples: Sequence[_Sample]) -> str:
    """Return what all samples have: a class, a caption or a conversation. Raises AdaptError for one that has none."""
    kind = next((kind for kind in _KINDS if kind in samples[0].texts), None)
    if kind is None:
        raise AdaptError(f"{samples[0].where} has neither a class (.cls), a caption (.txt) nor a conversation (.json)")
    for sample in samples:
        if kind not in sample.texts:
            raise AdaptError(f"{sample.where} has no .{kind}, which the first sample has. Give every sample one")
        if not sample.images or (len(sample.images) > 1 and kind != "json"):
            raise AdaptError(f"{sample.where} has {len(sample.images)} images; expected one")
    return kind


def _class_names(folder: str) -> tuple[str, ...] | None:
    """Return the lines of `classnames.txt` in a folder or the one above it, or None if there is no such file."""
    for home in (Path(folder), Path(folder).parent):
        if (home / NAMES).is_file():
            return tuple(read_lines(home / NAMES))
    return None


def _listed(sample: _Sample, kind: str, class_names: tuple[str, ...] | None) -> list[Listed]:
    """Return the items of a sample, of captions one for each line."""
    text = sample.texts[kind].strip()
    if kind == "cls":
        return [listed(sample.images[0], {"label": _class_of(text, class_names, sample.where)})]
    if kind == "txt":
        if not text:
            raise AdaptError(f"{sample.where} has an empty caption. Write one, or remove the sample")
        return [listed(sample.images[0], {"text": line.strip()}) for line in text.splitlines() if line.strip()]
    from adapt.data.readers.chats_file import listed_row

    with readable(f"{sample.where} has a .json that"):
        row = json.loads(text)
    home = os.path.join(os.path.dirname(sample.shard), "")
    if isinstance(row, dict):
        row = {key: value for key, value in row.items() if key not in (*IMAGES, "split")}
        row["images"] = [image.removeprefix(home) for image in sample.images]
    return [listed_row(row, sample.where, os.path.dirname(sample.shard), f"{sample.shard}!{sample.key}", row)]


def _class_of(text: str, class_names: tuple[str, ...] | None, where: str) -> str:
    if not text.isdecimal():
        return text
    if class_names is None:
        raise AdaptError(
            f"{where} has the class number {text}: put {NAMES}, with a name on each line, beside the shards"
        )
    if int(text) >= len(class_names):
        raise AdaptError(f"{where} has the class {brief(text)}, but {NAMES} has {len(class_names)} names, from 0 on")
    return class_names[int(text)]


class TarShards(Reader):
    name = "tar_shards"
    takes = "tar shards, as NAME-{00..09}.tar"
    reads = staticmethod(read_tar_shards)

    def claims(self, spec: str) -> bool:
        return _has_shards_alone(spec) if os.path.isdir(spec) else spec.endswith(".tar")


def _has_shards_alone(folder: str) -> bool:
    """Return whether a folder has shards, but no images or class folders, beside which a .tar is a download's rest."""
    entries = [each for each in os.scandir(folder) if not each.name.startswith(".")]
    inside = [each.path for each in entries if each.is_dir()]
    if not all(parts.part_of(os.path.basename(path)) in parts.NAMES for path in inside):
        return False
    names = [each.name.lower() for each in entries if not each.is_dir()]
    if any(name.endswith(IMAGE_SUFFIXES) for name in names):
        return False
    return all(map(_has_shards_alone, inside)) and bool(inside or any(name.endswith(".tar") for name in names))
