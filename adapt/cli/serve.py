"""`adapt serve` and `adapt label`, which answer over HTTP"""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from adapt.cli import options as common
from adapt.cli.options import Argument, Option, command
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError, check_installed
from adapt.common.shown import shown

if TYPE_CHECKING:
    from adapt.serving.web import Token

_OF_A_PAGE = ("fastapi", "uvicorn", "httptools")
_OF_A_SERVER = (*_OF_A_PAGE, "prometheus_client", "python_multipart", "threadpoolctl")
_SHORTEST = 16  # characters of a token, so that nobody guesses it


@command()
def serve(
    adapters: Annotated[tuple[str, ...], Argument("ADAPTER...")] = (),
    *,
    index: Annotated[tuple[str, ...], "Index to search (see `adapt index`), or NAME=PATH; may be repeated."] = (),
    host: Annotated[str, "Address to listen at, such as ::1, or 0.0.0.0 for all."] = "127.0.0.1",
    port: Annotated[int, Option("Port, or 0 for any free one.", min=0, max=65535)] = 8000,
    folder: Annotated[
        Path | None, "Folder whose adapters clients may load, unload, and make the default.  [default: none]"
    ] = None,
    max_adapters: Annotated[int, Option("Maximum number of adapters loaded at one time.", min=1)] = 64,
    max_mib: Annotated[float, Option("Maximum size of a request's body, in MiB.", min=0.001)] = 20,
    max_images: Annotated[int, Option("Maximum number of images in a request, and in a pass.", min=1, max=1000)] = 32,
    max_megapixels: Annotated[
        float, Option("Maximum size of a request's images together, in megapixels.", min=0.001)
    ] = 64,
    max_tokens: Annotated[
        int, Option("Maximum number of tokens in a conversation, its answer included.", min=2)
    ] = 4096,
    max_requests: Annotated[
        int,
        Option(
            "Maximum number of requests at one time: classifications, embeddings with searches, and chats each.",
            min=1,
        ),
    ] = 64,
    timeout: Annotated[float, Option("Seconds until a request fails.", min=0.001)] = 30,
    token_file: Annotated[
        Path | None,
        "File with a token that requests must send, or with lines NAME TOKEN [REQUESTS].  [default: no token]",
    ] = None,
    access_log: Annotated[bool, Option("Log each request as a line of JSON.", "--access-log")] = False,
    backbone: common.OfAdapter = None,
    device: common.RunsOn = AUTO,
) -> None:
    """Serve each ADAPTER (a file, a run, or NAME=PATH) over HTTP. By default, requests use the first ADAPTER.

    Adapters with classes answer at /predict, and those of native vision-language models at /v1/chat/completions, as
    OpenAI's clients ask; all others embed images and texts at /v1/embeddings. Each --index is searched at /search, by
    the adapter that it was made with, or by its backbone. Web pages for trying them are at / and /chat, the API schema
    at /openapi.json, and metrics at /metrics. Without --token-file, anyone who can reach the port can send requests
    and, with --folder, load and unload adapters. Several clients may have a token each: the name is for the log, and
    REQUESTS is the client's own --max-requests, over all kinds. SIGHUP, or POST /reload, loads the adapters and indexes
    again whose files have changed.

    \b
    Examples:
      adapt serve runs/first
      adapt serve coop=runs/coop lora=runs/lora --folder runs --port 9000
      adapt serve --index photos.safetensors
    """
    check_installed("adapt serve", "serve", *_OF_A_SERVER)
    tokens = [] if token_file is None else _tokens(token_file)
    listening = listening_at(host, port)
    with listening:
        from adapt.serving.adapters import ServedAdapters
        from adapt.serving.admission import Limits
        from adapt.serving.app import create_app
        from adapt.serving.connections import run
        from adapt.serving.web import is_loopback
        from adapt.serving.worker import apart

        given = apart(common.given_backbone, backbone, device)
        served = ServedAdapters(adapters, folder, given, device, max_adapters, index)
        limits = Limits(
            int(max_mib * 2**20),
            max_images,
            int(max_megapixels * 1e6),
            max_tokens,
            requests=max_requests,
            seconds=timeout,
        )
        app = create_app(served, limits, ("localhost",) if is_loopback(host) else ("*",), tokens, access_log)
        name = f"[{host}]" if ":" in host else host
        names = ", ".join([*served.now.models, *served.indexes])
        click.echo(f"{names} at http://{name}:{listening.getsockname()[1]} (Ctrl-C ends it)")
        # uvicorn raises the signal that ended it again: a supervisor then sees an end by SIGTERM, and no failure
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run(app, listening, timeout, served.reload)


