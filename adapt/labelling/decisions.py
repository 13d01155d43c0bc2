"""The answers of a person, in a file that grows with each of them, and what they make of the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from adapt.cells import unguarded
from adapt.data.item import Item
from adapt.data.readers.lines import csv_reader, readable
from adapt.data.split import PARTS, Split
from adapt.disk import write_csv
from adapt.errors import AdaptError, nearest

Action = Literal["label", "drop", "skip"]


class Decision(NamedTuple):
    """What a person decided about an image: its `label`, to drop it from the data, or to leave it as it is."""

    path: str
    action: Action
    label: str = ""


def check(decision: Decision, split: Split) -> None:
    """Raise AdaptError for an action or a class that does not exist."""
    if decision.action not in get_args(Action):
        raise AdaptError(f"the action {decision.action!r} is unknown; {nearest(decision.action, get_args(Action))}")
    if decision.action == "label" and decision.label not in split.class_names:
        raise AdaptError(f"no class is called {decision.label!r}; {nearest(decision.label, split.class_names)}")


def applied(split: Split, decisions: Iterable[Decision]) -> Split:
    """Return `split` after the decisions: unlabelled images that got a label are training images.

    Raises AdaptError if a class loses its last training image.
    """
    last = {decision.path: decision for decision in decisions if decision.action != "skip"}
    parts: dict[str, Any] = {
        part: tuple(_decided(item, last) for item in getattr(split, part) if _stays(item, last)) for part in PARTS
    }
    labelled = tuple(item for item in parts["unlabelled"] if item.class_names)
    parts["unlabelled"] = tuple(item for item in parts["unlabelled"] if not item.class_names)
    parts["train"] += labelled
    return replace(split, **parts)


def _stays(item: Item, last: dict[str, Decision]) -> bool:
    return item.path not in last or last[item.path].action != "drop"


def _decided(item: Item, last: dict[str, Decision]) -> Item:
    decision = last.get(item.path)
    if decision is None or item.class_names == (decision.label,):
        return item
    return item.labelled(Item.of(path=item.path, label=decision.label).label)


def read(path: Path) -> list[Decision]:
    """Return the decisions in the file at `path`, or none if it does not exist. Raises AdaptError for a bad file."""
    if not path.exists():
        return []
    where = f"CSV {str(path)!r}"
    with readable(where):
        rows = [{name: unguarded(cell or "") for name, cell in row.items()} for row in csv_reader(path)]
    try:
        return [Decision(row["path"], cast("Action", row["action"]), row["label"]) for row in rows]
    except KeyError as error:
        raise AdaptError(f"{where} has no column {error}; expected path, action and label") from None


def write(path: Path, decisions: Iterable[Decision]) -> None:
    """Write all decisions to the file at `path`, or remove the file if there are none."""
    if rows := [decision._asdict() for decision in decisions]:
        write_csv(path, rows)
    else:
        path.unlink(missing_ok=True)
