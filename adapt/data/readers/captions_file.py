"""Pairs of images and captions in JSON: a list, JSON lines, COCO's annotations, or Karpathy's split of COCO."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapt.common.errors import AdaptError, noting
from adapt.common.shown import brief
from adapt.data.decoding.files import Stored, under
from adapt.data.decoding.inline import rows_of
from adapt.data.readers import parts
from adapt.data.readers.base import Reader
from adapt.data.readers.chats_file import check_keys, check_text, is_chat, is_chats_file, note_remarks, one_of, split_of
from adapt.data.readers.lines import UNREADABLE, read_text, readable
from adapt.data.readers.rows import (
    IMAGES,
    TEXT,
    Listed,
    check_listed_once,
    check_parts,
    group_of,
    listed,
    one_each,
    renamed,
    to_split,
    without_rows,
)
from adapt.data.split import Split

_READ = (*IMAGES, *TEXT, "group", "split", "url")
_RESTVAL = "restval"  # in Karpathy's split of COCO: more training images
_EXPECTED = (
    f'expected {{"image": PATH, "caption": TEXT or [TEXT, ...]}}, perhaps with "split" (the image also as path or '
    f'file_name, the texts as {" or ".join(TEXT[1:])}), or with one caption and "label", the name of a class'
)
_SPLIT_FILE = re.compile(r'\s*\{\s*"(train|val|test)"\s*:')  # the beginning of CoOp's split files


def read_captions_file(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    ratios: Sequence[float] = parts.RATIOS,
    seed: int = 0,
    columns: Mapping[str, str] = {},
) -> Split:
    """Return the pairs of images and captions in a `.json`, a `.json.gz` or a `.jsonl` file.

    The file has one of three formats. The first is a list, or JSON Lines, of objects with the keys `image` (or `path`,
    `file_name`), `caption` (or `captions`, `text`), perhaps `split`, `group`; a caption is one text or a list. The
    second is COCO's `{"images": ..., "annotations": ...}`, and the third is Karpathy's `{"images": [...]}` with
    `sentences`. An object with a `caption` and a `label` is an image of that class, which its one caption describes.

    Image paths are relative to `root`, by default the file's folder, and must stay under `root`. Without `split`,
    images are divided by `ratios` (train, val, test) and `seed`. `columns` has keys of listed objects with what they
    are called here (see `adapt.data.load`).

    Raises AdaptError, naming the entry, for any other format, an empty caption, an image without a caption, and if only
    some entries have a split.
    """
    source = os.fspath(path)
    where = f"captions {source!r}"
    folder = os.path.abspath(Path(source).parent if root is None else root)
    with readable(where):
        text = read_text(source)
        content = list(rows_of(text, lines=True)) if source.endswith(".jsonl") else json.loads(text)
    if isinstance(stored := content, list):
        content = renamed(content, columns, where)
        if content and isinstance(content[0], dict) and is_chat(content[0]):  # by their new names
            return split_of(content, where, source, folder, stored)
    return pairs_of(content, where, source, folder, ratios, seed)


def pairs_of(content: object, where: str, source: str, folder: str, ratios: Sequence[float], seed: int) -> Split:
    """Return the pairs in the `content` of `source`, as `read_captions_file` does."""
    rows, problems, entries = list[Listed](), list[str](), _entries(content, where)
    for number, entry in enumerate(entries, 1):
        with noting(problems):
            rows += _pairs(entry, folder, f"{where}: entry {number}")
    if not entries:
        raise AdaptError(f"{where} list no images; expected at least one")
    note_remarks([entry for entry in entries if isinstance(entry, dict)], (*_READ, "label"), where)

    def read() -> Split:
        check_parts(rows, where, "Give every image a split, or none")
        check_listed_once(rows, where)
        name = os.path.basename(source).split(".json")[0]
        return to_split(name, folder, one_each(rows, folder, where), None, ratios, seed)

    return without_rows(problems, read)


def _entries(content: object, where: str) -> list[object]:
    """Return what is listed for each image, in the first of the formats of `read_captions_file`."""
    match content:
        case {"images": list(images), "annotations": list(annotations)}:
            return _of_coco(images, annotations, where)
        case {"images": list(images)}:
            return [_of_karpathy(each) for each in images]
        case list():
            return content
    raise AdaptError(f"{where}: found {brief(content)}; expected a list, or an object with a list 'images'")


def _pairs(entry: object, folder: str, where: str) -> list[Listed]:
    """Return the pairs of one image."""
    if isinstance(entry, ValueError):
        raise AdaptError(f"{where} is no JSON: {entry}") from entry
    fields = entry if isinstance(entry, dict) else {}
    image, texts = (fields.get(one_of(fields, keys, where) or "", "") for keys in (IMAGES, TEXT))
    texts = texts if isinstance(texts, list) else [texts]
    label = fields.get("label") if "caption" in fields else None  # beside another key, it may be an answer
    label = None if label == "" else label
    written = all(isinstance(each, str) and (each.strip() or label is not None) for each in texts)
    if not (image and isinstance(image, str) and written):
        raise AdaptError(f"{where} is {brief(entry)}; {_EXPECTED}")
    check_keys(fields, _READ if label is None else (*_READ, "label"), where)
    if stored := [each for each in texts if isinstance(each, Stored)]:
        raise AdaptError(f"{where}: the caption is an image, {brief(stored[0])}: say which columns are read")
    if "question_id" in fields and "text" in fields:
        raise AdaptError(
            f"{where} has a text beside a question_id, which seems to be a question: give it as question, with its "
            "answer, or as caption if it is one"
        )
    for text in texts:
        check_text(text, folder, where)
    part = fields.get("split") or ""
    if part:
        part = "train" if part == _RESTVAL else parts.read(part, where)
    path, cells = under(folder, image, where), {"group": group_of(fields)}
    if label is None:
        return [listed(path, cells | {"text": text.strip()}, part) for text in texts]
    if not (isinstance(label, str) and label.strip() and len(texts) == 1):
        raise AdaptError(
            f"{where} has the label {brief(label)}; expected the name of a class, and one caption beside it"
        )
    return [listed(path, cells | {"label": label.strip(), "caption": texts[0].strip()}, part)]


def _of_karpathy(entry: object) -> object:
    """Return an entry of Karpathy's splits (COCO, Flickr8k, Flickr30k) as {image, caption, split}, others unchanged."""
    match entry:
        case {"filename": str(name), "sentences": list(sentences), **others}:
            texts = [each.get("raw") if isinstance(each, dict) else each for each in sentences]
            folder = others.get("filepath", "")
            image = os.path.join(folder, name) if isinstance(folder, str) else None
            return {"image": image, "caption": texts, "split": others.get("split", "")}
    return entry


