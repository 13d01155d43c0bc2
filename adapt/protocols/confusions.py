"""The confusion matrix of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MOST_CLASSES = 30  # a larger table is hard to read


@dataclass(frozen=True)
class ConfusionCell:
    """A confusion-matrix cell: number of images, fraction of the actual class, and whether the prediction is right."""

    images: int
    share: float
    right: bool


@dataclass(frozen=True)
class Confusions:
    """A confusion matrix with the displayed classes, one row of cells for each class, and a caption.

    `elsewhere` contains, for each row, the number of images that were classified as a class that is not displayed. The
    list is empty if all classes are displayed.
    """

    classes: list[str]
    rows: list[list[ConfusionCell]]
    elsewhere: list[int]
    caption: str


def confusions(rows: Sequence[dict[str, str]]) -> Confusions:
    """Return the confusion matrix for the rows of predictions.csv, limited to the most often confused classes."""
    counts = Counter((row["class"], row["predicted"]) for row in rows)
    of_class = Counter(row["class"] for row in rows)
    every = sorted({name for pair in counts for name in pair})
    classes, caption = every, f"all {len(every)} classes"
    if len(every) > MOST_CLASSES:
        classes = _most_confused(counts)
        caption = f"the {len(classes)} of {len(every)} classes that are most often confused"
        if not classes:
            classes = every[:MOST_CLASSES]
            caption = f"{len(classes)} of {len(every)} classes, without any confusion"
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
    """Return the classes of the most often confused pairs, up to the limit of a displayed confusion matrix."""
    pairs: Counter[tuple[str, str]] = Counter()
    for (actual, predicted), count in counts.items():
        if actual != predicted:
            pairs[min(actual, predicted), max(actual, predicted)] += count
    chosen: set[str] = set()
    for pair in sorted(pairs, key=lambda pair: (-pairs[pair], pair)):
        if len(chosen.union(pair)) <= MOST_CLASSES:
            chosen.update(pair)
    return sorted(chosen)
