"""The tasks, each in a file of its own name: `classes.py` holds the task called `classes`.

A task of another package is found by an entry point with the task's name in the group `adapt.tasks`, or is added with
`register`. What a task says of its data is the part that `adapt.data.item` knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from adapt.common.shown import SEPARATOR
from adapt.data.item import TASKS, Item, Label, NamedLabel, filled, kind_of, number, reading
from adapt.tasks.base import Task

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

names = TASKS.names


def named(name: str) -> Task:
    """Return the task called `name`. Raises AdaptError, which suggests similar names, if there is no such task."""
    return cast("Task", TASKS.find(name).label_type.task)


def register(task: type[Task]) -> type[Task]:
    """Register a task class in this process, and return the class, so that `register` can be a decorator."""
    reading.cache_clear()
    return TASKS.register(task)


def of(items: Iterable[Item]) -> Task:
    """Return the task that all `items` belong to. Raises AdaptError if there are no items."""
    return cast("Task", kind_of(items))
