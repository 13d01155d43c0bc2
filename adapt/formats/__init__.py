"""File formats: adapter, compact folder, published checkpoint, merged model, peft's layout, hub repository, export.

Here is by what a folder is known, before what reads it is imported, and how an adapter is called by its path: as its
run's folder, its file without suffix, or its hub repository.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from adapt.common import hub

COMPACT_WEIGHTS = "backbone.safetensors"
PEFT_CONFIG = "adapter_config.json"
_SUFFIX = ".safetensors"


def name_of_adapter(path: Path) -> str:
    """Return a short name for the adapter at `path`: the name of its run folder, file or hub repository."""
    return _parts(path)[-1]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return a unique name for each adapter in `paths`: its short name, prefixed with parent folders where needed."""
    of_each = [_parts(path) for path in paths]
    lengths = [1] * len(paths)
    while True:
        names = ["/".join(parts[-length:]) for parts, length in zip(of_each, lengths)]
        count = Counter(names)
        longer = [count[name] > 1 and length < len(parts) for name, parts, length in zip(names, of_each, lengths)]
        if not any(longer):
            # a folder and the file in it are one adapter and have the same name
            return [hub.spelled(path) if count[name] > 1 else name for name, path in zip(names, paths)]
        lengths = [length + more for length, more in zip(lengths, longer)]


def _parts(path: Path) -> tuple[str, ...]:
    """Return a tuple with the names of an adapter's parent folders, followed by the adapter's short name."""
    if hub.is_name(path):
        return tuple(hub.spelled(path).removeprefix(hub.SCHEME).split("/"))
    path = path.resolve()
    if path.name == f"adapter{_SUFFIX}":
        return path.parent.parts[1:]
    return (*path.parent.parts[1:], path.name.removesuffix(_SUFFIX))
