"""The bundled images of several classes: scenes of one to four different things, and the names of all of them.

`emoji-labels`        drawings in the seen styles
`emoji-labels@STYLE`  drawings in one style
"""

from __future__ import annotations

from collections.abc import Iterator

from adapt.data.emoji import questions
from adapt.data.emoji.scenes import Scene
from adapt.data.item import Item
from adapt.data.split import Split


def read_labels(spec: str) -> Split:
    """The variant `spec`, one that there is; the domain of an item is the style, "" where scenes mix them."""
    names = tuple(concept.name for concept in questions.concepts().values())

    def labelled(path: str, number: int, scene: Scene, style: str) -> Iterator[Item]:
        # shots are drawn by the first one: all are as frequent
        yield Item.of(path=path, labels=tuple(concept.name for concept in scene.concepts), domain=style)

    return questions.split_of(spec, spec, names, labelled)
