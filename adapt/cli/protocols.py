"""The commands of the papers' protocols, from `adapt few-shot` to `adapt phases`, and `adapt sweep`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import click

from adapt.cli import options as common
from adapt.cli.many_runs import engines, run
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapt.protocols.protocol import Protocol
    from adapt.protocols.run_protocol import Results
    from adapt.protocols.runs import Target


class _Options(common.Options):
    """The command-line options of a protocol: changes to the recipe, the output folder, and how runs are executed."""

    out: Path
    jobs: int
    engine: Literal["local", "ray", "slurm"]
    address: str | None
    sbatch: tuple[str, ...]
    track: tuple[str, ...]


_several_sets = click.option(
    "--data",
    "sets",
    multiple=True,
    metavar="DATA",
    help=f"Data to train on: {common.SOURCES}; repeatable, or eleven for the papers' eleven data sets.",
)
_recipe = common.together(
    click.argument("recipe"),
    click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the runs and the results."),
)
_more = common.together(
    common.recipe_root,
    common.recipe_device,
    common.recipe_backbone,
    click.option("--seeds", default="1,2,3", show_default=True, help="Seeds, a run for each."),
    common.overrides,
    engines,
)
_common = common.together(_recipe, common.recipe_data, _more)
_of_sets = common.together(_recipe, _several_sets, _more)
_OWNED = {"seed": "give --seeds", "data.classes": "leave out this --set"}
_to = click.option(
    "--to", "targets", multiple=True, metavar="DATA", help="Data to measure on (repeatable).  [default: the papers']"
)


@click.command("few-shot")
@_of_sets
@click.option(
    "--shots",
    "counts",
    default="1,2,4,8,16",
    show_default=True,
    help="Training images per class, runs for each number.",
)
def few_shot(
    recipe: str,
    counts: str,
    seeds: str,
    overrides: tuple[str, ...],
    sets: tuple[str, ...],
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
    from adapt.protocols import protocol as protocols

    _check_owned(overrides, _OWNED | {"data.shots": "give --shots"})

    def of_set(own: _Options) -> Protocol:
        chosen = common.read(recipe, overrides, own, "few_shot")
        return protocols.few_shot(chosen, common.numbers("shots", counts), common.numbers("seeds", seeds))

    _on_each(sets, options, of_set)


@click.command("base-to-new")
@_of_sets
@common.shots
def base_to_new(
    recipe: str, seeds: str, overrides: tuple[str, ...], sets: tuple[str, ...], **options: Unpack[_Options]
) -> None:
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
    from adapt.protocols import protocol as protocols

    _check_owned(overrides, _OWNED)

    def of_set(own: _Options) -> Protocol:
        return protocols.base_to_new(common.read(recipe, overrides, own, "base_to_new"), common.numbers("seeds", seeds))

    _on_each(sets, options, of_set)


@click.command("cross-dataset")
@_common
@common.shots
@_to
def cross_dataset(
    recipe: str, seeds: str, overrides: tuple[str, ...], targets: tuple[str, ...], **options: Unpack[_Options]
) -> None:
    """Train RECIPE on one data set and measure accuracy on other data sets, with the class names of each data set.

    \b
    Examples:
      adapt cross-dataset maple --root data --out runs/maple-transfer
      adapt cross-dataset coop --data photos/ --to drawings --to sketches --out runs/mine

    Without --to, the model is tested on the papers' ten other data sets, under --root. OUT receives cross_dataset.json,
    cross_dataset.csv, and a run directory for each seed.
    """
    _transfer("cross_dataset", recipe, overrides, seeds, targets, options)


@click.command("domain-generalisation")
@_common
@common.shots
@_to
def domain_generalisation(
    recipe: str, seeds: str, overrides: tuple[str, ...], targets: tuple[str, ...], **options: Unpack[_Options]
) -> None:
    """Train RECIPE on one data set and measure accuracy on images of the same classes from other domains.

    \b
    Examples:
      adapt domain-generalisation maple --root data --out runs/maple-domains
      adapt domain-generalisation coop --data emoji --to emoji@fluent-3d --out runs/emoji-domains

    Without --to, the model is tested on ImageNetV2, -Sketch, -A and -R, under --root. OUT receives
    domain_generalisation.json, domain_generalisation.csv, and a run directory for each seed.
    """
    _transfer("domain_generalisation", recipe, overrides, seeds, targets, options)


@click.command("leave-one-out")
@_common
@common.shots
@click.option("--domains", help="Domains to leave out in turn, separated by commas.  [default: all of the data]")
def leave_one_out(
    recipe: str, seeds: str, overrides: tuple[str, ...], domains: str | None, **options: Unpack[_Options]
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

    _check_owned(overrides, _OWNED | {"data.leave_out": "give --domains"})
    chosen = common.read(recipe, overrides, options, "leave_one_out")
    left_out = chosen.data.load().domains if domains is None else [each.strip() for each in domains.split(",")]
    _run(protocols.leave_one_out(chosen, left_out, common.numbers("seeds", seeds)), options)


@click.command("phases")
@_common
@common.shots
@click.option("--parts", type=click.IntRange(min=2), help="Number of phases to divide the classes into.  [default: 2]")
@click.option("--then", "later", multiple=True, metavar="DATA", help="Data of the next phase (repeatable).")
def phases(
    recipe: str,
    seeds: str,
    overrides: tuple[str, ...],
    parts: int | None,
    later: tuple[str, ...],
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

    _check_owned(overrides, _OWNED | {"start": "leave out this --set"})
    if parts is not None and later:
        raise AdaptError(
            "--parts and --then cannot be combined: give --parts to divide the classes of one data set into phases, or "
            "--then to add other data"
        )
    chosen = common.read(recipe, overrides, options, "phases")
    count = parts or 2
    sections = [chosen.data.model_copy(update={"classes": f"{part}/{count}"}) for part in range(1, count + 1)]
    if later:
        root = chosen.data.root
        others = [{"source": each, "root": root if _needs_root(each) else None, "names": None} for each in later]
        sections = [chosen.data, *(chosen.data.model_copy(update=other) for other in others)]
    _run(protocols.phases(chosen, sections, common.numbers("seeds", seeds)), options)


@click.command("sweep")
@_common
@common.shots
@click.argument("settings", nargs=-1, metavar="[KEY=VALUES]...")
def sweep(
    recipe: str, seeds: str, overrides: tuple[str, ...], settings: tuple[str, ...], **options: Unpack[_Options]
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

    _check_owned(overrides, {"seed": _OWNED["seed"]})
    chosen = common.read(recipe, overrides, options, "sweep")
    _run(protocols.sweep(chosen, dict(map(_values, settings)), common.numbers("seeds", seeds)), options)


def _values(setting: str) -> tuple[str, list[object]]:
    """Parse KEY=VALUES, such as train.lr=0.002,0.02, into the key and the list of values."""
    from adapt.recipe.file import pair

    key, _, values = setting.partition("=")
    key, parsed = pair(f"{key}=[{values}]")
    if not values or not parsed:
        raise AdaptError(f"{setting!r} is not of the form KEY=VALUES, such as train.lr=0.002,0.02")
    return key, parsed


def _transfer(
    name: str, recipe: str, overrides: tuple[str, ...], seeds: str, targets: tuple[str, ...], options: _Options
) -> None:
    from adapt.data.readers import published
    from adapt.protocols import protocol as protocols

    _check_owned(overrides, {"seed": _OWNED["seed"]})
    root = options["root"]
    chosen = common.read(recipe, overrides, options | {"root": None}, name)
    if root is not None and _needs_root(chosen.data.source):  # the root may be meant only for the targets
        chosen = common.read(recipe, overrides, options, name)
    if not (targets or root) and published.find(chosen.data.source) is None:
        raise AdaptError(
            f"--to is missing, and the papers' default test data does not match {chosen.data.source!r}: name the data "
            "to test on, such as --to emoji@fluent-3d or --to FOLDER"
        )
    root = root or chosen.data.root
    names = targets or protocols.PAPERS_TARGETS[name]
    data = [_target(each, root) for each in names]
    _run(protocols.transfer(name, chosen, data, common.numbers("seeds", seeds)), options)


def _run(protocol: Protocol, options: _Options) -> Results:
    where = options["jobs"], options["engine"], options["address"], options["sbatch"]
    return run(protocol, options["out"], *where, options["track"])


def _on_each(sets: tuple[str, ...], options: _Options, protocol_of: Callable[[_Options], Protocol]) -> None:
    """Run a protocol on each data set in turn, in a folder of its own if there are several; then print their table.

    Raises AdaptError before any run if a recipe or a data set is wrong, or if two data sets have the same name.
    """
    from adapt.protocols.protocol import ELEVEN
    from adapt.protocols.runs import check

    sources = [name for each in sets for name in (ELEVEN if each == "eleven" else [each])]
    if len(sources) < 2:
        _run(protocol_of({**options, "data": sources[0] if sources else None}), options)
        return
    names = list(map(common.folder_name, sources))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise AdaptError(f"two data sets are called {twice!r}, and each needs a folder of its own in --out: rename one")
    root, out = options["root"], options["out"]
    planned = {
        name: protocol_of({**options, "data": source, "root": root if _needs_root(source) else None})
        for name, source in zip(names, sources, strict=True)
    }
    for protocol in planned.values():
        check(protocol.runs)
    results = []
    for name, protocol in planned.items():
        click.echo(name)
        results.append(_run(protocol, {**options, "out": out / name}))
    from adapt.protocols.table_formats import as_text
    from adapt.protocols.tables_of_sets import table_of_sets

    click.echo(f"\n{as_text(table_of_sets(results))}")


def _target(spec: str, root: str | None) -> Target:
    """Return the data set `spec` as data to test on; `root` is ignored if `spec` itself locates the images."""
    from adapt.protocols.papers import data_set
    from adapt.protocols.runs import Target
    from adapt.recipe import DataSection

    section = DataSection(source=spec, root=root if _needs_root(spec) else None, shots=None)
    template = section.load().template
    return Target(data_set(spec) or Path(spec).resolve().name, section.model_copy(update={"template": template}))


def _needs_root(spec: str) -> bool:
    """Return whether the data set `spec` takes --root: published data sets, torchvision's, .csv and .json files do."""
    from adapt.protocols.papers import data_set

    return data_set(spec) == spec or spec.startswith("torchvision:") or spec.endswith((".csv", ".json", ".json.gz"))


def _check_owned(overrides: tuple[str, ...], options: dict[str, str]) -> None:
    """Raise AdaptError if --set changes a key that the protocol itself sets; the message names the option to use."""
    for override in overrides:
        key = override.partition("=")[0]
        if key in options:
            raise AdaptError(f"--set {override} is not allowed: this protocol itself sets {key}; {options[key]}")


COMMANDS = {
    "few-shot": few_shot,
    "base-to-new": base_to_new,
    "cross-dataset": cross_dataset,
    "domain-generalisation": domain_generalisation,
    "leave-one-out": leave_one_out,
    "phases": phases,
    "sweep": sweep,
}
