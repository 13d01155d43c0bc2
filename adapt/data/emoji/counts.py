"""The bundled images with a number: scenes of one to four copies of a drawing, and how many there are.

`emoji-counts`        drawings in the seen styles
`emoji-counts@STYLE`  drawings in one style
"""

from __future__ import annotations

from adapt.data.emoji import questions
from adapt.data.split import Item, Split

PARTS = ("train", "val", "test")


def read_counts(spec: str) -> Split:
    """The variant `spec`, one that there is; the domain of an item is the style, its group the concept."""
    of_questions = spec.replace("counts", "questions", 1)
    root, style = f"{of_questions}.scenes!", spec.partition("@")[2]
    found: dict[str, list[Item]] = {part: [] for part in PARTS}
    for member, scene in questions.scenes_of(of_questions).items():
        if scene.kind == "several":
            count = len(scene.pieces)
            word, concept = questions.NUMBERS[count - 1], scene.concepts[0].name
            item = Item(root + member, count - 1, word, style, group=concept, target=float(count))
            found[member.partition("/")[0]].append(item)
    train, val, test = map(tuple, found.values())
    return Split(spec, questions.NUMBERS, train, val, test, root=root)
