"""Descriptors of the bundled groups against a plain template, and random words in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

import adapt
from adapt.methods import Descriptions, ZeroShot
from benchmarks.drawings import SEEN, UNSEEN, backbone, drawings, paired, per_cent, right, row_of
from benchmarks.measure import Row

TEMPLATES = ("a photo of a {}.", "an icon of a {}.", "a drawing of a {}.", "{}.")
SEEDS = (1, 2, 3)


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report accuracy in the seen styles and in the unseen one, with the difference to the plain template."""
    cases: dict[str, list[dict[str, object]]] = {"a photo of a {}.": [{}], "four templates": [{"template": TEMPLATES}]}
    for score in ("mean", "max"):
        described: dict[str, object] = {"descriptors": "emoji", "score": score}
        cases[f"descriptors, {score}"] = [described]
        cases[f"random words, {score}"] = [described | {"random_words": seed} for seed in SEEDS]
    plain = {spec: _right({}, spec) for spec in (SEEN, UNSEEN)}
    for case, settings in cases.items():
        progress(case)
        cells = {}
        for spec in (SEEN, UNSEEN):
            ours = [_right(each, spec) for each in settings]
            cells[spec] = f"{per_cent(ours)} ({paired(ours, [plain[spec]], drawings(spec).test)})"
        yield row_of(case, cells)


def _right(settings: dict[str, Any], spec: str) -> Tensor:
    kind = Descriptions if "descriptors" in settings else ZeroShot
    split = drawings(spec)
    return right(adapt.wrap(backbone(), kind(**settings), split.class_names), split.test)
