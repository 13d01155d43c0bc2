"""`adapt serve`"""

from __future__ import annotations

import signal
import socket
from importlib.util import find_spec
from pathlib import Path

import click

from adapt.cli import options as common
from adapt.common.errors import AdaptError, missing

_LIBRARIES = ("fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart", "threadpoolctl")
_SHORTEST = 16  # characters of a token, so that nobody guesses it


@click.command()
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at, such as ::1, or 0.0.0.0 for all."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port, or 0 for any free one."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Folder whose adapters clients may load, unload, and make the default.  [default: none]",
)
@click.option(
    "--max-adapters",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Maximum number of adapters loaded at one time.",
)
@click.option(
    "--max-mib",
    type=click.FloatRange(min=0.001),
    default=20,
    show_default=True,
    help="Maximum size of a request's body, in MiB.",
)
@click.option(
    "--max-images",
    type=click.IntRange(1, 1000),
    default=32,
    show_default=True,
    help="Maximum number of images in a request, and in a pass.",
)
@click.option(
    "--max-megapixels",
    type=click.FloatRange(min=0.001),
    default=64,
    show_default=True,
    help="Maximum size of a request's images together, in megapixels.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=2),
    default=4096,
    show_default=True,
    help="Maximum number of tokens in a conversation, its answer included.",
)
@click.option(
    "--max-requests",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Maximum number of requests read and answered at one time, of classifications and of chats each.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0.001), default=30, show_default=True, help="Seconds until a request fails."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with a token that requests must send.  [default: no token]",
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
    max_megapixels: float,
    max_tokens: int,
    max_requests: int,
    timeout: float,
    token_file: Path | None,
    backbone: str | None,
    device: str,
) -> None:
    """Serve each ADAPTER (a file, a run, or NAME=PATH) over HTTP. By default, requests use the first ADAPTER.

    Adapters with classes answer at /predict, those of native vision-language models at /v1/chat/completions, as
    OpenAI's clients ask. Web pages for trying them are at / and /chat, the API schema at /openapi.json, and metrics at
    /metrics. Without --token-file, anyone who can reach the port can send requests and, with --folder, load and unload
    adapters.

    \b
    Examples:
      adapt serve runs/first
      adapt serve coop=runs/coop lora=runs/lora --folder runs --port 9000
    """
    absent = [name for name in _LIBRARIES if find_spec(name) is None]
    if absent:
        raise missing("adapt serve", ", ".join(absent), "serve")
    token = None if token_file is None else _token(token_file)
    from adapt.cli.quiet import quiet_libraries

    listening = listening_at(host, port)
    with listening, quiet_libraries():
        from adapt.serving.adapters import ServedAdapters
        from adapt.serving.admission import Limits
        from adapt.serving.app import create_app
        from adapt.serving.guard import is_loopback
        from adapt.serving.running import run
        from adapt.serving.threads import apart

        given = apart(common.given_backbone, backbone, device)
        served = ServedAdapters(adapters, folder, given, device, max_adapters)
        limits = Limits(
            int(max_mib * 2**20),
            max_images,
            int(max_megapixels * 1e6),
            max_tokens,
            requests=max_requests,
            seconds=timeout,
        )
        app = create_app(served, limits, ("localhost",) if is_loopback(host) else ("*",), token)
        name = f"[{host}]" if ":" in host else host
        click.echo(f"{', '.join(served.now.models)} at http://{name}:{listening.getsockname()[1]} (Ctrl-C ends it)")
        # uvicorn raises the signal that ended it again: a supervisor then sees an end by SIGTERM, and no failure
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run(app, listening, timeout)


def listening_at(host: str, port: int) -> socket.socket:
    """Return a socket that listens at `host` and `port`. Raises AdaptError on failure, such as for a port in use."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise AdaptError(
            f"cannot listen at {host}:{port} ({error.strerror or error}): choose another --port or --host"
        ) from error


def _token(path: Path) -> str:
    """Return the token in the file `path`. Raises AdaptError for an unreadable file and a short or invalid token."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise AdaptError(f"--token-file {path} cannot be read ({error}): give a file with ASCII text") from error
    if len(token) < _SHORTEST or not token.isprintable() or " " in token:
        raise AdaptError(
            f"--token-file {path} has {len(token)} characters; expected one line of at least {_SHORTEST} characters "
            "without spaces, such as the output of `openssl rand -hex 32`"
        )
    return token


COMMANDS = {"serve": serve}
