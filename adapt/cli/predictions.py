"""What `adapt predict` prints of each image: lines for people, JSON or CSV, of one adapter or several side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapt import hub, plain
from adapt.adapter_names import distinct_names
from adapt.cells import guarded
from adapt.shown import shown, unseen
from adapt.tasks import SEPARATOR

if TYPE_CHECKING:
    from adapt.models.explanation import Explanation
    from adapt.models.prediction import Prediction

Write = Callable[[str, Any], None]  # of what an image is called and what is said of it


def writer(adapters: Sequence[Path], as_json: bool, explain: bool) -> Write:
    """A function that prints, for people or as JSON, what the adapters, one or none or several, say of an image."""
    if explain:
        return _explained_json if as_json else _explained
    if len(adapters) > 1:
        return partial(_side_by_side_json if as_json else _side_by_side, [*map(hub.spelled, adapters)])
    return _json if as_json else _lines


class Columns:
    """CSV, a row for each image: the likeliest class and its probability, of one adapter or of each by its name.

    Behind them stand the number that an adapter of numbers says, all classes of an image that may have several, or
    with a `threshold` the answer, which may be none, and the classes up to `ranks` in their order.
    """

    def __init__(self, adapters: Sequence[Path], threshold: bool, ranks: int) -> None:
        self._adapters = distinct_names(adapters) if len(adapters) > 1 else [""]
        self._threshold, self._ranks, self._begun = threshold, ranks, False

    def begin(self, found: Sequence[Prediction] = ()) -> None:
        """The first line, once, with what each adapter is known to say: of no image, classes alone."""
        if self._begun:
            return
        self._begun = True
        of_each = zip_longest(self._adapters, found)
        _print_csv([["image", *(name for adapter, first in of_each for name in self._names(adapter, first))]])

    def __call__(self, image: str, found: Sequence[Prediction]) -> None:
        self.begin(found)
        _print_csv([[image, *(cell for each in found for cell in self._cells(each))]])

    def _names(self, adapter: str, first: Prediction | None) -> list[str]:
        several = first is not None and first.class_names is not None
        names = ["probability"]
        names += ["number"] if first is not None and first.number is not None else []
        names += ["classes"] if several else ["answer"] * self._threshold
        names += [f"{name}_{rank}" for rank in range(2, self._ranks + 1) for name in ("class", "probability")]
        return [adapter, *(f"{adapter} {name}" for name in names)] if adapter else ["class", *names]

    def _cells(self, found: Prediction) -> list[str]:
        """The cells of one adapter; empty behind its last class."""
        ranked = [cell for name, probability in found.top for cell in (name, f"{probability:.6f}")]
        ranked = [*ranked, *[""] * (2 * self._ranks)][: 2 * self._ranks]
        number = [] if found.number is None else [f"{found.number:.6g}"]
        said = [found.class_name] * self._threshold
        if found.class_names is not None:
            said = [SEPARATOR.join(found.class_names) or found.class_name]
        return [*ranked[:2], *number, *said, *ranked[2:]]


def _print_csv(rows: Iterable[Sequence[Any]]) -> None:
    """Guarded as in files, and nothing that steers a terminal; in UTF-8, and paths that are none as their bytes are."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(cell) for cell in row] for row in rows)
    click.echo(text.getvalue().encode(errors="surrogateescape"), nl=False)


def _cell(value: Any) -> Any:
    """A text on one line as `shown` has it, but the bytes of a path that are no UTF-8, which a shell takes again."""
    if not isinstance(value, str) or not unseen(value):
        return guarded(value)
    return guarded("".join(letter if "\udc80" <= letter <= "\udcff" else shown(letter) for letter in value))


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
