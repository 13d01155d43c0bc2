"""The version, as the installed package has it: git's tags give it when the package is built."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from adapt.errors import AdaptError

try:
    __version__ = version("adapt-vlm")
except PackageNotFoundError:
    raise AdaptError("adapt-vlm is not installed here, so its version is not known: pip install -e CHECKOUT") from None
