"""`adapt bench`"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import click

_NOT_BENCHES = {"measure", "step"}


@click.command()
@click.argument("name", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the rows to this JSON file.")
def bench(name: str | None, out: Path | None) -> None:
    """Measure NAME; without it, list what can be measured.

    Two ways to do the same are timed side by side, in fresh processes with two threads, at random weights of real
    shapes. What takes minutes is timed over a few steps and scaled; such figures are marked by ~.
    """
    from adapt import bench as package
    from adapt.cli.quiet import quiet_libraries
    from adapt.errors import AdaptError, nearest

    names = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name not in _NOT_BENCHES]
    if name is None:
        for each in names:
            click.echo(f"{each:8} {(importlib.import_module(f'adapt.bench.{each}').__doc__ or '').splitlines()[0]}")
        return
    if name not in names:
        raise AdaptError(f"unknown measurement {name!r}; {nearest(name, names)}")
    with quiet_libraries():
        rows = []
        measurement = importlib.import_module(f"adapt.bench.{name}")
        for row in measurement.rows(lambda text: click.echo(f"  {text} ...", err=True)):
            rows.append(row)
            click.echo(_line(row))
    if out is not None:
        from adapt import plain
        from adapt.files import write_text

        write_text(out, plain.dump({"bench": name, "rows": rows}, indent=2) + "\n")


def _line(row: dict[str, Any]) -> str:
    from adapt.engine.memory import readable_bytes

    case = row.get("case") or f"{row['classes']:>6} classes"
    if "text" in row:
        return f"{case}: {row['text']}"
    budget = "" if row.get("budget_bytes") is None else f" inside {readable_bytes(row['budget_bytes'])}"
    places = 2 if row["plain_seconds"] >= 1 else 3
    seconds = (
        f"{'~' if row['plain_scaled'] else ''}{row['plain_seconds']:.{places}f} s -> {row['fast_seconds']:.{places}f} s"
    )
    peak = readable_bytes(row["fast_peak_bytes"])
    return f"{case}{budget}: {seconds}, {row['ratio']:.1f} x, peak {peak}"


COMMANDS = {"bench": bench}