def listening_at(host: str, port: int) -> socket.socket:
    """Return a socket that listens at `host` and `port`. Raises AdaptError on failure, such as for a port in use."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise AdaptError(
            f"cannot listen at {host}:{port} ({error.strerror or error}): choose another --port or --host"
        ) from error


def _tokens(path: Path) -> list[Token]:
    """Return the tokens in the file `path`: one alone, or lines with a name, a token, and perhaps a limit.

    Raises AdaptError for an unreadable file, a short or invalid token, and a name or token that is there twice.
    """
    from adapt.serving.web import Token

    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise AdaptError(f"--token-file {path} cannot be read ({error}): give a file with ASCII text") from error
    if len(lines) == 1 and len(lines[0]) == 1:
        lines = [["", *lines[0]]]
    tokens: list[Token] = []
    for number, (name, *rest) in enumerate(lines, 1):
        secret, most = rest[0] if rest else "", rest[1:]
        if not rest or len(most) > 1 or not all(each.isdecimal() and int(each) for each in most):
            raise AdaptError(
                f"--token-file {path} line {number}: expected NAME TOKEN, and perhaps a number of requests from 1 on"
            )
        if len(secret) < _SHORTEST or not secret.isprintable():
            raise AdaptError(
                f"--token-file {path} line {number} has a token of {len(secret)} characters; expected at least "
                f"{_SHORTEST}, such as the output of `openssl rand -hex 32`"
            )
        if any(name == other.name or secret == other.secret for other in tokens):
            raise AdaptError(f"--token-file {path} line {number}: the name or the token is there twice: change one")
        tokens.append(Token(secret, name, *map(int, most)))
    if not tokens:
        raise AdaptError(
            f"--token-file {path} is empty; expected a token, such as the output of `openssl rand -hex 32`"
        )
    return tokens


@command()
def label(
    images: tuple[Path, ...] = (),
    *,
    run: Annotated[Path, Option("Folder of a run.", "--adapter")],
    out: Annotated[Path, "Folder for the answers, new or begun."],
    a_round: Annotated[int, Option("Answers before each training.", min=1)] = 10,
    propose: Annotated[
        int | None, Option("Only write this many proposals to OUT, without the page.", min=1, max=1000)
    ] = None,
    port: Annotated[int, Option("Port of the page, or 0 for any.", min=0, max=65535)] = 8000,
    device: common.RecipeDevice = None,
    quiet: common.Quiet = False,
) -> None:
    """Label images on a web page, by the keyboard, with proposals of the adapter of a run.

    IMAGES are folders, .csv lists or files of images without labels; the unlabelled images of the run's own data are
    asked about too. The images come first whose labels help most: those that many other images resemble, above all
    images of which the adapter is unsure. After each round the run's recipe is trained on all images with a label, and
    the page shows what that changed on the test images.

    A list that `adapt recommend` or `adapt data check` wrote (suspects.csv, confused.csv, contradictions.csv,
    duplicates.csv, ...) asks about the images of the run that it names: keep the label, change it, or drop the image.

    \b
    OUT receives
      annotations.csv  each answer, at once
      proposals.csv    the images of the round, with their proposed labels, and a column answer to fill in
      data.csv         all images with their labels, and recipe.yaml, which trains on them
      rounds.json      the results of the rounds
      round-N/         the run of each round

    The same command again goes on from there. The page needs the extra `serve`.

    \b
    Examples:
      adapt label photos/ --adapter runs/first --out runs/labels
      adapt label runs/recommend-photos/suspects.csv --adapter runs/recommend-photos --out runs/fixed
      adapt label photos/ --adapter runs/first --out runs/labels --propose 100
    """
    if propose is None:
        check_installed("the page of adapt label", "serve", *_OF_A_PAGE)
    from adapt.labelling.labelling import PROPOSALS, Labelling

    labelling = Labelling(run, images, out, device or AUTO, progress=not quiet)
    proposals = labelling.propose(a_round if propose is None else propose + labelling.answers)
    labelling.write()
    if propose is not None:
        click.echo(f"{len(proposals)} proposals, the most useful first: {shown(str(out / PROPOSALS))}")
        return
    from adapt.labelling.server import create_label_app
    from adapt.serving.connections import run as serve

    with listening_at("127.0.0.1", port) as listening:
        click.echo(f"Label the images at http://127.0.0.1:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
        try:
            serve(create_label_app(labelling, a_round), listening, 30.0)
        finally:
            labelling.write()
            click.echo(f"To train on all labels: {shown(labelling.command)}")
