"""Processes that train one run together, as `accelerate launch` and torchrun start them too."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from tempfile import TemporaryFile
from types import FrameType

import click

from adapt import devices
from adapt.errors import AdaptError
from adapt.training.interrupt import ending

STOPPED = 130  # the exit status after Ctrl-C
GRACE = 10.0  # seconds in which the others end by themselves once one has failed


def is_main() -> bool:
    """Whether it is the one that says and writes what comes of it, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def launched(count: int, device: str) -> int:
    """Runs the command that this process was given in `count` processes; their exit status, 0 where none failed.

    The main one says what comes of it; what the others say of an error comes after it. Ctrl-C reaches each of them.
    Raises AdaptError where they would share an accelerator.
    """
    there = devices.count()
    if ":" in device:
        raise AdaptError(
            f"--device {device} is one, and --processes {count} take one each: give its kind alone, or auto"
        )
    if device != "cpu" and 0 < there < count:
        raise AdaptError(f"--processes {count} take an accelerator each, and there are {there}: give as many at most")
    words = [sys.executable, "-m", "adapt", *sys.argv[1:]]
    with TemporaryFile() as errors:
        each = [
            subprocess.Popen(
                words,
                env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | place,
                stdout=subprocess.DEVNULL if rank else None,
                stderr=errors if rank else None,
                start_new_session=True,  # so that Ctrl-C comes from here alone
            )
            for place in [_meeting_place(count)]
            for rank in range(count)
        ]
        status = _ended(each)
        if status not in (0, STOPPED) and each[0].returncode != status:
            errors.seek(0)
            click.echo(errors.read().decode(errors="replace").rstrip(), err=True)
    return status


def _meeting_place(count: int) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    return {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": threads,
    }  # fmt: skip


def _ended(each: list[subprocess.Popen[bytes]]) -> int:
    """The first exit status that is not 0, once all have ended: where one failed, the others are made to."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in each:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in ending()}
    status, until = 0, float("inf")
    try:
        while any(process.poll() is None for process in each):
            status = status or _failed(each)
            if status not in (0, STOPPED):
                until = min(until, time.monotonic() + GRACE)
            if time.monotonic() > until:  # they may wait for the one that failed, deaf to other signals
                for process in each:
                    process.kill()
            time.sleep(0.05)
        return status or _failed(each)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failed(each: list[subprocess.Popen[bytes]]) -> int:
    return next((status for process in each if (status := process.poll())), 0)
