"""The bundled data set for record linkage: drawings, each paired with its concept's name as if misread by OCR.

Train, val and test have different concepts. Test includes concepts that the backbone never saw, and drawings in the
unseen style.
"""

from __future__ import annotations

import string
from random import Random

from adapt.data.decoding.files import zip_root
from adapt.data.emoji import archive
from adapt.data.item import Item
from adapt.data.split import Split

MISREAD = 0.3  # share of the letters
_TRAINING, _VALIDATION = 0.6, 0.1  # shares of the concepts known to the backbone


def read_records(spec: str) -> Split:
    """Return the data set of drawings with misread names; an item's domain is the style, its entity is the concept."""
    part_of = _parts(spec)
    root, items = zip_root(archive.ARCHIVE), dict[str, list[Item]](train=[], val=[], test=[])
    for entry in archive.index()["items"]:
        concept, style = entry["concept"], entry["style"]
        if style == archive.UNSEEN_STYLE and part_of[concept] != "test":
            continue
        text = misread(concept, Random(f"{spec}/{entry['file']}"))
        item = Item.of(path=root + entry["file"], text=text, entity=concept, domain=style)
        items[part_of[concept]].append(item)
    train, val, test = map(tuple, items.values())
    return Split(spec, (), train, val, test, root=root)


def _parts(spec: str) -> dict[str, str]:
    """Return {concept: part}, where the part (train, val, test) is drawn by the name of the set."""
    held_out = {entry["concept"]: bool(entry["held_out"]) for entry in archive.index()["items"]}
    known = sorted(concept for concept, held in held_out.items() if not held)
    Random(spec).shuffle(known)
    ends = [round(share * len(known)) for share in (_TRAINING, _TRAINING + _VALIDATION)]
    parts = dict.fromkeys(held_out, "test")
    return parts | dict.fromkeys(known[: ends[0]], "train") | dict.fromkeys(known[ends[0] : ends[1]], "val")


def misread(name: str, stream: Random) -> str:
    """Return `name` with some letters replaced, dropped, or swapped at random."""
    letters = list(name)
    for place, letter in enumerate(name):
        if letter == " " or stream.random() >= MISREAD:
            continue
        match stream.choice(("other", "missing", "swapped")):
            case "other":
                letters[place] = stream.choice(string.ascii_lowercase)
            case "missing":
                letters[place] = ""
            case "swapped" if place + 1 < len(name):
                letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters) or name
