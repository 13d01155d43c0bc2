"""What `adapt predict` prints of each image: lines, JSON, or rows of a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapt import hub, plain
from adapt.cells import guarded
from adapt.shown import shown

if TYPE_CHECKING:
    from adapt.models.explanation import Explanation
    from adapt.models.prediction import Prediction


def writer(as_json: bool, as_csv: bool) -> Any:
    """A function that prints the one prediction of one image."""
    if as_csv:
        _print_csv([["image", "rank", "class", "probability"]])
        return _csv_columns
    if as_json:
        return lambda path, found: click.echo(plain.dump({"image": str(path), **_answer(found[0])}))
    return _lines


def writer_of(adapters: Sequence[Path], as_json: bool, as_csv: bool, explain: bool) -> Any:
    """A function that prints what the adapters say of one image."""
    if explain:
        return _explained_json if as_json else _explained
    if len(adapters) > 1:
        return _side_by_side(as_json, as_csv, [*map(hub.spelled, adapters)])
    return writer(as_json, as_csv)


def _side_by_side(as_json: bool, as_csv: bool, adapters: Sequence[str]) -> Any:
    """A function that prints what each of the adapters says of one image."""
    if as_csv:
        _print_csv([["image", "rank", *(cell for name in adapters for cell in (name, f"{name} probability"))]])
    if as_json:
        return lambda path, found: click.echo(
            plain.dump({"image": str(path), "adapters": dict(zip(adapters, map(_top, found), strict=True))})
        )
    return _csv_columns if as_csv else partial(_columns, adapters)


def _top(found: Prediction) -> list[dict[str, Any]]:
    return [{"class": name, "probability": value} for name, value in found.top]


def _answer(found: Prediction) -> dict[str, Any]:
    number = {} if found.number is None else {"number": found.number}
    several = {} if found.class_names is None else {"classes": list(found.class_names)}
    return {**number, "class": found.class_name, **several, "top": _top(found)}


def _said(found: Prediction) -> list[tuple[str, float]]:
    """The ranked classes; of an image that has none of them, none, and of one with several those that are said."""
    if found.class_name != found.top[0][0]:
        return [(found.class_name, found.probability)]
    return [each for each in found.top if found.class_names is None or each[0] in found.class_names]


def _cells(each: tuple[str, float] | None) -> list[str]:
    """Class and probability; empty behind the last class."""
    return ["", ""] if each is None else [each[0], f"{each[1]:.6f}"]


def _csv_columns(path: Path, found: Sequence[Prediction]) -> None:
    ranks = enumerate(zip_longest(*map(_said, found)), 1)
    _print_csv([str(path), rank, *(cell for each in row for cell in _cells(each))] for rank, row in ranks)


def _columns(adapters: Sequence[str], path: Path, found: Sequence[Prediction]) -> None:
    columns = [[shown(name), *map(_line, each.top)] for name, each in zip(adapters, found, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    click.echo(shown(path))
    for row in zip_longest(*columns, fillvalue=""):
        click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _line(each: tuple[str, float]) -> str:
    return f"{100 * each[1]:5.1f} %  {shown(each[0])}"


def _print_csv(rows: Iterable[Sequence[Any]]) -> None:
    """Guarded as in files; in UTF-8, and paths that are none as their bytes are."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(guarded, row) for row in rows)
    click.echo(text.getvalue().encode(errors="surrogateescape"), nl=False)


def _lines(path: Path, found: Sequence[Prediction]) -> None:
    of_image = [] if found[0].number is None else [f"{found[0].number:.3g}"]
    if found[0].class_names is not None or found[0].class_name != found[0].top[0][0]:
        of_image.append(", ".join(map(shown, found[0].class_names or [found[0].class_name])))
    click.echo("  ".join([shown(path), *of_image]))
    for each in found[0].top:
        click.echo(f"  {_line(each)}")


def _explained(path: Path, found: Explanation) -> None:
    click.echo(shown(path))
    for each, reasons in zip(found.prediction.top, found.reasons, strict=True):
        click.echo(f"  {_line(each)}, cosines: mean {reasons.mean:.3f}, largest {reasons.descriptors[0][1]:.3f}")
        for descriptor, cosine in reasons.descriptors:
            click.echo(f"           {cosine:6.3f}  {shown(descriptor)}")


def _explained_json(path: Path, found: Explanation) -> None:
    top = [told | reasons.plain() for told, reasons in zip(_top(found.prediction), found.reasons, strict=True)]
    click.echo(plain.dump({"image": str(path), "top": top}))
