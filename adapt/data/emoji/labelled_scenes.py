"""Bundled data sets of emoji scenes with captions, with counts, or with the names of all things in the scene.

`emoji-captions`, `emoji-counts` and `emoji-labels` have drawings in the seen styles; `emoji-captions@STYLE` and so on
have drawings in one style. An item's domain is the style, or "" if scenes mix styles.
"""

from __future__ import annotations

from collections.abc import Iterator

from adapt.data.emoji import questions
from adapt.data.emoji.scenes import Scene
from adapt.data.item import Item
from adapt.data.split import Split


def read_captions(spec: str) -> Split:
    """Return the data set `spec` (`emoji-captions` or a variant): scenes of `emoji-questions`, paired with captions."""

    def captioned(path: str, number: int, scene: Scene, style: str) -> Iterator[Item]:
        yield Item.of(path=path, text=caption(scene, turned=number % 2 == 1), domain=style)

    return questions.split_of(spec, spec.replace("captions", "questions", 1), (), captioned)


def caption(scene: Scene, turned: bool) -> str:
    """Return a caption of `scene`, such as "three times a dog".

    A scene of two things is described from left to right or, if `turned`, from right to left.
    """
    first, *others = [with_article(concept.name) for concept in scene.concepts]
    if scene.kind == "pair":
        return f"{others[0]} right of {first}" if turned else f"{first} left of {others[0]}"
    return f"{questions.NUMBERS[len(others)]} times {first}" if others else first


def with_article(name: str) -> str:
    """Return `name` with the indefinite article, "a" or "an", in front."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def read_counts(spec: str) -> Split:
    """Return the data set `spec` (`emoji-counts` or a variant): scenes labelled with the number of copies of a drawing.

    A scene has one to four copies. An item's group is the drawn concept.
    """

    def counted(path: str, number: int, scene: Scene, style: str) -> Iterator[Item]:
        if scene.kind == "several":
            count, concept = len(scene.pieces), scene.concepts[0].name
            yield Item.of(path=path, target=count, label=questions.NUMBERS[count - 1], domain=style, group=concept)

    return questions.split_of(spec, spec.replace("counts", "questions", 1), questions.NUMBERS, counted)


def read_labels(spec: str) -> Split:
    """Return the data set `spec` (`emoji-labels` or a variant): scenes labelled with the names of all things shown."""
    names = tuple(concept.name for concept in questions.concepts().values())

    def labelled(path: str, number: int, scene: Scene, style: str) -> Iterator[Item]:
        # shots are drawn by the first name: all are equally frequent
        yield Item.of(path=path, labels=tuple(concept.name for concept in scene.concepts), domain=style)

    return questions.split_of(spec, spec, names, labelled)
