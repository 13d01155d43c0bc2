"""What `adapt predict` prints of each image: lines for people, JSON or CSV, of one adapter or several side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import click

from adapt import plain
from adapt.cells import guarded
from adapt.data.split import SEPARATOR
from adapt.shown import shown

if TYPE_CHECKING:
    from adapt.models.explanation import Explanation
    from adapt.models.prediction import Prediction

Write = Callable[[str, Any], None]  # of what an image is called and what is said of it


def writer(adapters: Sequence[str], as_json: bool, as_csv: bool, explain: bool, threshold: bool) -> Write:
    """A function that prints what the adapters, of which there may be one or none, say of an image."""
    if explain:
        return _explained_json if as_json else _explained
    if as_csv:
        return Columns(adapters if len(adapters) > 1 else (), threshold)
    if len(adapters) > 1:
        return partial(_side_by_side_json if as_json else _side_by_side, adapters)
    return _json if as_json else _lines


class Columns:
    """CSV, a row for each of an image's classes: those of each adapter by its name, or of one without.

    Behind class and probability stand the number that an adapter of numbers says, and, where there is a `threshold`,
    the answer, which may be none.
    """

    def __init__(self, adapters: Sequence[str], threshold: bool) -> None:
        self._adapters, self._threshold, self._begun = adapters, threshold, False

    def begin(self, numbers: Sequence[bool] = ()) -> None:
        """The first line, once: with what each adapter is known to say, numbers too or, of no image, classes alone."""
        if self._begun:
            return
        self._begun = True
        of_each = zip_longest(self._adapters or [""], numbers, fillvalue=False)
        _print_csv([["image", "rank", *(name for each, number in of_each for name in self._names(str(each), number))]])

    def __call__(self, image: str, found: Sequence[Prediction]) -> None:
        self.begin([each.number is not None for each in found])
        ranks = enumerate(zip_longest(*map(_said, found)), 1)
        _print_csv(
            [image, rank, *(cell for each, place in zip(found, row) for cell in self._cells(each, place))]
            for rank, row in ranks
        )

    def _names(self, adapter: str, number: bool) -> list[str]:
        more = ["probability", *["number"] * number, *["answer"] * self._threshold]
        return [adapter, *(f"{adapter} {name}" for name in more)] if adapter else ["class", *more]

    def _cells(self, found: Prediction, place: tuple[str, float] | None) -> list[str]:
        """What stands of one adapter at one rank; behind its last class no class."""
        cells = ["", ""] if place is None else [place[0], f"{place[1]:.6f}"]
        cells += [] if found.number is None else [f"{found.number:.6g}"]
        return [*cells, *[SEPARATOR.join(found.class_names or [found.class_name])] * self._threshold]


def _print_csv(rows: Iterable[Sequence[Any]]) -> None:
    """Guarded as in files; in UTF-8, and paths that are none as their bytes are."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(guarded, row) for row in rows)
    click.echo(text.getvalue().encode(errors="surrogateescape"), nl=False)


def _json(image: str, found: Sequence[Prediction]) -> None:
    click.echo(plain.dump({"image": image, **found[0].plain()}))


def _side_by_side_json(adapters: Sequence[str], image: str, found: Sequence[Prediction]) -> None:
    answers = {name: each.plain() for name, each in zip(adapters, found, strict=True)}
    click.echo(plain.dump({"image": image, "adapters": answers}))


def _lines(image: str, found: Sequence[Prediction]) -> None:
    click.echo(shown(image) + _answered(found[0]))
    for each in found[0].top:
        click.echo(f"  {_line(each)}")


def _side_by_side(adapters: Sequence[str], image: str, found: Sequence[Prediction]) -> None:
    columns = [
        [shown(name) + _answered(each), *map(_line, each.top)] for name, each in zip(adapters, found, strict=True)
    ]
    widths = [max(map(len, column)) for column in columns]
    click.echo(shown(image))
    for row in zip_longest(*columns, fillvalue=""):
        click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _said(found: Prediction) -> Sequence[tuple[str, float]]:
    """The ranked classes; of an image that may have several those that it has, or `none`."""
    if found.class_names is None:
        return found.top
    return [each for each in found.top if each[0] in found.class_names] or [(found.class_name, found.probability)]


def _answered(found: Prediction) -> str:
    """What is said beside the classes: the number, all that the image has, and `none` where it has none."""
    number = "" if found.number is None else f"  {found.number:.3g}"
    if found.class_names is None and found.class_name == found.top[0][0]:
        return number
    return f"{number}  {', '.join(map(shown, found.class_names or [found.class_name]))}"


def _line(each: tuple[str, float]) -> str:
    return f"{100 * each[1]:5.1f} %  {shown(each[0])}"


def _explained(image: str, found: Explanation) -> None:
    click.echo(shown(image) + _answered(found.prediction))
    for each, reasons in zip(found.prediction.top, found.reasons, strict=True):
        click.echo(f"  {_line(each)}, cosines: mean {reasons.mean:.3f}, largest {reasons.descriptors[0][1]:.3f}")
        for descriptor, cosine in reasons.descriptors:
            click.echo(f"           {cosine:6.3f}  {shown(descriptor)}")


def _explained_json(image: str, found: Explanation) -> None:
    said = found.prediction.plain()
    top = [each | reasons.plain() for each, reasons in zip(said["top"], found.reasons, strict=True)]
    click.echo(plain.dump({"image": image, **said, "top": top}))