def _of_coco(images: list[dict[str, object]], annotations: list[object], where: str) -> list[object]:
    """Return COCO's images as a list of {image, caption}, where `caption` is a list of all captions of the image."""
    texts: dict[object, list[object]] = {}
    for number, image in enumerate(images, 1):
        match image:
            case {"id": int() | str() as known, "file_name": str()} if known not in texts:
                texts[known] = []
            case _:
                raise AdaptError(f"{where}: image {number} is {brief(image)}; expected a unique id and a file_name")
    for number, each in enumerate(annotations, 1):
        match each:
            case {"image_id": int() | str() as known, "caption": caption} if known in texts:
                texts[known].append(caption)
            case _:
                raise AdaptError(
                    f"{where}: annotation {number} is {brief(each)}; expected a caption and a known image's image_id"
                )
    return [{"image": image["file_name"], "caption": texts[image["id"]]} for image in images]


class CaptionsFile(Reader):
    name = "captions_file"
    takes = "captions in .json or .jsonl"
    reads = staticmethod(read_captions_file)
    root = "may"
    takes_columns = True
    suffixes = (".json", ".json.gz", ".jsonl")

    def claims(self, spec: str) -> bool:
        """Return whether a file has captions, in contrast to conversations and to a split file (`split_zhou_*.json`).

        It has JSON Lines, a list, or an object with the key `images`.
        """
        if not super().claims(spec) or is_chats_file(spec):
            return False
        try:
            text = "[" if spec.endswith(".jsonl") else read_text(spec).lstrip()
        except UNREADABLE:
            return False
        return text[:1] == "[" or ('"images"' in text and _SPLIT_FILE.match(text) is None)
