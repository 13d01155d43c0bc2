"""The commands of the papers' protocols, from `adapt few-shot` to `adapt sweep`, and of results side by side"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Unpack

import click

from adapt.cli import options as common
from adapt.cli.options import REQUIRED, Argument, Option, command
from adapt.common.disk import check_writable, write_text
from adapt.common.errors import AdaptError, check_installed
from adapt.common.shown import readable_bytes
from adapt.protocols.papers import data_set

if TYPE_CHECKING:
    from adapt.protocols.protocol import Protocol, Results
    from adapt.recipe import Recipe


class _Options(common.Options):
    """The command-line options of a protocol: changes to the recipe, the output folder, and how runs are executed."""

    seeds: Annotated[str, Option("Seeds, a run for each.", default="1,2,3")]
    overrides: common.Overrides
    out: Annotated[Path, Option("Folder for the runs and the results.", default=REQUIRED)]
    jobs: Annotated[int, Option("Runs at a time on a machine, which take its GPUs in turn.", min=1, default=1)]
    engine: Annotated[
        Literal["local", "ray", "slurm"],
        Option("Engine of the runs: processes of this machine, Ray, or jobs of SLURM.", default="local"),
    ]
    address: Annotated[str | None, "Address of a Ray cluster.  [default: Ray starts one here]"]
    sbatch: Annotated[
        tuple[str, ...],
        Option(
            "Option of sbatch for the jobs of SLURM, such as partition=gpu, gpus=1 or time=2:00:00 (repeatable).",
            metavar="KEY=VALUE",
        ),
    ]
    track: common.TrackedBy


_Sets = Annotated[
    tuple[str, ...],
    Option(
        f"Data to train on: {common.SOURCES}; repeatable, or eleven for the papers' eleven data sets.",
        "--data",
        metavar="DATA",
    ),
]
_Targets = Annotated[
    tuple[str, ...], Option("Data to measure on (repeatable).  [default: the papers']", "--to", metavar="DATA")
]
_CLASSES = {"data.classes": "leave out this --set"}


@command("few-shot", without=("data", "shots", "seed"))
def few_shot(
    recipe: str,
    *,
    sets: _Sets = (),
    counts: Annotated[str, Option("Training images per class, runs for each number.", "--shots")] = "1,2,4,8,16",
    **options: Unpack[_Options],
) -> None:
    """Train RECIPE with increasing numbers of training images per class, and with several seeds for each number.

    \b
    Example:
      adapt few-shot coop --data emoji --out runs/coop-curve

    OUT receives few_shot.json, few_shot.csv, and a run directory for each number of shots and each seed; with several
    data sets, a folder with these for each. After an interruption, repeat the command: finished runs are skipped, and
    an interrupted run continues.
    """
    _on_each("few_shot", recipe, sets, options, counts)


@command("few-normal", without=("data", "shots", "seed"))
def few_normal(
    recipe: str,
    *,
    sets: Annotated[
        tuple[str, ...],
        Option(
            "Images of an object with and without defects, and masks; a folder of MVTec AD or VisA stands for all its "
            "objects (repeatable).",
            "--data",
            metavar="DATA",
        ),
    ] = (),
    counts: Annotated[str, Option("Normal training images, runs for each number.", "--shots")] = "1,2,4,8,16",
    **options: Unpack[_Options],
) -> None:
    """Train RECIPE on a few normal images of each object, and measure how well defects are found, and where.

    \b
    Examples:
      adapt few-normal patch_memory --data emoji-product --shots 1,4 --out runs/product
      adapt few-normal patch_memory --data defects:MVTec/ --out runs/mvtec
      adapt few-normal patch_memory --data defects:VisA/ --out runs/visa

    The figures are the area under the ROC curve and the F1-max of images, the area of pixels, and the overlap of
    regions (PRO). F1-max has its threshold from the test images, as in papers, and is not the quality of a decision.
    OUT receives few_normal.json, few_normal.csv, and a run directory for each number of images and each seed, in a
    folder for each object. After an interruption, repeat the command: finished runs are skipped.
    """
    from adapt.data.readers.defect_folder import objects_in

    _on_each("few_normal", recipe, [each for given in sets for each in objects_in(given)], options, counts)


@command("base-to-new", without=("data", "seed"))
def base_to_new(recipe: str, *, sets: _Sets = (), **options: Unpack[_Options]) -> None:
    """Train RECIPE on the first half of the classes and measure accuracy on each half, with several seeds.

    \b
    Examples:
      adapt base-to-new maple --data emoji --out runs/maple-b2n
      adapt base-to-new maple --data eurosat --root data --out runs/eurosat-b2n
      adapt base-to-new maple --data eleven --root data --out runs/eleven-b2n

    OUT receives base_to_new.json, base_to_new.csv, and a run directory for each seed; with several data sets, a folder
    with these for each. After an interruption, repeat the command: finished runs are skipped, and an interrupted run
    continues.
    """
    _on_each("base_to_new", recipe, sets, options)


@command("cross-dataset", without=("seed",))
def cross_dataset(recipe: str, *, targets: _Targets = (), **options: Unpack[_Options]) -> None:
    """Train RECIPE on one data set and measure accuracy on other data sets, with the class names of each data set.

    \b
    Examples:
      adapt cross-dataset maple --root data --out runs/maple-transfer
      adapt cross-dataset coop --data photos/ --to drawings --to sketches --out runs/mine

    Without --to, the model is tested on the papers' ten other data sets, under --root. OUT receives cross_dataset.json,
    cross_dataset.csv, and a run directory for each seed.
    """
    _transfer("cross_dataset", recipe, targets, options)


@command("domain-generalisation", without=("seed",))
def domain_generalisation(recipe: str, *, targets: _Targets = (), **options: Unpack[_Options]) -> None:
    """Train RECIPE on one data set and measure accuracy on images of the same classes from other domains.

    \b
    Examples:
      adapt domain-generalisation maple --root data --out runs/maple-domains
      adapt domain-generalisation coop --data emoji --to emoji@fluent-3d --out runs/emoji-domains

    Without --to, the model is tested on ImageNetV2, -Sketch, -A and -R, under --root. OUT receives
    domain_generalisation.json, domain_generalisation.csv, and a run directory for each seed.
    """
    _transfer("domain_generalisation", recipe, targets, options)


@command("leave-one-out", without=("seed",))
def leave_one_out(
    recipe: str,
    *,
    domains: Annotated[
        str | None, "Domains to leave out in turn, separated by commas.  [default: all of the data]"
    ] = None,
    **options: Unpack[_Options],
) -> None:
    """Train RECIPE on all domains of a data set except one and test on the excluded domain, for each domain in turn.

    \b
    Examples:
      adapt leave-one-out vl2v_sd --data emoji --out runs/styles
      adapt leave-one-out lora --data domains:PACS/ --out runs/pacs

    A .csv file names the domains in the column "domain". With domains:FOLDER, each folder in FOLDER is a domain and
    contains a folder per class. OUT receives leave_one_out.json, leave_one_out.csv, and a run directory for each domain
    and seed.
    """
    from adapt.protocols import protocol as protocols

    chosen = _read(recipe, options, "leave_one_out", _CLASSES | {"data.leave_out": "give --domains"})
    left_out = chosen.data.load().domains if domains is None else [each.strip() for each in domains.split(",")]
    run(protocols.leave_one_out(chosen, left_out, _seeds(options)), options)


@command(without=("seed",))
def phases(
    recipe: str,
    *,
    parts: Annotated[int | None, Option("Number of phases to divide the classes into.  [default: 2]", min=2)] = None,
    later: Annotated[tuple[str, ...], Option("Data of the next phase (repeatable).", "--then", metavar="DATA")] = (),
    **options: Unpack[_Options],
) -> None:
    """Train RECIPE on data that arrives in phases, and measure how much accuracy on earlier phases is lost.

    \b
    Examples:
      adapt phases modx --data emoji --parts 3 --out runs/phases
      adapt phases modx --data 2024.csv --then 2025.csv --then 2026.csv --out runs/years

    Each phase starts from the adapter of the previous phase. The figure "1 after 2" is the accuracy on the images of
    phase 1, among the class names of phase 1, after training on phase 2. OUT receives phases.json, phases.csv, and a
    run directory for each phase and seed.
    """
    from adapt.protocols import protocol as protocols

    chosen = _read(recipe, options, "phases", _CLASSES | {"start": "leave out this --set"})
    if parts is not None and later:
        raise AdaptError(
            "--parts and --then cannot be combined: give --parts to divide the classes of one data set into phases, or "
            "--then to add other data"
        )
    count = parts or 2
    sections = [chosen.data.model_copy(update={"classes": f"{part}/{count}"}) for part in range(1, count + 1)]
    if later:
        root = chosen.data.root
        others = [{"source": each, "root": root if _needs_root(each) else None, "names": None} for each in later]
        sections = [chosen.data, *(chosen.data.model_copy(update=other) for other in others)]
    run(protocols.phases(chosen, sections, _seeds(options)), options)


@command(without=("seed",))
def sweep(
    recipe: str, settings: Annotated[tuple[str, ...], Argument("[KEY=VALUES]...")] = (), **options: Unpack[_Options]
) -> None:
    """Train RECIPE with every combination of the given values for its settings, with several seeds per combination.

    \b
    Examples:
      adapt sweep coop --data emoji --out runs/seeds
      adapt sweep coop train.lr=0.002,0.02 train.epochs=5,30 --data emoji --seeds 1,2 --out runs/rates

    If the data has validation images, the table also shows the validation accuracy. Choose settings by this accuracy.
    OUT receives sweep.json, sweep.csv, and a run directory for each combination and seed.
    """
    from adapt.protocols import protocol as protocols
    from adapt.recipe.file import pair

    chosen, tried = _read(recipe, options, "sweep", {}), {}
    for setting in settings:
        key, _, values = setting.partition("=")
        key, parsed = pair(f"{key}=[{values}]")
        if not values or not parsed:
            raise AdaptError(f"{setting!r} is not of the form KEY=VALUES, such as train.lr=0.002,0.02")
        tried[key] = parsed
    run(protocols.sweep(chosen, tried, _seeds(options)), options)


def _transfer(name: str, recipe: str, targets: tuple[str, ...], options: _Options) -> None:
    from adapt.data.readers import published
    from adapt.protocols import protocol as protocols
    from adapt.protocols.runs import Target
    from adapt.recipe import DataSection

    root = options["root"]
    chosen = _read(recipe, {**options, "root": None}, name, {})
    if root is not None and _needs_root(chosen.data.source):  # the root may be meant only for the targets
        chosen = _read(recipe, options, name, {})
    if not (targets or root) and published.find(chosen.data.source) is None:
        raise AdaptError(
            f"--to is missing, and the papers' default test data does not match {chosen.data.source!r}: name the data "
            "to test on, such as --to emoji@fluent-3d or --to FOLDER"
        )
    root = root or chosen.data.root
    data = []
    for spec in targets or protocols.PAPERS_TARGETS[name]:
        section = DataSection(source=spec, root=root if _needs_root(spec) else None, shots=None)
        section = section.model_copy(update={"template": section.load().template})
        data.append(Target(data_set(spec) or Path(spec).resolve().name, section))
    run(protocols.transfer(name, chosen, data, _seeds(options)), options)


def run(protocol: Protocol, options: _Options) -> Results:
    """Train and evaluate all runs of `protocol` in the folder --out; print each result, and finally a table."""
    engine, address = options["engine"], options["address"]
    if address is not None and engine != "ray":
        raise AdaptError("--address is the address of a Ray cluster and needs --engine ray: add --engine ray")
    if options["sbatch"] and engine != "slurm":
        raise AdaptError("--sbatch has options of SLURM's jobs and needs --engine slurm: add --engine slurm")
    of_jobs = {}
    for option in options["sbatch"]:
        key, equals, value = option.removeprefix("--").partition("=")
        if not (key and equals and value) or "\n" in option:
            raise AdaptError(f"--sbatch {option} is not an option; expected KEY=VALUE, such as partition=gpu")
        of_jobs[key.replace("-", "_")] = value
    from adapt.protocols.engines import Engine
    from adapt.protocols.protocol import run_protocol
    from adapt.protocols.tables import as_text, table

    try:
        where = Engine(engine, options["jobs"], address, tuple(of_jobs.items()))
        results = run_protocol(
            protocol, options["out"], where, lambda line: click.echo(f"  {line}", err=True), options["track"]
        )
    except KeyboardInterrupt:
        click.echo("stopped; continue with the same command", err=True)
        raise SystemExit(130) from None
    click.echo(as_text(table([results])))
    return results


def _on_each(name: str, recipe: str, sets: Sequence[str], options: _Options, counts: str | None = None) -> None:
    """Run the protocol `name` on each data set in turn, in folders of their own if several; then print their table.

    Raises AdaptError before any run if a recipe or a data set is wrong, or if two data sets have the same name.
    """
    from adapt.protocols import protocol as protocols
    from adapt.protocols.runs import check

    def planned_on(source: str | None, root: str | None) -> Protocol:
        owned = _CLASSES if counts is None else _CLASSES | {"data.shots": "give --shots"}
        chosen = _read(recipe, {**options, "data": source, "root": root}, name, owned)
        shots = [] if counts is None else [common.numbers("shots", counts)]
        made: Protocol = getattr(protocols, name)(chosen, *shots, _seeds(options))
        return made

    sources = [each for given in sets for each in (protocols.ELEVEN if given == "eleven" else [given])]
    root, out = options["root"], options["out"]
    if len(sources) < 2:
        run(planned_on(sources[0] if sources else None, root), options)
        return
    names = list(map(common.folder_name, sources))
    if twice := next((each for each in names if names.count(each) > 1), None):
        raise AdaptError(f"two data sets are called {twice!r}, and each needs a folder of its own in --out: rename one")
    planned = [planned_on(source, root if _needs_root(source) else None) for source in sources]
    for protocol in planned:
        check(protocol.runs)
    results = []
    for called, protocol in zip(names, planned, strict=True):
        click.echo(called)
        results.append(run(protocol, {**options, "out": out / called}))
    from adapt.protocols.tables import as_text, table_of_sets

    click.echo(f"\n{as_text(table_of_sets(results))}")


def _needs_root(spec: str) -> bool:
    """Return whether the data set `spec` takes --root: published data sets, torchvision's, .csv and .json files do."""
    return data_set(spec) == spec or spec.startswith("torchvision:") or spec.endswith((".csv", ".json", ".json.gz"))


