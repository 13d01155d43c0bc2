"""The tasks, each in a file of its own name: `classes.py` holds the task called `classes`.

A task of another package is found by an entry point with the task's name in the group `adapt.tasks`, or is added with
`register`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from adapt.common.errors import AdaptError
from adapt.common.listing import Listing
from adapt.tasks.base import SEPARATOR, Label, NamedLabel, Task, filled, number

if TYPE_CHECKING:
    from adapt.data.item import Item
    from adapt.methods.base import Method

__all__ = [
    "SEPARATOR",
    "Label",
    "NamedLabel",
    "Task",
    "filled",
    "named",
    "names",
    "no_label",
    "number",
    "of",
    "reading",
    "register",
]

# columns that say where an item comes from, not what it is
PLACES = frozenset({"path", "text", "split", "domain", "group", "item", "x0", "y0", "x1", "y1"})

_listing: Listing[Task] = Listing(__name__, __path__, "adapt.tasks", lambda: Task, "task", frozenset({"base"}))
names = _listing.names

# the columns that the tasks need, so that only those tasks are imported whose columns a list has
_NEEDS = {
    "classes": {"label"}, "contrasts": {"rejected_images", "chat", "rejected"}, "conversations": {"chat"},
    "labels": {"labels"}, "maps": {"mask", "label"}, "pairs": {"path", "text"}, "preferences": {"chat", "rejected"},
    "questions": {"question", "label"}, "records": {"path", "entity", "text"}, "targets": {"target"},
}  # fmt: skip


def named(name: str) -> Task:
    """Return the task called `name`. Raises AdaptError, which suggests similar names, if there is no such task."""
    return _listing.find(name).label_type.task


def register(task: type[Task]) -> type[Task]:
    """Register a task class in this process, and return the class, so that `register` can be a decorator."""
    reading.cache_clear()
    return _listing.register(task)


def of(items: Sequence[Item]) -> Task:
    """Return the task that all `items` belong to. Raises AdaptError if there are no items."""
    if not items:
        raise AdaptError("there are no images, because this split of the data is empty: give at least one image")
    return items[0].task


def without_classes(method: Method) -> bool:
    """Return whether the method can learn a task without classes, in which case the method needs no class names."""
    return any(task.learned_by(method) for task in _all() if not task.classes_are)


def no_label() -> Label:
    """Return the label of an item without annotations."""
    return reading(frozenset({"path"})).read({}, "")


@cache
def reading(columns: frozenset[str]) -> Task:
    """Return the task that fits the columns of a data list. Raises AdaptError if no task or more than one task fits."""
    own = columns - PLACES
    files = [name for name in _listing.files() if _NEEDS.get(name, set()) <= columns]
    claiming = _listing.claiming(lambda task: _claims(task.label_type.task, columns, own), files)
    claims = [task.label_type.task for task in claiming]
    most = max((len(task.needs) for task in claims), default=0)
    fitting = [task for task in claims if len(task.needs) == most]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(sorted(columns))
    if fitting:
        tasks = " and ".join(task.name for task in fitting)
        raise AdaptError(f"the columns {listed} fit the tasks {tasks}: uninstall the package of one of these tasks")
    forms = []
    for task in _all():
        optional = f" (optionally {', '.join(sorted(task.may_have))})" if task.may_have else ""
        forms.append(f"{', '.join(sorted(task.needs)) or 'nothing more'}{optional} for {task.title}")
    raise AdaptError(
        f"no task reads the columns {listed} together: expected path, or text instead, and {'; '.join(forms)}"
    )


def known_columns() -> list[str]:
    """Return the columns that the data lists of all tasks may have; `*` at the end of a name stands for any ending."""
    own = {column for task in _all() for column in task.needs | task.may_have}
    return sorted(own | PLACES)


def unknown_columns(columns: Sequence[str]) -> list[str]:
    """Return the given columns that no task's data list may have."""
    known = known_columns()
    return [column for column in columns if not any(_is(column, each) for each in known)]


def _all() -> list[Task]:
    return [task.label_type.task for task in _listing.classes()]


def _claims(task: Task, columns: frozenset[str], own: frozenset[str]) -> bool:
    needed = all(any(_is(column, each) for column in columns) for each in task.needs)
    return needed and all(any(_is(column, each) for each in task.needs | task.may_have) for column in own)


def _is(column: str, pattern: str) -> bool:
    return column.startswith(pattern[:-1]) if pattern.endswith("*") else column == pattern
