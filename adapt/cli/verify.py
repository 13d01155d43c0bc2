"""`adapt verify`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from adapt.cli import options as common
from adapt.cli.options import Option, command
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError, nearest

if TYPE_CHECKING:
    from adapt.protocols.reproduction import Reproduction

_DIFFERENT = 1  # the exit code where a figure is not reproduced


@command()
def verify(
    backbone: str,
    *,
    data: Annotated[str, Option("Published data set (see `adapt data list`).", metavar="NAME")],
    root: Annotated[str, "Folder that holds the published sets."],
    called: Annotated[
        str | None,
        Option("The papers' name for BACKBONE, such as ViT-B/16.  [default: by its name]", "--as", metavar="NAME"),
    ] = None,
    recipe: Annotated[str | None, "Few-shot recipe to train and compare too, such as coop."] = None,
    shots: Annotated[int, Option("Training images per class.", min=1)] = 16,
    seeds: Annotated[str, "Seeds, a run for each; the mean is compared."] = "1,2,3",
    out: Annotated[Path | None, "Folder for the recipe's runs."] = None,
    overrides: common.Overrides = (),
    device: common.RunsOn = AUTO,
    cache: common.CacheFeatures = True,
    as_json: common.AsJson = False,
) -> None:
    """Compare the accuracy of BACKBONE on a published data set with the published accuracy, and list differences.

    \b
    Examples:
      adapt verify open_clip:RN50-quickgelu/openai --data eurosat --root data
      adapt verify open_clip:RN50-quickgelu/openai --data caltech101 --root data --recipe coop --out runs/verify

    The command compares zero-shot accuracy and, with --recipe, the recipe's mean accuracy over the seeds. It also lists
    differences from the published setting: weights, resizing, normalisation statistics, class names, numbers of images,
    seeds, settings changed with --set, and the recipe's documented departures from its paper.

    `reproduced` means that the measured accuracy is within 0.2 points of a zero-shot figure, or 1 point of a trained
    figure, from an official file [F]. Figures from secondary sources [S] are shown but do not affect the verdict. The
    exit code is 1 if a figure is not reproduced. The recipe's runs are kept in OUT and not repeated.
    """
    from adapt.common import plain
    from adapt.data.emoji import bundled
    from adapt.data.readers import load, published
    from adapt.protocols import papers

    entry = published.find(data)
    if entry is None:
        raise AdaptError(
            f"--data {data} is not a published data set; {nearest(data, published.sets(), bundled.LISTED_BY)}"
        )
    if called is not None and called not in papers.backbones():
        raise AdaptError(
            f"--as {called} is not the name of a published backbone; {nearest(called, papers.backbones())}"
        )
    split, runs = load(entry.name, root), None
    if recipe is not None:
        from adapt.protocols.reproduction import RecipeRuns
        from adapt.recipe.file import read_file
        from adapt.recipe.shipped import find_recipe

        given: common.Options = {"data": entry.name, "root": root, "backbone": backbone, "device": device}
        chosen, located = common.read(recipe, overrides, given, "few_shot"), find_recipe(recipe, "few_shot")
        if out is None:
            raise AdaptError(f"--recipe {recipe} needs a folder for its training runs: give a folder with --out")
        departures = read_file(located.path, located.name).under("Departures")
        runs_seeds = tuple(common.numbers("seeds", seeds))
        runs = RecipeRuns(chosen, located.name, shots, runs_seeds, out, departures, overrides)
    elif out is not None or overrides:
        raise AdaptError("--out and --set apply only to a recipe's runs: add --recipe, or leave out --out and --set")
    with common.quiet_libraries():
        from adapt.backbones.load import load_backbone
        from adapt.protocols.reproduction import reproduce

        loaded, name = load_backbone(backbone, device), called or papers.published_backbone(backbone)
        reproduction = reproduce(
            loaded, split, entry, root, name, runs, cache=cache, progress=lambda line: click.echo(f"  {line}", err=True)
        )
    click.echo(plain.dump(reproduction.to_dict(), indent=2) if as_json else _as_text(reproduction))
    if reproduction.verdict == "not reproduced":
        sys.exit(_DIFFERENT)


def _as_text(reproduction: Reproduction) -> str:
    """Return the text of a comparison: measured and published figures, the conditions that differ, and the verdict."""
    from adapt.protocols.papers import backbones
    from adapt.protocols.table_formats import as_text

    cells = [["", "here", "published", "apart", "allowed", ""]]
    for each in reproduction.compared:
        figures = (f"{each.here:.2f}", f"{each.published:.2f}", f"{each.apart:+.2f}", f"{each.tolerance:g}")
        cells.append([f"{each.method} [{each.origin}]", *figures, "within" if each.reproduced else "outside"])
    beside = {each.method for each in reproduction.compared}
    cells += [
        [title, f"{value:.2f}", *[""] * 4] for title, value in reproduction.measured.items() if title not in beside
    ]
    lines = [f"{reproduction.data}, {reproduction.backbone}, accuracy in %", as_text(cells)]
    for each in reproduction.compared:
        more = f" and {len(each.templates) - 1} more templates" if len(each.templates) > 1 else ""
        templates = f", with {each.templates[0]!r}{more}" if each.templates else ""
        lines.append(f"{each.method}: {each.source or 'a secondary source'}{templates}")
    if reproduction.published_backbone is None:
        lines.append(
            f"there are no published figures for this backbone; --as compares with one of {', '.join(backbones())}"
        )
    lines += [
        f"differs: {each.what} {each.here}; published {each.published}"
        for each in reproduction.conditions
        if not each.same
    ]
    lines.append(f"the same: {', '.join(each.what for each in reproduction.conditions if each.same)}")
    if reproduction.departures:
        lines.append(f"departures of the recipe: {reproduction.departures}")
    lines.append(f"read: weights, fingerprint {reproduction.fingerprint}")
    lines += [f"read: {name}, SHA-256 {digest[:16]}" for name, digest in reproduction.lists.items()]
    versions = ", ".join(f"{name} {version}" for name, version in reproduction.environment["versions"].items())
    lines.append(f"with: {versions}; {reproduction.environment['precision']} on {reproduction.environment['device']}")
    return "\n".join([*lines, reproduction.verdict])
