"""`adapt recommend`"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from adapt.cli import options as common
from adapt.cli.many_runs import track
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError

_SECONDS = {"s": 1, "m": 60, "h": 3600}


class _Time(click.ParamType):
    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a duration such as `90s`, `10m` or `1.5h` into seconds."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(value))
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is not a time such as 90s, 10m or 1h", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "TIME"


@click.command()
@click.argument("data")
@common.together(
    common.recipe_root,
    common.names,
    click.option("--shots", type=click.IntRange(min=1), help="Training images per class.  [default: all]"),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=1,
        show_default=True,
        help="Seed for picking shots, for the folds and for training.",
    ),
    common.recipe_device,
    common.recipe_backbone,
    common.overrides,
)
@click.option(
    "--folds", type=click.IntRange(min=2), help="Folds of the cross-validation.  [default: shots per class, at most 5]"
)
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Also compare the slower methods, whose steps pass images or texts through a tower.",
)
@click.option(
    "--budget", type=_Time(), help="Time in which to compare as many slower methods as fit, such as 90s, 10m or 1h."
)
@track
@common.run_out
@click.option("--resume", is_flag=True, help="Continue the interrupted comparison or training in --out.")
@click.option("--quiet", is_flag=True, help="Hide progress.")
def recommend(data: str, out: Path | None, resume: bool, device: str | None, quiet: bool, **options: Any) -> None:
    """Compare adaptation methods on DATA, estimate the accuracy of the best method, and train the best method.

    \b
    Examples:
      adapt recommend photos/
      adapt recommend emoji --shots 16
      adapt recommend eurosat --root data --shots 16 --budget 30m

    DATA is a folder, a .csv file or the name of a data set. Methods are compared by cross-validation on the training
    images; test images do not influence the choice. If several methods are equally good within the noise, lda_words is
    chosen if it is among these methods, otherwise the method that is cheapest to train. The chosen method is then
    trained on all training images and, if there are test images, measured on the test images.

    \b
    OUT receives the run (adapter.safetensors, recipe.yaml, metrics.json, ...), recommendation.json, methods.csv,
    report.html, and lists of what was found: few.csv, confused.csv, suspects.csv, duplicates.csv.
    """
    from adapt.cli.quiet import quiet_libraries

    if resume and out in (None, Path("none")):
        raise AdaptError("--resume needs the folder of the comparison: give --out FOLDER")
    named = out is not None
    out = common.run_folder(out, f"recommend-{common.folder_name(data)}")
    if not quiet:
        common.say_backbone(options["backbone"] or common.default_backbone(data), data)
        if out is not None:
            click.echo(f"run        {out}", err=True)
        click.echo("Reading the images, and comparing methods on the training images ...", err=True)
    with quiet_libraries():
        from adapt.choosing.recommend import recommend as run

        try:
            recommendation = run(data, out=out, resume=resume, device=device or AUTO, progress=not quiet, **options)
        except KeyboardInterrupt:
            more = "--resume" if named else f"--out={out} --resume"
            saved = f"; continue with the same command and {more}" if out and out.exists() else ""
            click.echo(f"stopped{saved}", err=True)
            raise SystemExit(130) from None
    click.echo(str(recommendation))
    if out is not None:
        click.echo(f"\nadapter    {out / 'adapter.safetensors'}")
    if out is not None and (out / "report.html").is_file():
        click.echo(f"report     {out / 'report.html'}")


COMMANDS = {"recommend": recommend}
