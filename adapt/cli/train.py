"""`adapt train` and `adapt extend`"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import click

from adapt.cli import launching
from adapt.cli import options as common
from adapt.cli.options import Option, command
from adapt.common.devices import is_launched, is_main
from adapt.common.disk import check_outside
from adapt.common.errors import AdaptError
from adapt.common.shown import readable_bytes

if TYPE_CHECKING:
    from adapt.recipe import Recipe
    from adapt.training.result import Result


@command()
def train(
    recipe: str,
    *,
    overrides: common.Overrides = (),
    keep_flops: Annotated[
        float | None,
        Option(
            "Skip blocks until at most this share of operations is left (short for --set method.keep_flops=SHARE).",
            min=0,
            max=1,
            min_open=True,
            max_open=True,
        ),
    ] = None,
    out: common.RunOut = None,
    resume: Annotated[bool, "Continue the interrupted run in --out, exactly as if it had not stopped."] = False,
    track: common.TrackedBy = (),
    processes: Annotated[
        int, Option("Processes that train one run together, each on its own GPU with its share of every batch.", min=1)
    ] = 1,
    plot: Annotated[bool, "Also draw the curves to OUT/curves.png, and a search to OUT/search.png."] = False,
    dry_run: Annotated[bool, "Check recipe and data, tell steps and memory, and train nothing."] = False,
    quiet: common.Quiet = False,
    **options: Unpack[common.Options],
) -> None:
    """Train an adapter from RECIPE, which is a method, another name listed by `adapt recipes`, or a YAML file.

    \b
    Examples:
      adapt train quickstart --out runs/first
      adapt train coop --data photos/ --shots 8 --out runs/mine
      adapt train lora --data eurosat --root data --out runs/eurosat
      adapt train das --keep-flops 0.75 --out runs/light
      adapt train lora/chats --data chats.jsonl --backbone hf:HuggingFaceTB/SmolVLM-256M-Instruct --dry-run

    \b
    OUT receives adapter.safetensors (the trained parameters), metrics.json, log.jsonl (a line per
    training step), recipe.yaml (with all settings) and environment.json. With --out none, the
    results are only printed.
    """
    from adapt.recipe.shipped import find_recipe, short

    folder = common.run_folder(out, short(find_recipe(recipe).name))
    if ((resume or plot) and folder is None) or (resume and out is None):
        raise AdaptError("--resume and --plot need the run's directory: give --out FOLDER")
    if plot:
        common.check_matplotlib("--plot")
    if keep_flops is not None:
        overrides = _keeping(keep_flops, common.read(recipe, overrides, options), overrides)
    chosen = common.read(recipe, overrides, options)
    if dry_run:
        with common.quiet_libraries():
            from adapt.training.dry_run import planned

            click.echo("\n".join(planned(chosen)))
        return
    if out is None and folder is not None:
        check_outside(folder, chosen.data.source, f"the data folder {chosen.data.source}")
    if processes > 1 and not is_launched():
        raise SystemExit(launching.launched(processes, chosen.device))
    if not quiet and is_main():
        common.say_backbone(chosen.backbone, chosen.data.source)
        if folder is not None:
            click.echo(f"run        {folder}", err=True)
    with common.quiet_libraries():
        from adapt.training.run_recipe import run_recipe

        try:
            result = run_recipe(chosen, folder, resume, progress=not quiet, track=track)
        except KeyboardInterrupt:
            if is_main():
                from adapt.methods import plugins

                files = [f"--plugin={path}" for path in plugins()]
                changes = [f"--{name}={value}" for name, value in options.items() if value is not None]
                changes += [f"--set={each}" for each in overrides] + [f"--track={each}" for each in track]
                changes += [f"--processes={processes}"] * (processes > 1)
                again = shlex.join(["adapt", *files, "train", recipe, *changes, f"--out={folder}"])
                click.echo("stopped" if folder is None else f"stopped; continue with: {again} --resume", err=True)
            raise SystemExit(launching.STOPPED) from None
    if is_main():
        say(result, folder if plot else None)


def say(result: Result, plots: Path | None = None) -> None:
    """Print the result of a run and, if `plots` is not None, draw the run's curves to files in the folder `plots`."""
    click.echo(str(result))
    if plots is not None:
        result.draw(plots)
    if result.adapter is not None:
        click.echo(f"adapter    {result.adapter} ({readable_bytes(result.metrics['adapter_bytes'])})")


def _keeping(share: float, recipe: Recipe, overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Return `overrides` plus the settings for --keep-flops, which skips blocks until `share` of the FLOPs remains.

    Raises AdaptError if the recipe's method has no setting `keep_flops`, or if an override chooses the skipped blocks.
    """
    from adapt import methods

    if "keep_flops" not in methods.find(recipe.method["name"]).Config.model_fields:
        raise AdaptError(
            f"--keep-flops does not apply to this recipe, whose method {recipe.method['name']} has no setting "
            "keep_flops: leave out --keep-flops"
        )
    for each in overrides:
        if each.startswith(("method.skip=", "method.skipped=")):
            raise AdaptError(f"--keep-flops and --set {each} both choose the skipped blocks: leave out one of them")
    return (*overrides, "method.skip=null", f"method.keep_flops={share}")


@command()
def extend(
    run: Path,
    *,
    data: Annotated[str, f"Data with images of the new classes: {common.SOURCES}."],
    root: common.Root = None,
    names: common.ReadableNames = None,
    out: Annotated[Path, "Folder for the new run."],
    device: common.RecipeDevice = None,
    quiet: common.Quiet = False,
) -> None:
    """Add the classes in DATA to the adapter of a RUN, and write the new adapter to OUT.

    RUN is the folder of a run, whose images must still be there; --data has images of the new classes, and may have
    more of the known ones. As many images of each class are drawn as in RUN.

    \b
    A method in closed form, such as gda, is fitted to all images: the result is exactly that of
    training on all of them from the start. A method whose tensors belong to no class, such as lora,
    goes on from its adapter. Other methods are refused.

    \b
    Examples:
      adapt extend runs/gda --data more/ --out runs/gda-more
    """
    from adapt.recipe import DataSection

    with common.quiet_libraries():
        from adapt.training.extending import extended
        from adapt.training.run_recipe import run_recipe

        recipe = extended(run, DataSection(source=data, root=root, names=names), out)
        recipe = recipe if device is None else recipe.model_copy(update={"device": device})
        result = run_recipe(recipe, out, progress=not quiet)
    say(result)
