"""The options of commands that make many runs (trainings), and the function that makes the runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from adapt.cli import options as common
from adapt.common.errors import AdaptError
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
        type=click.Choice(["local", "ray", "slurm"]),
        default="local",
        show_default=True,
        help="Engine of the runs: processes of this machine, Ray, or jobs of SLURM.",
    ),
    click.option("--address", help="Address of a Ray cluster.  [default: Ray starts one here]"),
    click.option(
        "--sbatch",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of sbatch for the jobs of SLURM, such as partition=gpu, gpus=1 or time=2:00:00 (repeatable).",
    ),
    track,
)


def _sbatch(options: tuple[str, ...]) -> dict[str, str]:
    """Return sbatch's options by name, with underscores. Raises AdaptError for one that is not written KEY=VALUE."""
    given = {}
    for option in options:
        key, equals, value = option.removeprefix("--").partition("=")
        if not (key and equals and value) or "\n" in option:
            raise AdaptError(f"--sbatch {option} is not an option; expected KEY=VALUE, such as partition=gpu")
        given[key.replace("-", "_")] = value
    return given


def run(
    protocol: Protocol,
    out: Path,
    jobs: int,
    engine: Literal["local", "ray", "slurm"],
    address: str | None,
    sbatch: tuple[str, ...],
    track: tuple[str, ...],
) -> Results:
    """Train and evaluate all runs of `protocol` in the folder `out`; print each result, and finally a table."""
    from adapt.cli.quiet import quiet_libraries

    if address is not None and engine != "ray":
        raise AdaptError("--address is the address of a Ray cluster and needs --engine ray: add --engine ray")
    if sbatch and engine != "slurm":
        raise AdaptError("--sbatch has options of SLURM's jobs and needs --engine slurm: add --engine slurm")
    of_jobs = _sbatch(sbatch)
    with quiet_libraries():
        from adapt.protocols.engines import Engine
        from adapt.protocols.run_protocol import run_protocol
        from adapt.protocols.table_formats import as_text
        from adapt.protocols.tables import table

        try:
            where = Engine(engine, jobs, address, tuple(of_jobs.items()))
            results = run_protocol(protocol, out, where, lambda line: click.echo(f"  {line}", err=True), track)
        except KeyboardInterrupt:
            click.echo("stopped; continue with the same command", err=True)
            raise SystemExit(130) from None
    click.echo(as_text(table([results])))
    return results
