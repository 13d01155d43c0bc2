"""`adapt verify`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapt.cli import options as common
from adapt.errors import AdaptError, nearest

if TYPE_CHECKING:
    from adapt.protocols.reproduction import RecipeRuns, Reproduction
    from adapt.recipe import Recipe

_DIFFERENT = 1  # the exit code where a figure is not reproduced


@click.command()
@click.argument("backbone")
@click.option("--data", required=True, metavar="NAME", help="A published set; see `adapt data list`.")
@click.option("--root", required=True, help="The folder of the published sets' folders.")
@click.option(
    "--as", "called", metavar="NAME", help="What papers call BACKBONE, such as ViT-B/16.  [default: by its name]"
)
@click.option("--recipe", help="Train this few-shot recipe too, such as coop.")
@click.option("--shots", type=click.IntRange(min=1), default=16, show_default=True, help="Training images a class.")
@click.option("--seeds", default="1,2,3", show_default=True, help="One run for each; the mean is compared.")
@click.option("--out", type=click.Path(path_type=Path), help="A folder for the recipe's runs.")
@common.overrides
@common.device
@common.cache
@common.as_json
def verify(
    backbone: str,
    data: str,
    root: str,
    called: str | None,
    recipe: str | None,
    shots: int,
    seeds: str,
    out: Path | None,
    overrides: tuple[str, ...],
    device: str,
    cache: bool,
    as_json: bool,
) -> None:
    """Compare what BACKBONE gives on a published data set with the published accuracy, and say what differs.

    \b
    Examples:
      adapt verify open_clip:RN50-quickgelu/openai --data eurosat --root data
      adapt verify open_clip:RN50-quickgelu/openai --data caltech101 --root data --recipe coop --out runs/verify

    Zero-shot accuracy, and with --recipe the mean of its runs over the seeds. Beside the figures stand what is
    otherwise here: weights, resizing, statistics, class names, numbers of images, seeds, keys set by hand, and the
    recipe's own departures from its paper. `reproduced` means within 0.2 points of zero-shot figures and 1 point of
    trained ones that were read in an official file [F]; those of secondary sources [S] are shown, and decide nothing.
    The exit code is 1 where a figure is not reproduced. A recipe's runs are kept in OUT, and not repeated.
    """
    from adapt import plain
    from adapt.cli.quiet import quiet_libraries
    from adapt.data.emoji import bundled
    from adapt.data.readers import load, published
    from adapt.protocols import papers

    entry = published.find(data)
    if entry is None:
        raise AdaptError(f"--data {data} is no published set; {nearest(data, published.sets(), bundled.LISTED_BY)}")
    if called is not None and called not in papers.backbones():
        raise AdaptError(f"--as {called} is no published backbone; {nearest(called, papers.backbones())}")
    split, runs = load(entry.name, root), None
    if recipe is not None:
        given = {"data": entry.name, "root": root, "backbone": backbone, "device": device}
        runs = _runs(recipe, common.read(recipe, overrides, given, "few_shot"), shots, seeds, out, overrides)
    elif out is not None or overrides:
        raise AdaptError("--out and --set are of a recipe's runs: add --recipe, or leave them out")
    with quiet_libraries():
        from adapt.backbones.load import load_backbone
        from adapt.protocols.reproduction import reproduce

        loaded, name = load_backbone(backbone, device), called or papers.published_backbone(backbone)
        found = reproduce(loaded, split, entry, root, name, runs, cache=cache, progress=_say)
    click.echo(plain.dump(found.to_dict(), indent=2) if as_json else _as_text(found))
    if found.verdict == "not reproduced":
        sys.exit(_DIFFERENT)


def _say(line: str) -> None:
    click.echo(f"  {line}", err=True)


def _runs(
    name: str, recipe: Recipe, shots: int, seeds: str, out: Path | None, overrides: tuple[str, ...]
) -> RecipeRuns:
    from adapt.protocols.reproduction import RecipeRuns
    from adapt.recipe.file import read_file
    from adapt.recipe.shipped import find_recipe

    if out is None:
        raise AdaptError(f"--recipe {name} is trained for each seed: say where, by --out")
    located = find_recipe(name, "few_shot")
    departures = read_file(located.path, located.name).under("Departures")
    return RecipeRuns(recipe, located.name, shots, tuple(common.numbers("seeds", seeds)), out, departures, overrides)


def _as_text(found: Reproduction) -> str:
    """What was measured, what is published, what differs, and the verdict last."""
    from adapt.protocols.papers import backbones

    lines = [f"{found.data}, {found.backbone}, accuracy in %", _table(found)]
    for each in found.compared:
        templates = f", with {_templates(each.templates)}" if each.templates else ""
        lines.append(f"{each.method}: {each.source or 'a secondary source'}{templates}")
    if found.published_backbone is None:
        lines.append(f"there are no figures of this backbone; --as compares with one of {', '.join(backbones())}")
    lines += [
        f"differs: {each.what} {each.here}; published {each.published}" for each in found.conditions if not each.same
    ]
    lines.append(f"the same: {', '.join(each.what for each in found.conditions if each.same)}")
    if found.departures:
        lines.append(f"departures of the recipe: {found.departures}")
    lines.append(f"read: weights, fingerprint {found.fingerprint}")
    lines += [f"read: {name}, SHA-256 {digest[:16]}" for name, digest in found.lists.items()]
    versions = ", ".join(f"{name} {version}" for name, version in found.environment["versions"].items())
    lines.append(f"with: {versions}; {found.environment['precision']} on {found.environment['device']}")
    return "\n".join([*lines, found.verdict])


def _table(found: Reproduction) -> str:
    from adapt.protocols.tables import as_text

    cells = [["", "here", "published", "apart", "allowed", ""]]
    for each in found.compared:
        figures = (f"{each.here:.2f}", f"{each.published:.2f}", f"{each.apart:+.2f}", f"{each.tolerance:g}")
        cells.append([f"{each.method} [{each.origin}]", *figures, "within" if each.reproduced else "outside"])
    beside = {each.method for each in found.compared}
    cells += [[title, f"{value:.2f}", *[""] * 4] for title, value in found.measured.items() if title not in beside]
    return as_text(cells)


def _templates(templates: tuple[str, ...]) -> str:
    return f"{templates[0]!r}" + (f" and {len(templates) - 1} more templates" if len(templates) > 1 else "")


COMMANDS = {"verify": verify}
