"""Boxes of things in scenes of emoji by classifiers that never learned any, from windows of the scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import adapt
from adapt.backbones.box_texts import Edges
from adapt.common.grouping import grouped
from adapt.data.item import labels_of
from adapt.evaluation.boxes import HALF, average_precision, matched, overlaps
from adapt.models.windows import SURE, windows
from adapt.tasks.boxes import BoxLabel
from benchmarks.measure import Row

CLASSIFIERS = ("mini-clip", "mini-clip-half")
SCENES = 90
LEAST = 0.3  # the probability of boxes that count for average precision, which orders them by it


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield figures of boxes of all names in the bundled scenes, by zero-shot classifiers of these names.

    Beside them are those of all windows, if it were known which to take: the most that windows can reach.
    """
    questions = adapt.data.load("emoji-boxes").test
    labels = labels_of(questions, BoxLabel)
    of_scene = grouped(zip((item.path for item in questions), labels, strict=True))
    scenes = dict([*of_scene.items()][:SCENES])
    names = sorted({label.name for label in labels})
    true = [(path, label.name, label.boxes) for path, asked in scenes.items() for label in asked]
    for name in CLASSIFIERS:
        progress(f"{name}, {len(scenes)} scenes")
        model = adapt.wrap(adapt.load_backbone(name, "cpu"), adapt.methods.ZeroShot(), names)
        found = [(path, each.boxes or ()) for path, each in zip(scenes, model.find(list(scenes), LEAST), strict=True)]
        yield _row(name, true, found)
    best = [float(overlaps(boxes, [*windows(*labels[0].size)]).max(1).values.min()) for _, _, boxes in true]
    share = sum(each >= HALF for each in best) / len(best)
    yield {"case": "the best windows", "text": f"{100 * share:.1f} % of the questions have all boxes at IoU 0.5"}


def _row(case: str, true: list[tuple[str, str, tuple[Edges, ...]]], found: list[tuple[str, Any]]) -> Row:
    pairs: dict[tuple[str, str], tuple[Sequence[Edges], list[Edges], list[float]]] = {
        (path, name): (boxes, [], []) for path, name, boxes in true
    }
    for path, boxes in found:
        for box in boxes:
            _, edges, sure = pairs.setdefault((path, box.name), ((), [], []))
            edges.append(box.edges)
            sure.append(box.probability)
    of_name = grouped((name, (*each, ())) for (_, name), each in pairs.items())
    precision = [average_precision(each)[0, 0] for each in of_name.values() if any(boxes for boxes, *_ in each)]
    hits = taken = 0
    for boxes, edges, sure in pairs.values():
        kept = [own for own, probability in zip(edges, sure, strict=True) if probability >= SURE]
        hits += sum(each > 0 for each in matched(overlaps(kept, boxes), HALF))
        taken += len(kept)
    there = sum(len(boxes) for _, _, boxes in true)
    figures = {"average_precision_50": float(sum(precision) / len(precision)), "precision": hits / max(taken, 1)}
    figures |= {"recall": hits / there, "f1": 2 * hits / (taken + there)}
    return {"case": case, **figures, "text": ", ".join(f"{name} {value:.3f}" for name, value in figures.items())}
