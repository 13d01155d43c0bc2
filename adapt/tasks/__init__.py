"""One task, one file: `classes.py` holds the task called `classes`.

Tasks of other people are found by an entry point in the group `adapt.tasks` of an installed package, whose name is the
task's, or are told of by `register`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from adapt.errors import AdaptError
from adapt.listing import Listing
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
    "number",
    "of",
    "reading",
    "register",
]

# columns that say where an item is, not what it is
PLACES = frozenset({"path", "text", "split", "domain", "group", "x0", "y0", "x1", "y1"})

_listing: Listing[Task] = Listing(__name__, __path__, "adapt.tasks", lambda: Task, "task", frozenset({"base"}))


def names() -> list[str]:
    """The names of all tasks."""
    return _listing.names()


def named(name: str) -> Task:
    """The task called `name`. AdaptError, with the nearest names, where there is none."""
    return _listing.find(name).label_type.task


def register(task: type[Task]) -> type[Task]:
    """Makes a task of one's own known in this process; also as a decorator."""
    reading.cache_clear()
    return _listing.register(task)


def of(items: Sequence[Item]) -> Task:
    """The task of some items, which is that of the first."""
    if not items:
        raise AdaptError("there are no images: this part of the data is empty")
    return items[0].task


def without_classes(method: Method) -> bool:
    """Whether the method learns some task that has no classes, so that it needs no names of classes."""
    return any(task.learned_by(method) for task in map(named, names()) if not task.classes_are)


@cache
def reading(columns: frozenset[str]) -> Task:
    """The task whose labels a list with these columns holds. AdaptError, naming them, where none or two claim it."""
    own = columns - PLACES
    claims = [task for task in map(named, names()) if _claims(task, columns, own)]
    most = max((len(task.needs) for task in claims), default=0)
    found = [task for task in claims if len(task.needs) == most]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(sorted(columns))
    if found:
        both = " and ".join(task.name for task in found)
        raise AdaptError(f"the columns {listed} are those of the tasks {both}: uninstall the package of one")
    raise AdaptError(f"no task reads the columns {listed} together. Expected {_expected()}")


def known_columns() -> list[str]:
    """The columns that some task, or every list, may have; a name may end in `*`."""
    own = {column for task in map(named, names()) for column in task.needs | task.may_have}
    return sorted(own | PLACES)


def unknown_columns(columns: Sequence[str]) -> list[str]:
    """Those of the columns that no list may have, whatever its task."""
    known = known_columns()
    return [column for column in columns if not any(_is(column, each) for each in known)]


def _expected() -> str:
    forms = []
    for task in map(named, names()):
        beside = f" (perhaps with {', '.join(sorted(task.may_have))})" if task.may_have else ""
        forms.append(f"{', '.join(sorted(task.needs)) or 'nothing more'}{beside} for {task.title}")
    return "path, or text in its place, and " + "; ".join(forms)


def _claims(task: Task, columns: frozenset[str], own: frozenset[str]) -> bool:
    needed = all(any(_is(column, each) for column in columns) for each in task.needs)
    return needed and all(any(_is(column, each) for each in task.needs | task.may_have) for column in own)


def _is(column: str, pattern: str) -> bool:
    return column.startswith(pattern[:-1]) if pattern.endswith("*") else column == pattern
