"""The names of the bundled data sets of emoji, and their readers; drawings are in a zip with an index beside this file.

Names marked with (@) also exist in a single drawing style, as `NAME@STYLE`.

`emoji`           classes are groups of concepts ("animal mammal"), drawn in the styles that the bundled backbone knows
`emoji@STYLE`     the same classes and concepts, with train, val and test in one style; `fluent-3d` is the unseen style
`emoji-items`     the classes of `emoji`, with items of several images: up to four drawings of one class are one item
`emoji-clutter`   the drawings of `emoji`, each in an item with three drawings of things that no class names
`emoji-concepts`  classes are the concepts ("dog face"). Training images are in the seen styles, test images in the
                  unseen style. The concepts that the backbone knows come first, then the held-out concepts, which it
                  has seen in no style; `concept_names()` gives both lists, for a base/new split by name
`emoji-texts`     the classes of `emoji`, with texts in place of training images: the names of the training concepts in
                  a few prompt templates. Validation and test images are those of `emoji`
`emoji-counts`    (@) scenes of one to four copies of a drawing, labelled with their number
`emoji-defects`   (@) drawings with masks; half of the validation and test images have a scratch or a stain
`emoji-product`   (@) one drawing again and again, a little varied; half of the test images have a scratch or a stain
`emoji-labels`    (@) scenes of one to four different things, labelled with all their names
`emoji-boxes`     (@) scenes of one drawing, of up to four copies or of two, with questions where the things are
`emoji-captions`  (@) pairs of a scene and a caption
`emoji-records`   pairs of a drawing and its concept's name with misread letters, to be linked by concept
`emoji-questions` (@) questions about scenes, see `adapt.data.emoji.questions`
`emoji-chats`     (@) conversations about one scene or two, see `adapt.data.emoji.chats`
`emoji-preferences` (@) the same, with a wrong answer beside the last right one
`emoji-contrasts` (@) pairs of scenes that differ in one thing, with a question about it
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Literal, TypedDict

from adapt.common.errors import AdaptError, nearest
from adapt.common.grouping import grouped
from adapt.data.decoding.files import read_bytes, zip_root
from adapt.data.item import Item
from adapt.data.split import Split

ARCHIVE = Path(__file__).with_name("emoji.zip")
UNSEEN_STYLE = "fluent-3d"
PARTS = ("train", "val", "test")
_GROUPS, _CONCEPTS, _TEXTS, _RECORDS = "emoji", "emoji-concepts", "emoji-texts", "emoji-records"
LISTED_BY = "`adapt data list`"  # the command that lists the names
_TEMPLATES = ("a photo of a {}.", "an icon of a {}.", "a drawing of a {}.", "{}.")  # of the texts in emoji-texts
_IN_ITEMS = ("emoji-items", "emoji-clutter")
IMAGES = 4  # of an item of these
MISREAD = 0.3  # share of the letters in emoji-records
_TRAINING, _VALIDATION = 0.6, 0.1  # shares of the concepts known to the backbone, in emoji-records
_AT_STYLES = {  # which also exist in single styles: the module beside this one that makes a set
    "emoji-questions": "questions",
    "emoji-chats": "chats",
    "emoji-preferences": "chats",
    "emoji-contrasts": "chats",
    "emoji-captions": "questions",
    "emoji-counts": "questions",
    "emoji-defects": "defects",
    "emoji-product": "defects",
    "emoji-labels": "questions",
    "emoji-boxes": "questions",
}


DrawnItem = TypedDict(
    "DrawnItem",
    {"file": str, "concept": str, "class": str | None, "style": str, "split": str, "held_out": bool},
)


class DrawingIndex(TypedDict):
    """The contents of index.json in the zip: drawing styles, classes, and a `DrawnItem` for each drawing."""

    styles: list[str]
    classes: list[str]
    items: list[DrawnItem]


@cache
def index() -> DrawingIndex:
    """Return the index of the bundled drawings: "styles", "classes", and "items", one record for each drawing."""
    if not ARCHIVE.is_file():
        raise AdaptError(f"the bundled data set {str(ARCHIVE)!r} is missing: install adapt again")
    content: DrawingIndex = json.loads(read_bytes(zip_root(ARCHIVE) + "index.json"))
    return content


def drawings(style: str = "") -> list[DrawnItem]:
    """Return the drawings in one style, or in all but the unseen style."""
    known = index()["items"]
    return [each for each in known if (each["style"] == style if style else each["style"] != UNSEEN_STYLE)]


@cache
def of_groups(part: str, style: str = "") -> list[DrawnItem]:
    """Return those of `drawings` whose concepts are in a group, of one part (train, val, test)."""
    return [each for each in drawings(style) if each["class"] is not None and each["split"] == part]


def is_bundled(spec: str) -> bool:
    """Return whether `spec` names a bundled data set, without checking that a style after `@` exists."""
    return spec in (_CONCEPTS, _TEXTS, _RECORDS, *_IN_ITEMS) or spec.partition("@")[0] in (_GROUPS, *_AT_STYLES)


def names() -> list[str]:
    """Return all names of bundled data sets, including names with a style (`emoji@STYLE`)."""
    at_style = [f"{name}@{style}" for name in (_GROUPS, *_AT_STYLES) for style in index()["styles"]]
    return [_GROUPS, _CONCEPTS, _TEXTS, _RECORDS, *_IN_ITEMS, *_AT_STYLES, *at_style]


def concept_names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (names of the concepts that the bundled backbone was trained on, names of the held-out concepts).

    Both tuples are sorted.
    """
    held_out = {entry["concept"]: bool(entry["held_out"]) for entry in index()["items"]}
    base, new = (tuple(sorted(name for name, held in held_out.items() if held is flag)) for flag in (False, True))
    return base, new


