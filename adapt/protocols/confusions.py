"""How many of each class's images were taken for what, as a table of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MOST_CLASSES = 30  # of a table that can still be read


@dataclass(frozen=True)
class ConfusionCell:
    """How many images of one class were taken for another, and their share of the class's images."""

    images: int
    share: float
    right: bool


@dataclass(frozen=True)
class Confusions:
    """The classes that are shown, a row of cells for each, and a caption that says which they are.

    `elsewhere` counts for each row the images that were taken for classes that are not shown; it is empty where all
    are.
    """

    classes: list[str]
    rows: list[list[ConfusionCell]]
    elsewhere: list[int]
    caption: str


def confusions(rows: Sequence[dict[str, str]]) -> Confusions:
    """The confusions in the rows of predictions.csv; of many classes those that are most often confused."""
    counts = Counter((row["class"], row["predicted"]) for row in rows)
    of_class = Counter(row["class"] for row in rows)
    every = sorted({name for pair in counts for name in pair})
    classes, caption = every, f"all {len(every)} classes"
    if len(every) > MOST_CLASSES:
        classes = _most_confused(counts)
        caption = f"the {len(classes)} of {len(every)} classes that are most often taken for one another"
        if not classes:
            classes = every[:MOST_CLASSES]
            caption = f"{len(classes)} of {len(every)} classes, none of which is taken for another"
    cells = [
        [
            ConfusionCell(counts[actual, name], counts[actual, name] / max(1, of_class[actual]), actual == name)
            for name in classes
        ]
        for actual in classes
    ]
    hidden = [of_class[actual] - sum(cell.images for cell in row) for actual, row in zip(classes, cells)]
    return Confusions(classes, cells, hidden if len(classes) < len(every) else [], caption)


def _most_confused(counts: Counter[tuple[str, str]]) -> list[str]:
    """As many classes as fit, from the pairs that are confused most often on."""
    pairs: Counter[tuple[str, str]] = Counter()
    for (actual, predicted), count in counts.items():
        if actual != predicted:
            pairs[min(actual, predicted), max(actual, predicted)] += count
    chosen: set[str] = set()
    for pair in sorted(pairs, key=lambda pair: (-pairs[pair], pair)):
        if len(chosen.union(pair)) <= MOST_CLASSES:
            chosen.update(pair)
    return sorted(chosen)
