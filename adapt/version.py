"""The version of the installed distribution, which pyproject.toml names."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

NOT_INSTALLED = "0+unknown"  # of a copy that is imported from where it lies: a version by PEP 440

try:
    __version__ = version("adapt-vlm")
except PackageNotFoundError:
    __version__ = NOT_INSTALLED
