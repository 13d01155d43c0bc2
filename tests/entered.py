"""What one command enters: `python entered.py COMMAND …` prints numbers of files, functions, calls and modules as JSON.

Files and functions of `adapt` count that a call enters, in the main thread, but for what runs only because a module is
imported; calls are those from a file to another, each pair of functions once; modules are those that were imported.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import adapt
from adapt.cli import main

HOME = str(Path(adapt.__file__).parent)


def numbers(arguments: list[str]) -> dict[str, int]:
    functions: set[tuple[str, str]] = set()
    calls: set[tuple[str, str, str, str]] = set()

    def entered(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        optimized = code.co_flags & inspect.CO_OPTIMIZED  # unlike the bodies of modules and classes
        if event != "call" or not optimized or not _is_ours(frame) or "<genexpr>" in code.co_qualname:
            return
        above = [up for up in _up(frame) if _is_ours(up)]
        if any(up.f_code.co_name == "<module>" for up in above):
            return
        functions.add((code.co_filename, code.co_qualname))
        if above and above[0].f_code.co_filename != code.co_filename:
            caller = above[0].f_code
            calls.add((caller.co_filename, caller.co_qualname, code.co_filename, code.co_qualname))

    sys.setprofile(entered)
    try:
        main(arguments, standalone_mode=False)
    finally:
        sys.setprofile(None)
    modules = [name for name in sys.modules if name.split(".")[0] == "adapt"]
    files = {file for file, _ in functions}
    return {"files": len(files), "functions": len(functions), "calls": len(calls), "modules": len(modules)}


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(HOME)


def _up(frame: FrameType) -> list[FrameType]:
    frames = []
    while (above := frame.f_back) is not None:
        frames.append(frame := above)
    return frames


if __name__ == "__main__":
    print(json.dumps(numbers(sys.argv[1:])))
