"""The reader of CoOp's split files, `split_zhou_*.json`."""

from __future__ import annotations

import json
import os

from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.decoding.files import under
from adapt.data.item import Item
from adapt.data.readers import parts
from adapt.data.readers.base import Reader
from adapt.data.readers.lines import read_text, readable
from adapt.data.readers.rows import check_linked
from adapt.data.split import Split


def read_split(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, turned: bool = True) -> Split:
    """Return the `Split` in a JSON file `{"train": [[path, label, class name], ...], "val": ..., "test": ...}`.

    The file may be gzipped. With `root`, paths are relative to this folder and must stay inside the folder. Without
    `root`, paths are used as written. Images are rotated upright by EXIF if `turned`, and otherwise used as stored.

    Raises AdaptError if the file has another form, if a label has two names, if the labels are not numbered from 0
    without a gap, or if symbolic links put one image into two parts (train, val, test).
    """
    source = os.fspath(path)
    folder = "" if root is None else os.path.abspath(root)
    with readable(f"split {source!r}"):
        content = json.loads(read_text(source))
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts.NAMES):
        raise AdaptError(f"split {source!r}: expected a JSON object with the lists {', '.join(parts.NAMES)}")
    names: dict[int, str] = {}
    train, val, test = (
        tuple(_item(entry, names, folder, turned, f"split {source!r}: {part}") for entry in content[part])
        for part in parts.NAMES
    )
    free = next(label for label in range(len(names) + 1) if label not in names)
    if free < len(names):
        raise AdaptError(f"split {source!r}: no image has label {free}. Number the labels from 0 without a gap")
    check_linked({"train": train, "val": val, "test": test}, f"split {source!r}")
    title = os.path.basename(source).split(".json")[0].removeprefix("split_zhou_")
    return Split(title, tuple(names[label] for label in sorted(names)), train, val, test, root=folder)


def _item(entry: object, names: dict[int, str], folder: str, turned: bool, where: str) -> Item:
    """Return an entry of a split file as an item, and store the class name in `names`, a dict from label to name."""
    match entry:
        case [str(path), int(label), str(name)] if label >= 0 and not isinstance(label, bool):
            pass
        case _:
            raise AdaptError(f"{where} has {brief(entry)}; expected [path, label from 0, class name]")
    if names.setdefault(label, name) != name:
        raise AdaptError(f"{where} names label {label} {name!r}, but an earlier entry names it {names[label]!r}")
    return Item.of(path=under(folder, path, where), label=name, turned=turned)


class SplitFile(Reader):
    name = "split_file"
    takes = "a split file of CoOp's (.json)"
    reads = staticmethod(read_split)
    root = "may"
    fallback = True  # takes any JSON that is not captions
    suffixes = (".json", ".json.gz")
