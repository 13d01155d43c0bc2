"""A check for matplotlib, an optional dependency that plots need."""

from __future__ import annotations

from importlib.util import find_spec

from adapt.errors import missing


def check_matplotlib(what: str) -> None:
    """Raise AdaptError, before any work is done, if `what` cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise missing(what, "matplotlib", "plot")
