"""The answers of a person, in a file that grows with each of them, and what they make of the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from adapt.common.disk import write_csv
from adapt.common.errors import AdaptError, nearest
from adapt.data.item import Item
from adapt.data.readers.lines import csv_rows
from adapt.data.split import PARTS, Split

Action = Literal["label", "drop", "skip"]


@dataclass(frozen=True)
class Annotation:
    """An answer about an image: its `label`, to drop it from the data, or to leave it as it is.

    `proposed` is the label that was proposed.
    """

    path: str
    action: Action
    label: str = ""
    proposed: str = ""

    @property
    def as_proposed(self) -> bool:
        """Whether the proposed label was the right one."""
        return self.action == "label" and self.label == self.proposed


def check(annotation: Annotation, split: Split) -> None:
    """Raise AdaptError for an action or a class that does not exist."""
    if annotation.action not in get_args(Action):
        raise AdaptError(f"the action {annotation.action!r} is unknown; {nearest(annotation.action, get_args(Action))}")
    if annotation.action == "label" and annotation.label not in split.class_names:
        raise AdaptError(f"no class is called {annotation.label!r}; {nearest(annotation.label, split.class_names)}")


def applied(split: Split, annotations: Iterable[Annotation]) -> Split:
    """Return `split` after the annotations: unlabelled images that got a label are training images.

    Raises AdaptError if a class loses its last training image.
    """
    last = {annotation.path: annotation for annotation in annotations if annotation.action != "skip"}
    dropped = {path for path, annotation in last.items() if annotation.action == "drop"}
    parts: dict[str, tuple[Item, ...]] = {
        part: tuple(_annotated(item, last) for item in getattr(split, part) if item.path not in dropped)
        for part in PARTS
    }
    labelled = tuple(item for item in parts["unlabelled"] if item.class_names)
    parts["unlabelled"] = tuple(item for item in parts["unlabelled"] if not item.class_names)
    parts["train"] += labelled
    return replace(split, **parts)  # type: ignore[arg-type]  # the names are those of parts


def _annotated(item: Item, last: dict[str, Annotation]) -> Item:
    annotation = last.get(item.path)
    if annotation is None or item.class_names == (annotation.label,):
        return item
    return item.labelled(Item.of(path=item.path, label=annotation.label).label)


def read(path: Path) -> list[Annotation]:
    """Return the annotations in the file at `path`, or none if it does not exist. Raises AdaptError for a bad file."""
    if not path.exists():
        return []
    _, rows = csv_rows(path)
    try:
        return [Annotation(row["path"], cast("Action", row["action"]), row["label"], row["proposed"]) for row in rows]
    except KeyError as error:
        raise AdaptError(
            f"CSV {str(path)!r} has no column {error}; expected path, action, label and proposed"
        ) from None


def write(path: Path, annotations: Iterable[Annotation]) -> None:
    """Write all annotations to the file at `path`, or remove the file if there are none."""
    if rows := [asdict(annotation) for annotation in annotations]:
        write_csv(path, rows)
    else:
        path.unlink(missing_ok=True)


def filled_in(path: Path, column: str, split: Split) -> list[Annotation]:
    """Return the labels in a `column` of the list at `path`, if it exists, for unlabelled images of `split`.

    Raises AdaptError for an unknown class.
    """
    if not path.exists():
        return []
    unlabelled = {item.path for item in split.unlabelled}
    _, rows = csv_rows(path)
    labels = {f"/{row.get('path', '').lstrip('/')}": row.get(column, "") for row in rows}
    filled = {image: label for image, label in labels.items() if label and image in unlabelled}
    annotations = [Annotation(image, "label", label) for image, label in filled.items()]
    for annotation in annotations:
        check(annotation, split)
    return annotations
