"""What commands that make many runs have in common: where they go, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapt.cli import options as common
from adapt.errors import AdaptError
from adapt.tracking import SHIPPED

if TYPE_CHECKING:
    from adapt.protocols.protocol import Protocol

track = click.option(
    "--track",
    multiple=True,
    type=click.Choice(list(SHIPPED)),
    help="Tell TensorBoard, Weights & Biases or MLflow of each run too. May be repeated.",
)
engines = common.together(
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Runs at once on a machine, which take its GPUs in turn.",
    ),
    click.option(
        "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where runs go."
    ),
    click.option("--address", help="Of a Ray cluster; without it Ray starts one here."),
    track,
)


def run(protocol: Protocol, out: Path, jobs: int, engine: Any, address: str | None, track: tuple[str, ...]) -> None:
    """Makes the runs of `protocol` in `out`, says what each gave, and prints the table."""
    from adapt.cli.quiet import quiet_libraries

    if address is not None and engine != "ray":
        raise AdaptError("--address is of a Ray cluster: add --engine ray")
    with quiet_libraries():
        from adapt.protocols.engines import Engine
        from adapt.protocols.run_protocol import run_protocol
        from adapt.protocols.tables import as_text, table

        try:
            where = Engine(engine, jobs, address)
            results = run_protocol(protocol, out, where, lambda line: click.echo(f"  {line}", err=True), track)
        except KeyboardInterrupt:
            click.echo("stopped; go on with the same command", err=True)
            raise SystemExit(130) from None
    click.echo(as_text(table([results])))
