"""Ctrl-C ends training between two steps, where the state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Set once the user asks to stop."""

    requested = False

    def request(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt  # asked twice: at once
        self.requested = True


def ending() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a process to end: a closed terminal's too, unless it is ignored, as under nohup."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    heard = hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *([hangup] if heard and hangup is not None else []))


@contextmanager
def graceful() -> Iterator[Interrupt]:
    """Inside, the signals of `ending` only set a flag. In a thread other than the main one, they stay as they are."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt.request) for number in ending()}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
