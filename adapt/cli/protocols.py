"""`adapt base-to-new`"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click


@click.command("base-to-new")
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder for the runs and the figures.")
@click.option("--seeds", default="1,2,3", show_default=True, help="One run for each.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As for `adapt train`.")
def base_to_new(recipe: str, out: Path, seeds: str, overrides: tuple[str, ...]) -> None:
    """Train RECIPE on the first half of the classes and measure it on both halves, over several seeds.

    \b
    Examples:
      adapt base-to-new maple/emoji --out runs/maple-b2n
      adapt base-to-new maple/eurosat --out runs/eurosat-b2n \\
            --set data.source=eurosat/split_zhou_EuroSAT.json --set data.root=eurosat/2750

    OUT gets a run directory for each seed, base_to_new.json and base_to_new.csv. Runs that are there are not repeated,
    and an interrupted one goes on: give the same command again.
    """
    from adapt.cli.quiet import quiet_libraries
    from adapt.errors import AdaptError
    from adapt.recipe import find_recipe, read_recipe

    chosen = read_recipe(find_recipe(recipe), overrides)
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise AdaptError(f"--seeds is {seeds!r}; expected numbers such as 1,2,3") from None
    with quiet_libraries():
        from adapt.evaluation.base_to_new import base_to_new as measure

        try:
            results = measure(chosen, numbers, out, lambda line: click.echo(f"  {line}", err=True))
        except KeyboardInterrupt:
            again = ["adapt", "base-to-new", recipe, f"--out={out}", f"--seeds={seeds}"]
            again += [f"--set={each}" for each in overrides]
            click.echo(f"stopped; go on with: {shlex.join(again)}", err=True)
            raise SystemExit(130) from None
    click.echo(_table(chosen.method["name"], results))


def _table(name: str, results: dict[str, Any]) -> str:
    mean, spread = ({key: 100 * value for key, value in results[kind].items()} for kind in ("mean", "std"))
    lines = [f"{'':12} {'base':>12} {'new':>12} {'harmonic':>12}"]
    zero_shot = (mean[f"zero_shot_{key}"] for key in ("base", "new", "harmonic"))
    lines.append(f"{'zero-shot':12} " + " ".join(f"{f'{value:.1f}':>12}" for value in zero_shot))
    cells = (f"{mean[key]:.1f} ± {spread[key]:.1f}" for key in ("base", "new", "harmonic"))
    lines.append(f"{name:12} " + " ".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


COMMANDS = {"base-to-new": base_to_new}
