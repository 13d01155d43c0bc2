"""The start of several processes that train one run together, as `accelerate launch` and torchrun do."""

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

from adapt.common import devices
from adapt.common.errors import AdaptError
from adapt.common.interrupt import ending

STOPPED = 130  # the exit status after Ctrl-C
GRACE = 10.0  # seconds for the others to end by themselves once one has failed


def launched(count: int, device: str) -> int:
    """Rerun the current command in `count` processes that train together, and return 0 or the first nonzero exit code.

    The main process prints the results. Errors of the other processes are printed after all processes have ended.
    Ctrl-C is sent to all processes. Raises AdaptError if two processes would share an accelerator.
    """
    available = devices.count()
    if ":" in device:
        raise AdaptError(
            f"--device {device} is a single device, but --processes {count} needs one device per process: give only "
            "the type of device, such as cuda, or auto"
        )
    if device != "cpu" and 0 < available < count:
        raise AdaptError(
            f"--processes {count} needs {count} accelerators, but there are only {available}: give at most {available}"
        )
    command = [sys.executable, "-m", "adapt", *sys.argv[1:]]
    with TemporaryFile() as errors:
        processes = [
            subprocess.Popen(
                command,
                env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | place,
                stdout=subprocess.DEVNULL if rank else None,
                stderr=errors if rank else None,
                start_new_session=True,  # so that Ctrl-C reaches it only through this process
            )
            for place in [_meeting_place(count)]
            for rank in range(count)
        ]
        status = _ended(processes)
        if status not in (0, STOPPED) and processes[0].returncode != status:
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


def _ended(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes, or kill all processes soon after one fails; return 0 or the first nonzero exit code."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in ending()}
    status, until = 0, float("inf")
    try:
        while any(process.poll() is None for process in processes):
            status = status or _failed(processes)
            if status not in (0, STOPPED):
                until = min(until, time.monotonic() + GRACE)
            if time.monotonic() > until:  # they may wait for the failed one, and ignore other signals
                for process in processes:
                    process.kill()
            time.sleep(0.05)
        return status or _failed(processes)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failed(processes: list[subprocess.Popen[bytes]]) -> int:
    return next((status for process in processes if (status := process.poll())), 0)
