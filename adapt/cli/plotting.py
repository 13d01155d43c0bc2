"""Pictures need matplotlib, which is an extra."""

from __future__ import annotations

from importlib.util import find_spec

from adapt.errors import missing


def check_matplotlib(what: str) -> None:
    """AdaptError, before any work, where `what` cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise missing(what, "matplotlib", "plot")
