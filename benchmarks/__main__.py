"""`python -m benchmarks NAME`: run the measurements that the docs quote."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import click

import benchmarks
from adapt.cli import quiet_libraries
from adapt.common import plain
from adapt.common.disk import write_text
from adapt.common.errors import nearest
from adapt.common.shown import readable_bytes
from benchmarks.measure import Row

_NOT_MEASUREMENTS = {
    "__main__", "anew", "drawings", "measure", "native_model", "needed", "ordinary_folders", "products", "step",
}  # fmt: skip


@click.command()
@click.argument("name", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the rows to this JSON file.")
def main(name: str | None, out: Path | None) -> None:
    """Measure NAME, or list what can be measured.

    Two ways to do the same are timed side by side, in fresh processes with two threads, with random weights of real
    shapes. What takes minutes is timed over a few steps and scaled; such figures are marked by ~. Accuracies are those
    of the bundled backbone on the bundled drawings.
    """
    names = [each.name for each in pkgutil.iter_modules(benchmarks.__path__) if each.name not in _NOT_MEASUREMENTS]
    if name is None:
        for each in names:
            title = (importlib.import_module(f"benchmarks.{each}").__doc__ or "").splitlines()[0]
            click.echo(f"{each:9} {title}")
        return
    if name not in names:
        raise click.UsageError(f"unknown measurement {name!r}; {nearest(name, names)}")
    rows = []
    with quiet_libraries():
        measurement = importlib.import_module(f"benchmarks.{name}")
        for row in measurement.rows(lambda text: click.echo(f"  {text} ...", err=True)):
            rows.append(row)
            click.echo(_line(row))
    if out is not None:
        write_text(out, plain.dump({"bench": name, "rows": rows}, indent=2) + "\n")


def _line(row: Row) -> str:
    case = row.get("case") or f"{row['classes']:>6} classes"
    if "text" in row:
        return f"{case}: {row['text']}"
    budget = "" if row.get("budget_bytes") is None else f" inside {readable_bytes(row['budget_bytes'])}"
    places = 2 if row["plain_seconds"] >= 1 else 3
    scaled = "~" if row["plain_scaled"] else ""
    seconds = f"{scaled}{row['plain_seconds']:.{places}f} s -> {row['fast_seconds']:.{places}f} s"
    peak = readable_bytes(row["fast_peak_bytes"])
    return f"{case}{budget}: {seconds}, {row['ratio']:.1f} x, peak {peak}"


if __name__ == "__main__":
    main()
