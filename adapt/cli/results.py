"""`adapt table` and `adapt report`: results side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import click

from adapt.cli import options as common
from adapt.cli.options import Option, command
from adapt.common.errors import AdaptError
from adapt.common.shown import readable_bytes


@command("table")
def table(
    results: tuple[Path, ...],
    *,
    form: Annotated[
        Literal["text", "markdown", "csv", "numbers", "latex"],
        Option(
            "Format of the table; numbers is a CSV with means and standard deviations in columns of their own.",
            "--format",
        ),
    ] = "text",
    published: Annotated[bool, Option("Show the papers' figures as well.", "--published/--no-published")] = True,
    against: Annotated[
        str | None,
        "Also show differences from this row, with paired tests over seeds and data sets; a CSV has these alone.",
    ] = None,
    plots: Annotated[
        tuple[Path, ...],
        Option(
            "Also draw the results to FILE, a .png, .svg or .pdf (repeatable): accuracy over shots with bands of one "
            "standard deviation, or base over new classes.",
            "--plot",
            kind=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
        ),
    ] = (),
) -> None:
    """Show a table that compares RESULTS: JSON files of one protocol, folders that hold them, or run directories.

    A folder may also hold a folder with such a file for each data set.

    \b
    Examples:
      adapt table runs/coop-b2n runs/maple-b2n --format markdown
      adapt table runs/first runs/second
      adapt table runs/coop runs/maple --format latex --against coop
      adapt table runs/coop runs/maple --plot curves.png --plot curves.svg

    Few-shot and base-to-new results on several data sets get a column for each data set, and one for the average.

    Run directories that differ only in their seed share a row.

    A letter gives the source of a published figure: F an official file, A the paper's abstract, S a secondary source, R
    recalled from memory.
    """
    from adapt.common.disk import check_writable
    from adapt.protocols import plain_runs, tables

    runs = [path for path in results if plain_runs.is_run(path)]
    if runs and len(runs) < len(results):
        other = next(path for path in results if path not in runs)
        tables.read_results(other)  # raises if it is no result at all
        raise AdaptError(
            f"{runs[0]} is a run directory, but {other} is the result of a protocol: give only run directories or only "
            "results of a protocol, or use `adapt report`"
        )
    form_of = tables.FORMATS[form]
    if runs and (against is not None or plots):
        raise AdaptError("--against and --plot are for results of protocols, which have several seeds: leave them out")
    if plots:
        common.check_matplotlib("--plot")
    for path in plots:
        if path.suffix not in (".png", ".svg", ".pdf"):
            raise AdaptError(f"--plot {path} has the suffix {path.suffix or 'none'!r}; expected .png, .svg or .pdf")
        check_writable(path)
    if runs:
        click.echo(form_of(plain_runs.plain_table([plain_runs.read_run(path) for path in runs])))
        return
    read = [each for path in results for each in tables.read_results(path)]
    compared = "" if against is None else form_of(tables.differences(read, against))
    several = tables.several_sets(read)
    shown = form_of(tables.table_of_sets(read) if several else tables.table(read, published))
    for path in plots:
        from adapt.protocols.plots import draw

        draw(read, path)
    if compared and form in ("csv", "numbers"):  # of which one file has one header
        click.echo(compared)
        return
    click.echo(shown)
    if compared:
        click.echo(f"\n{compared}")


@command("report")
def report(runs: tuple[Path, ...], *, out: Annotated[Path, "HTML file to write."] = Path("report.html")) -> None:
    """Write an HTML report on RUNS, which are run directories or output folders of protocols.

    \b
    Example:
      adapt report runs/coop-b2n runs/maple-b2n --out report.html

    The page is a single self-contained file with tables, curves, confusion matrices, and the wrong predictions that the
    models made with the highest confidence.
    """
    common.check_matplotlib("a report")
    from adapt.common.disk import check_writable, write_text
    from adapt.protocols.report import report as page

    check_writable(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise AdaptError(f"--out is {out}; expected a file name that ends in .html")
    write_text(out, page(runs))
    click.echo(f"written to {out} ({readable_bytes(out.stat().st_size)})")
