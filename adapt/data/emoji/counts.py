"""The bundled images with a number: scenes of one to four copies of a drawing, and how many there are.

`emoji-counts`        drawings in the seen styles
`emoji-counts@STYLE`  drawings in one style
"""

from __future__ import annotations

from collections.abc import Iterator

from adapt.data.emoji import questions
from adapt.data.emoji.scenes import Scene
from adapt.data.item import Item
from adapt.data.split import Split


def read_counts(spec: str) -> Split:
    """The variant `spec`, one that there is; the domain of an item is the style, its group the concept."""
    return questions.split_of(spec, spec.replace("counts", "questions", 1), questions.NUMBERS, _counted)


def _counted(path: str, number: int, scene: Scene, style: str) -> Iterator[Item]:
    if scene.kind == "several":
        count, concept = len(scene.pieces), scene.concepts[0].name
        name = questions.NUMBERS[count - 1]
        yield Item.of(path=path, target=count, label=name, domain=style, group=concept)
