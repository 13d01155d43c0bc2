"""Ctrl-C and other signals to end a process: training stops between two steps, where its state is consistent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """A flag that is set when the user asks to stop the training."""

    requested = False

    def request(self, signum: int, frame: FrameType | None) -> None:
        """Set the flag when a signal arrives; a second signal raises KeyboardInterrupt immediately."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def ending() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a process to end, with SIGHUP only if the process does not ignore SIGHUP."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    heard = hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *([hangup] if heard and hangup is not None else []))


@contextmanager
def graceful() -> Iterator[Interrupt]:
    """Yield a flag that the signals of `ending` set during the `with` block, instead of ending the process.

    Outside the main thread, the flag is never set.
    """
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
