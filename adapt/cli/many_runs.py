"""The options of commands that make many runs (trainings), and the function that makes the runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from adapt.cli import options as common
from adapt.errors import AdaptError
from adapt.tracking import SHIPPED

if TYPE_CHECKING:
    from adapt.protocols.protocol import Protocol
    from adapt.protocols.run_protocol import Results

track = click.option(
    "--track",
    multiple=True,
    type=click.Choice(list(SHIPPED)),
    help="Also log each run to TensorBoard, Weights & Biases or MLflow (repeatable).",
)
engines = common.together(
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Runs at a time on a machine, which take its GPUs in turn.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Engine of the runs: processes of this machine, or Ray.",
    ),
    click.option("--address", help="Address of a Ray cluster.  [default: Ray starts one here]"),
    track,
)


def run(
    protocol: Protocol,
    out: Path,
    jobs: int,
    engine: Literal["local", "ray"],
    address: str | None,
    track: tuple[str, ...],
) -> Results:
    """Train and evaluate all runs of `protocol` in the folder `out`; print each result, and finally a table."""
    from adapt.cli.quiet import quiet_libraries

    if address is not None and engine != "ray":
        raise AdaptError("--address is the address of a Ray cluster and needs --engine ray: add --engine ray")
    with quiet_libraries():
        from adapt.protocols.engines import Engine
        from adapt.protocols.run_protocol import run_protocol
        from adapt.protocols.table_formats import as_text
        from adapt.protocols.tables import table

        try:
            where = Engine(engine, jobs, address)
            results = run_protocol(protocol, out, where, lambda line: click.echo(f"  {line}", err=True), track)
        except KeyboardInterrupt:
            click.echo("stopped; continue with the same command", err=True)
            raise SystemExit(130) from None
    click.echo(as_text(table([results])))
    return results
