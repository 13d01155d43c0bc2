"""Bundled data sets of scenes of emoji, drawn when they are read: with questions, captions, counts or names of things.

`emoji-questions` has drawings in the seen styles; of each concept's four drawings, one is only in the test scenes.
`emoji-questions@STYLE` has drawings in one style, the same ones in train, val and test; `fluent-3d` is the unseen
style.

A scene's path is `SET.scenes!PART/NUMBER.png`; there are several questions about each scene. The answers are the
classes, the same in every variant, with the same numbers.

`emoji-boxes`, `emoji-captions`, `emoji-counts` and `emoji-labels` have the same two variants. An item's domain is the
style, or "" if scenes mix styles.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from random import Random

from adapt.common.grouping import grouped
from adapt.data.decoding.files import zip_root
from adapt.data.emoji import bundled, scenes
from adapt.data.emoji.bundled import PARTS
from adapt.data.emoji.scenes import Concept, Drawing, Scene
from adapt.data.item import Item
from adapt.data.split import Split

TABLE = Path(__file__).with_name("questions.toml")
WHAT, GROUP, COLOUR = "what is it?", "what kind of thing is it?", "what colour is it?"
ANIMAL, COUNT = "which animal?", "how many?"
LEFT, RIGHT = "what is on the left?", "what is on the right?"
NUMBERS = ("one", "two", "three", "four")
_ANIMALS = "animal"
# How sets are made, and the number of scenes in train, val and test for all styles, and for one: of each of three
# kinds, with two questions each on average, and of mixtures.
_MADE = {
    "emoji-questions": (scenes.scenes, (450, 45, 90), (90, 15, 90)),
    "emoji-chats": (scenes.scenes, (450, 45, 90), (90, 15, 90)),
    "emoji-contrasts": (scenes.minimal_pairs, (450, 45, 90), (90, 15, 90)),
    "emoji-labels": (scenes.mixtures, (600, 80, 240), (120, 40, 240)),
    "emoji-boxes": (scenes.scenes, (450, 45, 90), (90, 15, 90)),
}


def read(spec: str) -> Split:
    """Return the data set `spec`; an item's domain is the drawing style, or "" if scenes mix styles."""
    base = spec.partition("@")[0]
    things = tuple(concept.name for concept in concepts().values())
    class_names = {"emoji-questions": answers(), "emoji-counts": NUMBERS, "emoji-labels": things}.get(base, ())

    def items(path: str, number: int, scene: Scene, style: str) -> Iterator[Item]:
        if base == "emoji-questions":
            for question, answer in asked(scene):
                yield Item.of(path=path, label=answer, question=question, domain=style)
        elif base == "emoji-captions":
            yield Item.of(path=path, text=caption(scene, turned=number % 2 == 1), domain=style)
        elif base == "emoji-labels":  # shots are drawn by the first name: all are equally frequent
            yield Item.of(path=path, labels=tuple(concept.name for concept in scene.concepts), domain=style)
        elif base == "emoji-boxes":
            in_rows = sorted(scene.pieces, key=lambda piece: (piece.top >= scenes.SIDE // 2, piece.left))
            for name, own in grouped((piece.drawing.concept.name, piece.box) for piece in in_rows).items():
                yield Item.of(path=path, boxes=(name, own, (scenes.SIDE,) * 2, ()), domain=style)
        elif scene.kind == "several":  # one to four copies of a drawing are counted; the group is the drawn concept
            count, concept = len(scene.pieces), scene.concepts[0].name
            yield Item.of(path=path, target=count, label=NUMBERS[count - 1], domain=style, group=concept)

    made = base if base in _MADE else "emoji-questions"  # the set whose scenes they are
    return split_of(spec, spec.replace(base, made, 1), class_names, items)


def split_of(
    name: str, spec: str, class_names: tuple[str, ...], items: Callable[[str, int, Scene, str], Iterable[Item]]
) -> Split:
    """Return a split called `name` with items made from the scenes of the data set `spec`.

    `items` returns the items of one scene, given the scene's path, the scene's number, the scene, and the style ("" if
    scenes mix styles).
    """
    root, style = f"{spec}.scenes!", spec.partition("@")[2]
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for number, (member, scene) in enumerate(scenes_of(spec).items()):
        parts[member.partition("/")[0]] += items(root + member, number, scene, style)
    train, val, test = map(tuple, parts.values())
    return Split(name, class_names, train, val, test, root=root)


@lru_cache(maxsize=4096)  # to draw one takes as long as to encode it, and its file takes 3 KB
def png(container: str, member: str) -> bytes:
    """Return the drawing `member` (`PART/NUMBER.png`) of `SET.scenes`. Raises KeyError for an unknown scene."""
    return scenes_of(container.removesuffix(".scenes"))[member].png()


def asked(scene: Scene) -> Iterator[tuple[str, str]]:
    """Yield (question, answer) for each question that can be asked about `scene`."""
    first = scene.concepts[0]
    if scene.kind == "one":
        yield WHAT, first.name
        yield GROUP, first.group
        if first.colour:
            yield COLOUR, first.colour
    elif scene.kind == "several":
        yield COUNT, NUMBERS[len(scene.pieces) - 1]
    else:
        yield LEFT, first.name
        yield RIGHT, scene.concepts[1].name
    animals = {concept.name for concept in scene.concepts if concept.group == _ANIMALS}
    if len(animals) == 1:
        yield ANIMAL, animals.pop()


@cache
def concepts() -> dict[str, Concept]:
    """Return the concepts that can occur in scenes, as {name in the index of bundled drawings: concept}."""
    groups = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {
        row.get("concept", row["name"]): Concept(row["name"], group, row.get("colour", ""))
        for group, rows in groups.items()
        for row in rows
    }


@cache
def answers() -> tuple[str, ...]:
    """Return every possible answer, in the order of class numbers: names of drawings, groups, colours and numbers."""
    known = list(concepts().values())
    listed = [*(each.name for each in known), *(each.group for each in known), *(each.colour for each in known)]
    return tuple(dict.fromkeys(answer for answer in (*listed, *NUMBERS) if answer))


def drawings(spec: str, part: str) -> list[list[Drawing]]:
    """Return the drawings for the scenes of one part (train, val, test), as one list for each concept."""
    wanted = spec.partition("@")[2]
    seen = [style for style in bundled.index()["styles"] if style != bundled.UNSEEN_STYLE]
    drawn: dict[str, list[Drawing]] = {name: [] for name in concepts()}
    kept_back = {name: seen[place % len(seen)] for place, name in enumerate(concepts())}  # the style of test scenes
    root = zip_root(bundled.ARCHIVE)
    for entry in bundled.drawings(wanted):
        name = entry["concept"]
        if name in drawn and (wanted or (entry["style"] == kept_back[name]) is (part == "test")):
            drawn[name].append(Drawing(concepts()[name], root + entry["file"]))
    return list(drawn.values())


@lru_cache(maxsize=8)
def scenes_of(spec: str) -> dict[str, Scene]:
    """Return all scenes of the data set `spec`, as {`PART/NUMBER.png`: scene}."""
    base, _, style = spec.partition("@")
    made, of_all_styles, of_a_style = _MADE[base]
    sizes = of_a_style if style else of_all_styles
    return {
        f"{part}/{number:05}.png": scene
        for part, count in zip(PARTS, sizes)
        for number, scene in enumerate(made(drawings(spec, part), count, Random(f"{spec}/{part}")))
    }


def caption(scene: Scene, turned: bool) -> str:
    """Return a caption of `scene`, such as "three times a dog".

    A scene of two things is described from left to right or, if `turned`, from right to left.
    """
    first, *others = [with_article(concept.name) for concept in scene.concepts]
    if scene.kind == "pair":
        return f"{others[0]} right of {first}" if turned else f"{first} left of {others[0]}"
    return f"{NUMBERS[len(others)]} times {first}" if others else first


def with_article(name: str) -> str:
    """Return `name` with the indefinite article, "a" or "an", in front."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
