"""The bundled pairs of images and captions: the scenes that questions are asked about, each with a sentence.

`emoji-captions`        drawings in the seen styles
`emoji-captions@STYLE`  drawings in one style
"""

from __future__ import annotations

from collections.abc import Iterator

from adapt.data.emoji import questions
from adapt.data.emoji.scenes import Scene
from adapt.data.item import Item
from adapt.data.split import Split


def read_captions(spec: str) -> Split:
    """The variant `spec`, one that there is; the domain of an item is the style, "" where scenes mix them."""
    return questions.split_of(spec, spec.replace("captions", "questions", 1), (), _captioned)


def _captioned(path: str, number: int, scene: Scene, style: str) -> Iterator[Item]:
    text = caption(scene, turned=number % 2 == 1)
    yield Item.of(path=path, text=text, domain=style)


def caption(scene: Scene, turned: bool) -> str:
    """What is to be seen: one thing, several of a kind, or one left of another, which is the same `turned` round."""
    first, *others = [with_article(concept.name) for concept in scene.concepts]
    if scene.kind == "pair":
        return f"{others[0]} right of {first}" if turned else f"{first} left of {others[0]}"
    return f"{questions.NUMBERS[len(others)]} times {first}" if others else first


def with_article(name: str) -> str:
    """A name with its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
