"""The version of adapt, read from the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

NOT_INSTALLED = "0+unknown"  # for an uninstalled copy; valid by PEP 440

try:
    __version__ = version("adapt-vlm")
except PackageNotFoundError:
    __version__ = NOT_INSTALLED
