"""What comes of a damaged adapter, in a process of its own: forked off a warm one, timed, its memory bounded."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SECONDS, MEMORY = 30, 6 * 2**30  # a child that takes more is ended, and counts as one that took too much


@dataclass(frozen=True)
class Outcome:
    """`kind` is refused, equal, changed, traceback or killed."""

    kind: str
    message: str = ""
    seconds: float = 0.0
    mebibytes: float = 0.0  # beyond what the process held when it began


def of(look: Callable[[], tuple[str, str]]) -> Outcome:
    """The outcome of `look`, which returns a kind and a message, or raises."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _report(look, write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if not text:
        return Outcome("killed", f"the process ended with status {status}", SECONDS)
    return Outcome(**json.loads(text))


def _report(look: Callable[[], tuple[str, str]], write: int) -> None:
    """Runs `look` in this process, tells the parent, and ends."""
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(SECONDS - 2, file=sys.__stderr__)  # where one that is ended hung
    held = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (held * 1024 + MEMORY,) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, started = _status("VmRSS"), time.monotonic()
    try:
        kind, message = look()
    except BaseException:  # noqa: BLE001 (whatever a user would see as a traceback)
        kind, message = "traceback", traceback.format_exc()[-1500:]
    took = Outcome(kind, message, time.monotonic() - started, (_status("VmHWM") - before) / 1024)
    with os.fdopen(write, "wb") as pipe:
        pipe.write(json.dumps(asdict(took)).encode())
    os._exit(0)


def _status(key: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def loaded(path: Path, backbone: Any, expected: Any, logits: Callable[[Any], Any]) -> tuple[str, str]:
    """Whether `path` is refused, loads with the `expected` logits, or with others; `inspect` is asked as well."""
    import torch
    from click.testing import CliRunner

    import adapt
    from adapt.cli import main

    shown = CliRunner().invoke(main, ["inspect", str(path), "--words", "0"])
    if shown.exception is not None and not isinstance(shown.exception, SystemExit):
        raise shown.exception
    if any(not (line.isprintable() or line == "") for line in shown.output.splitlines()):
        return "traceback", f"inspect printed {shown.output!r}"
    try:
        model = adapt.load(path, backbone)
        found = logits(model)
    except adapt.AdaptError as error:
        return "refused", str(error)
    same = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    return ("equal" if same else "changed"), ""
