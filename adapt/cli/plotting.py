"""A check for matplotlib, an optional dependency that plots need."""

from __future__ import annotations

from importlib.util import find_spec

from adapt.common.errors import missing


def check_matplotlib(what: str) -> None:
    """Raise AdaptError, before any long work is done, if matplotlib, which plots `what`, is not installed."""
    if find_spec("matplotlib") is None:
        raise missing(what, "matplotlib", "plot")
