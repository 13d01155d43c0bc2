"""A check for matplotlib, an optional dependency that plots need."""

from __future__ import annotations

from importlib.util import find_spec

from adapt.errors import missing


def check_matplotlib(what: str) -> None:
    """Raise AdaptError if matplotlib, which is needed to plot `what`, is not installed; call before any long work."""
    if find_spec("matplotlib") is None:
        raise missing(what, "matplotlib", "plot")
