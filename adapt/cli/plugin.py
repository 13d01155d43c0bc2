"""`adapt --plugin FILE`: methods of one's own. The file is run, because who types the command asks for it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from adapt.errors import AdaptError


def load(path: Path) -> None:
    """Runs the Python file at `path` and registers the methods that it defines. AdaptError where it defines none."""
    from adapt.methods import classes_of, register

    name = f"adapt_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path) if path.suffix == ".py" else None
    if spec is None or spec.loader is None or not path.is_file():
        raise AdaptError(f"--plugin {path} is no Python file with methods, such as mine.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # so that its classes can be pickled
    spec.loader.exec_module(module)
    found = classes_of(module)
    if not found:
        raise AdaptError(f"--plugin {path} defines no method: a class made from adapt.methods.base.Method")
    for cls in found:
        register(cls)