def read_bundled(spec: str) -> Split:
    """Return the bundled data set called `spec`.

    An item's domain is the drawing style, and its group is the concept, if any. Raises AdaptError for an unknown style.
    """
    if spec == _CONCEPTS:
        base, new = concept_names()
        train, test = (_items(drawings(style), "concept") for style in ("", UNSEEN_STYLE))
        return Split(_CONCEPTS, base + new, train, (), test, root=zip_root(ARCHIVE))
    if spec == _RECORDS:
        return _records(spec)
    if spec == "emoji-items":
        return _groups(spec).mapped(_of_one_class)
    if spec == "emoji-clutter":
        images = _groups(spec)
        train, val, test = _in_clutter((images.train, images.val, images.test))
        return replace(images, train=train, val=val, test=test)
    if spec == _TEXTS:
        images = _groups(spec)
        texts = (  # of each concept and each prompt template
            Item((), label, group=concept, text=template.replace("{}", concept))
            for label, concept in dict.fromkeys((item.label, item.group) for item in images.train)
            for template in _TEMPLATES
        )
        return replace(images, train=tuple(texts))
    if spec not in names():
        raise AdaptError(f"unknown bundled data set {spec!r}; {nearest(spec, names(), LISTED_BY)}")
    name, _, style = spec.partition("@")
    if name in _AT_STYLES:
        split: Split = import_module(f"adapt.data.emoji.{_AT_STYLES[name]}").read(spec)
        return split
    return _groups(spec, style)


def _groups(spec: str, style: str = "") -> Split:
    train, val, test = (_items(of_groups(part, style), "class") for part in PARTS)
    return Split(spec, tuple(index()["classes"]), train, val, test, root=zip_root(ARCHIVE))


def _items(entries: list[DrawnItem], field: Literal["class", "concept"]) -> tuple[Item, ...]:
    root = zip_root(ARCHIVE)
    return tuple(
        Item.of(path=root + entry["file"], label=entry[field], domain=entry["style"], group=entry["concept"])
        for entry in entries
    )


def _in_clutter(images: Sequence[Sequence[Item]]) -> Iterator[tuple[Item, ...]]:
    """Yield each of three parts with every image in an item with three drawings of things that no class names.

    The parts have drawings of different things.
    """
    drawn = [entry for entry in drawings() if entry["class"] is None]
    concepts = sorted({entry["concept"] for entry in drawn})
    Random(0).shuffle(concepts)
    root = zip_root(ARCHIVE)
    for number, part in enumerate(images):
        own = set(concepts[number::3])
        others = [root + entry["file"] for entry in drawn if entry["concept"] in own]
        stream, items = Random(number), list[Item]()
        for image in part:
            paths = [image.path, *stream.sample(others, IMAGES - 1)]
            stream.shuffle(paths)
            items.append(replace(image, paths=tuple(paths)))
        yield tuple(items)


def _of_one_class(images: Sequence[Item]) -> tuple[Item, ...]:
    """Return the images of each class in items of up to four, drawn with a fixed seed."""
    stream, items = Random(0), list[Item]()
    for label, paths in grouped((image.label, image.path) for image in images).items():
        stream.shuffle(paths)
        items += [Item(tuple(paths[start : start + IMAGES]), label) for start in range(0, len(paths), IMAGES)]
    return tuple(items)


def _records(spec: str) -> Split:
    """Return the data set of drawings with misread names; an item's domain is the style, its entity is the concept.

    Train, val and test have different concepts. Test includes concepts that the backbone never saw, and drawings in
    the unseen style.
    """
    known = [*concept_names()[0]]
    Random(spec).shuffle(known)  # parts are drawn by the name of the set
    ends = [round(share * len(known)) for share in (_TRAINING, _TRAINING + _VALIDATION)]
    part_of = dict.fromkeys(known[: ends[0]], "train") | dict.fromkeys(known[ends[0] : ends[1]], "val")
    root, items = zip_root(ARCHIVE), dict[str, list[Item]](train=[], val=[], test=[])
    for entry in index()["items"]:
        concept, style = entry["concept"], entry["style"]
        part = part_of.get(concept, "test")
        if style != UNSEEN_STYLE or part == "test":
            text = misread(concept, Random(f"{spec}/{entry['file']}"))
            items[part].append(Item.of(path=root + entry["file"], text=text, entity=concept, domain=style))
    train, val, test = map(tuple, items.values())
    return Split(spec, (), train, val, test, root=root)


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
