"""Whose code a module is: a library's, which its version stands for, or that of who uses adapt.

A module is a library's where an installed distribution holds its file, wherever that was installed: in site-packages,
by `pip install --target`, behind a `.pth` file or on PYTHONPATH. What is installed editable, or is a source tree with
metadata beside it, changes under one version, and counts as the user's own.
"""

from __future__ import annotations

import functools
import sys
from importlib.metadata import Distribution, distributions, packages_distributions
from pathlib import Path


def library_version(module: str) -> str | None:
    """The version of what `module` is a part of: Python, or an installed distribution. None for the user's own."""
    top = module.partition(".")[0]
    if top == "__main__":
        return None
    return sys.version if top in sys.stdlib_module_names else _installed_version(top, _file(module))


def _file(module: str) -> str | None:
    """The file of the outermost package around `module` that has one, which a namespace does not."""
    parts = module.split(".")
    packages = (sys.modules.get(".".join(parts[: end + 1])) for end in range(len(parts)))
    return next((file for package in packages if (file := getattr(package, "__file__", None))), None)


@functools.cache
def _installed_version(top: str, file: str | None) -> str | None:
    if file is None:
        return None
    holding = (each for name in _by_package().get(top, ()) for each in distributions(name=name) if _holds(each, file))
    return next((each.version for each in holding), None)


@functools.cache
def _by_package() -> dict[str, list[str]]:
    return {package: list(dict.fromkeys(names)) for package, names in packages_distributions().items()}


def _holds(distribution: Distribution, file: str) -> bool:
    built_in_place = distribution.read_text("SOURCES.txt") and not distribution.read_text("installed-files.txt")
    root = Path(str(distribution.locate_file(""))).absolute()
    return not built_in_place and root in Path(file).absolute().parents
