"""`adapt recommend`"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypedDict, Unpack

import click

from adapt.cli import options as common
from adapt.cli.options import Option, command
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


class _Options(TypedDict):
    """The options that are handed on to `adapt.recommend`."""

    root: common.RecipeRoot
    names: common.ReadableNames
    shots: Annotated[int | None, Option("Training images per class.  [default: all]", min=1)]
    seed: Annotated[int, Option("Seed for picking shots, for the folds and for training.", min=0, default=1)]
    backbone: common.RecipeBackbone
    overrides: common.Overrides
    folds: Annotated[int | None, Option("Folds of the cross-validation.  [default: shots per class, at most 5]", min=2)]
    every: Annotated[
        bool,
        Option(
            "Also compare the slower methods, whose steps pass images or texts through a tower.", "--all", default=False
        ),
    ]
    budget: Annotated[
        float | None,
        Option("Time in which to compare as many slower methods as fit, such as 90s, 10m or 1h.", kind=_Time()),
    ]
    track: common.TrackedBy


@command()
def recommend(
    data: str,
    *,
    device: common.RecipeDevice = None,
    out: common.RunOut = None,
    resume: Annotated[bool, "Continue the interrupted comparison or training in --out."] = False,
    quiet: common.Quiet = False,
    **options: Unpack[_Options],
) -> None:
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
    if resume and out in (None, Path("none")):
        raise AdaptError("--resume needs the folder of the comparison: give --out FOLDER")
    named = out is not None
    out = common.run_folder(out, f"recommend-{common.folder_name(data)}")
    if not quiet:
        common.say_backbone(options["backbone"] or common.default_backbone(data), data)
        if out is not None:
            click.echo(f"run        {out}", err=True)
        click.echo("Reading the images, and comparing methods on the training images ...", err=True)
    with common.quiet_libraries():
        from adapt.choosing.recommendation import recommend as run

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
