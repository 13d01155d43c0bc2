"""`adapt serve`"""

from __future__ import annotations

import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from adapt.cli import options as common
from adapt.errors import AdaptError, missing
from adapt.training.interrupt import ending

_HERE = ("localhost", "127.0.0.1")
_LIBRARIES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "threadpoolctl")


@click.command()
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at; 0.0.0.0 is all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="The port; 0 takes any that is free."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Let clients load adapters of this folder, unload them, and switch the default.  [default: they cannot]",
)
@click.option(
    "--max-adapters",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Loaded at one time; clients can add none beyond.",
)
@click.option("--max-mib", type=click.FloatRange(min=0.001), default=20, show_default=True, help="Of a request's body.")
@click.option(
    "--max-images", type=click.IntRange(1, 1000), default=32, show_default=True, help="Of a request, and of a pass."
)
@click.option(
    "--max-requests", type=click.IntRange(min=1), default=64, show_default=True, help="Read and answered at one time."
)
@click.option(
    "--timeout", type=click.FloatRange(min=0.001), default=30, show_default=True, help="Seconds until a request fails."
)
@common.of_adapter
@common.device
def serve(
    adapters: tuple[str, ...],
    host: str,
    port: int,
    folder: Path | None,
    max_adapters: int,
    max_mib: float,
    max_images: int,
    max_requests: int,
    timeout: float,
    backbone: str | None,
    device: str,
) -> None:
    """Answer over HTTP with each ADAPTER (a file, a run, or NAME=PATH), the first where a request names none.

    A page to drop pictures on is at /, the interface at /openapi.json, metrics at /metrics. Whoever reaches the port
    may ask, and with --folder also change what is served: there is no password, so listen elsewhere than on this
    machine only behind something that has one.

    \b
    Examples:
      adapt serve runs/first
      adapt serve coop=runs/coop lora=runs/lora --folder runs --port 9000
    """
    absent = [name for name in _LIBRARIES if find_spec(name) is None]
    if absent:
        raise missing("adapt serve", ", ".join(absent), "serve")
    from adapt.cli.quiet import quiet_libraries

    listening = _listening(host, port)
    with listening, quiet_libraries():
        from adapt.serving.adapters import ServedAdapters
        from adapt.serving.app import Limits, create_app
        from adapt.serving.threads import apart

        given = apart(common.given_backbone, backbone, device)
        served = ServedAdapters(adapters, folder, given, device, max_adapters)
        limits = Limits(int(max_mib * 2**20), max_images, max_requests, timeout)
        app = create_app(served, limits, (*_HERE, host) if host in _HERE else ("*",))
        address = f"http://{host}:{listening.getsockname()[1]}"
        click.echo(f"{', '.join(served.now.models)} at {address} (Ctrl-C ends it)")
        _run(app, listening)


def _run(app: Any, listening: socket.socket) -> None:
    import uvicorn

    for number in set(ending()) - {signal.SIGINT, signal.SIGTERM}:  # which uvicorn hears itself
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGTERM))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=10)
    uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket at that address. AdaptError where there is none to be had, before a model is loaded."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise AdaptError(
            f"cannot listen at {host}:{port}: {error.strerror or error}. Choose another --port or --host"
        ) from error


COMMANDS = {"serve": serve}