def _read(recipe: str, options: _Options, protocol: str, owned: dict[str, str]) -> Recipe:
    """Return the recipe for a protocol, which itself sets the seed and what is `owned`, whose values say what to do."""
    owned = {"seed": "give --seeds"} | owned
    for override in options["overrides"]:
        key = override.partition("=")[0]
        if key in owned:
            raise AdaptError(f"--set {override} is not allowed: this protocol itself sets {key}; {owned[key]}")
    return common.read(recipe, options["overrides"], options, protocol)


def _seeds(options: _Options) -> list[int]:
    return common.numbers("seeds", options["seeds"])


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
        check_installed("--plot", "plot", "matplotlib")
    for path in plots:
        if path.suffix not in (".png", ".svg", ".pdf"):
            raise AdaptError(f"--plot {path} has the suffix {path.suffix or 'none'!r}; expected .png, .svg or .pdf")
        check_writable(path)
    if runs:
        click.echo(form_of(plain_runs.plain_table([plain_runs.read_run(path) for path in runs])))
        return
    read = [each for path in results for each in tables.read_results(path)]
    tables.note_other_images(read)
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
    check_installed("a report", "plot", "matplotlib")
    from adapt.protocols.report import report as page

    check_writable(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise AdaptError(f"--out is {out}; expected a file name that ends in .html")
    write_text(out, page(runs))
    click.echo(f"written to {out} ({readable_bytes(out.stat().st_size)})")
