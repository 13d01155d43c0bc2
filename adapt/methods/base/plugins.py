"""Plug-ins: Python files in which users define methods of their own.

A file is run only by `adapt --plugin FILE`, never by a recipe or an adapter.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from adapt.common.errors import AdaptError

_loaded: dict[Path, None] = {}


def loaded() -> tuple[Path, ...]:
    """Return the plug-in files (Python files with users' methods) that this process has run."""
    return tuple(_loaded)


def load(paths: Iterable[Path]) -> None:
    """Run each plug-in file once, and register the file's methods. Raises AdaptError if a file defines no method.

    A plug-in can import other files in its folder if no installed library has the same name.
    """
    from adapt.methods import classes_of, register

    for path in paths:
        if path.resolve() in _loaded:
            continue
        name = f"adapt_plugin_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path) if path.suffix == ".py" else None
        if spec is None or spec.loader is None or not path.is_file():
            raise AdaptError(f"--plugin is {path}; expected a Python file with methods, such as mine.py")
        if (beside := str(path.resolve().parent)) not in sys.path:
            sys.path.append(beside)  # for what the file imports now, and later
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # so that its classes can be pickled
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise AdaptError(f"--plugin {path} cannot be run: {type(error).__name__}: {error}") from error
        classes = classes_of(module)
        if not classes:
            raise AdaptError(f"--plugin {path} defines no method; expected a subclass of adapt.methods.base.Method")
        for cls in classes:
            register(cls)
        _loaded[path.resolve()] = None
