"""Ctrl-C and other signals to end a process: training stops between two steps, where its state is consistent."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

_PATIENCE = 10.0  # seconds for what a process does when it is interrupted


class Interrupt:
    """A flag that is set when the user asks to stop the training."""

    elsewhere: ClassVar[set[Interrupt]] = set()
    """The flags of trainings in other threads than the main one, which alone receives signals."""
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


class Terminated(KeyboardInterrupt):
    """The KeyboardInterrupt for SIGTERM, which workers do not receive; a terminal's signals reach them too."""


def _end(number: int, frame: FrameType | None) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call `handler` for the signals `numbers` in the `with` block, and leave them as they were before."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


@contextmanager
def interrupted_when_ended() -> Iterator[None]:
    """Raise KeyboardInterrupt in the `with` block for each signal of `ending`, as Python does for Ctrl-C alone.

    Outside the main thread, which alone receives signals, the block is as it was.
    """
    here = threading.current_thread() is threading.main_thread()
    with handled([number for number in ending() if here and signal.getsignal(number) == signal.SIG_DFL], _end):
        yield


def end_with_the_parent() -> None:
    """Interrupt this process when the one that started it by `multiprocessing`, if any, has ended."""
    import multiprocessing  # which takes a while, and few processes need it

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)  # a training ends after its step
        time.sleep(_PATIENCE)
        os._exit(1)

    threading.Thread(target=watch, name="adapt-parent", daemon=True).start()


def stop_elsewhere() -> None:
    """Ask the trainings in all threads but the main one to stop after their present step, with KeyboardInterrupt."""
    for interrupt in [*Interrupt.elsewhere]:
        interrupt.requested = True


@contextmanager
def graceful() -> Iterator[Interrupt]:
    """Yield a flag that the signals of `ending` set during the `with` block, instead of ending the process.

    Outside the main thread, `stop_elsewhere` sets the flag.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        Interrupt.elsewhere.add(interrupt)
        try:
            yield interrupt
        finally:
            Interrupt.elsewhere.discard(interrupt)
        return
    with handled(ending(), interrupt.request):
        yield interrupt
