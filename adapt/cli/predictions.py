"""Writers for `adapt predict`: text, JSON or CSV, for one adapter or several side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapt.common import hub, plain
from adapt.common.shown import SEPARATOR, guarded, shown, unseen
from adapt.formats import distinct_names

if TYPE_CHECKING:
    from adapt.models.answer import Explanation
    from adapt.models.prediction import Prediction

Write = Callable[[str, Any], None]  # takes the name of an image and its predictions, or its explanation


def writer(adapters: Sequence[Path], as_json: bool, explain: bool) -> Write:
    """Return a function that prints the predictions for one image, or an explanation, as text or JSON."""
    if explain:
        return _explained_json if as_json else _explained
    if len(adapters) > 1:
        return partial(_side_by_side_json if as_json else _side_by_side, [*map(hub.spelled, adapters)])
    return _json if as_json else _lines


class Columns:
    """A CSV writer that prints one row per image, with the most probable class and its probability for each adapter.

    A regression adapter adds a number. A multi-label adapter adds all predicted classes. For other adapters,
    `threshold` adds the answer, which may be `none`. The next most probable classes follow, up to `ranks` in total.
    """

    def __init__(self, adapters: Sequence[Path], threshold: bool, ranks: int) -> None:
        self._adapters = distinct_names(adapters) if len(adapters) > 1 else [""]
        self._threshold, self._ranks, self._begun = threshold, ranks, False

    def begin(self, predictions: Sequence[Prediction] = ()) -> None:
        """Print the header once, with the columns that the `predictions` for the first image need."""
        if self._begun:
            return
        self._begun = True
        of_each = zip_longest(self._adapters, predictions)
        first_column = "item" if predictions and predictions[0].images is not None else "image"
        _print_csv([[first_column, *(name for adapter, first in of_each for name in self._names(adapter, first))]])

    def __call__(self, image: str, predictions: Sequence[Prediction]) -> None:
        self.begin(predictions)
        _print_csv([[image, *(cell for prediction in predictions for cell in self._cells(prediction))]])

    def _names(self, adapter: str, first: Prediction | None) -> list[str]:
        multi_label = first is not None and first.class_names is not None
        names = ["probability"]
        names += ["number"] if first is not None and first.number is not None else []
        names += ["classes"] if multi_label else ["answer"] * self._threshold
        names += [f"{name}_{rank}" for rank in range(2, self._ranks + 1) for name in ("class", "probability")]
        return [adapter, *(f"{adapter} {name}" for name in names)] if adapter else ["class", *names]

    def _cells(self, prediction: Prediction) -> list[str]:
        """Return the cells of one adapter's `prediction`; cells are empty if there are fewer than `ranks` classes."""
        ranked = [cell for name, probability in prediction.top for cell in (name, f"{probability:.6f}")]
        ranked = [*ranked, *[""] * (2 * self._ranks)][: 2 * self._ranks]
        number = [] if prediction.number is None else [f"{prediction.number:.6g}"]
        answer = [prediction.class_name] * self._threshold
        if prediction.class_names is not None:
            answer = [SEPARATOR.join(prediction.class_names) or prediction.class_name]
        return [*ranked[:2], *number, *answer, *ranked[2:]]


def _print_csv(rows: Iterable[Sequence[str]]) -> None:
    """Print CSV rows in UTF-8, with formulas and control characters escaped; non-UTF-8 bytes in paths are kept."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(cell) for cell in row] for row in rows)
    click.echo(text.getvalue().encode(errors="surrogateescape"), nl=False)


def _cell(text: str) -> str:
    """Escape formulas and control characters in a cell, but keep non-UTF-8 bytes, so that paths remain valid."""
    if not unseen(text):
        return guarded(text)
    return guarded("".join(letter if "\udc80" <= letter <= "\udcff" else shown(letter) for letter in text))


def _json(image: str, predictions: Sequence[Prediction]) -> None:
    [prediction] = predictions
    click.echo(plain.dump({"image" if prediction.images is None else "item": image, **prediction.plain()}))


def _side_by_side_json(adapters: Sequence[str], image: str, predictions: Sequence[Prediction]) -> None:
    answers = {name: each.plain() for name, each in zip(adapters, predictions, strict=True)}
    click.echo(plain.dump({"image": image, "adapters": answers}))


def _lines(image: str, predictions: Sequence[Prediction]) -> None:
    click.echo(shown(image) + _answer(predictions[0]))
    for each in predictions[0].top:
        click.echo(f"  {_line(each)}")


def _side_by_side(adapters: Sequence[str], image: str, predictions: Sequence[Prediction]) -> None:
    columns = [
        [shown(name) + _answer(each), *map(_line, each.top)] for name, each in zip(adapters, predictions, strict=True)
    ]
    widths = [max(map(len, column)) for column in columns]
    click.echo(shown(image))
    for row in zip_longest(*columns, fillvalue=""):
        click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _answer(prediction: Prediction) -> str:
    """Return the text that follows an image's name: the predicted number, and any answer other than the top class."""
    number = "" if prediction.number is None else f"  {prediction.number:.3g}"
    if prediction.class_names is None and prediction.class_name == prediction.top[0][0]:
        return number
    return f"{number}  {', '.join(map(shown, prediction.class_names or [prediction.class_name]))}"


def _line(each: tuple[str, float]) -> str:
    return f"{100 * each[1]:5.1f} %  {shown(each[0])}"


def _explained(image: str, explanation: Explanation) -> None:
    click.echo(shown(image) + _answer(explanation.prediction))
    for each, reasons in zip(explanation.prediction.top, explanation.reasons, strict=True):
        click.echo(f"  {_line(each)}, cosines: mean {reasons.mean:.3f}, largest {reasons.descriptors[0][1]:.3f}")
        for descriptor, cosine in reasons.descriptors:
            click.echo(f"           {cosine:6.3f}  {shown(descriptor)}")


def _explained_json(image: str, explanation: Explanation) -> None:
    prediction = explanation.prediction.plain()
    top = [each | reasons.plain() for each, reasons in zip(prediction["top"], explanation.reasons, strict=True)]
    click.echo(plain.dump({"image": image, **prediction, "top": top}))
