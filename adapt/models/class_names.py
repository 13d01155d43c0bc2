"""The names of classes, by which a model tells them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from adapt import plain
from adapt.errors import AdaptError


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """At least one name, none empty, none twice."""
    names = tuple(class_names)
    if isinstance(class_names, str) or not names:
        raise AdaptError(f"class_names is {class_names!r}; expected a list of at least one name")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise AdaptError(f"class name {name!r} is empty; every class needs a name to read")
        if len(name) > plain.TEXT:
            raise AdaptError(
                f"class name {name[:40]!r}... has {len(name):,} characters; expected at most {plain.TEXT:,}"
            )
    most_common, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise AdaptError(f"class name {most_common!r} appears {count} times; names tell classes apart")
    return names
