"""`adapt train`, `adapt extend` and `adapt recommend`

A training of several processes starts them itself, as `accelerate launch` and torchrun do.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TypedDict, Unpack

import click

from adapt import methods
from adapt.cli import options as common
from adapt.cli.options import Option, command
from adapt.common import devices
from adapt.common.devices import AUTO, is_launched, is_main
from adapt.common.disk import check_outside
from adapt.common.errors import AdaptError, check_installed
from adapt.common.interrupt import ending, handled
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
            kind=click.FloatRange(0, 1, min_open=True, max_open=True),
        ),
    ] = None,
    out: common.RunOut = None,
    resume: Annotated[bool, "Continue the interrupted run in --out, exactly as if it had not stopped."] = False,
    track: common.TrackedBy = (),
    processes: Annotated[
        int, Option("Processes that train one run together, each on its own GPU with its share of every batch.", min=1)
    ] = 1,
    watch: Annotated[
        bool,
        "Keep in the adapter what the training images look like, so that other images are noticed later (short for "
        "--set watch=true).",
    ] = False,
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
        check_installed("--plot", "plot", "matplotlib")
    overrides += ("watch=true",) * watch
    if keep_flops is not None:
        overrides = _keeping(keep_flops, common.read(recipe, overrides, options), overrides)
    chosen = common.read(recipe, overrides, options)
    if dry_run:
        from adapt.training.dry_run import planned

        click.echo("\n".join(planned(chosen)))
        return
    if out is None and folder is not None:
        check_outside(folder, chosen.data.source, f"the data folder {chosen.data.source}")
    if processes > 1 and not is_launched():
        raise SystemExit(launched(processes, chosen.device))
    if not quiet and is_main():
        common.say_backbone(chosen.backbone, chosen.data.source)
        if folder is not None:
            click.echo(f"run        {folder}", err=True)
    from adapt.training.run_recipe import run_recipe

    try:
        result = run_recipe(chosen, folder, resume, progress=not quiet, track=track)
    except KeyboardInterrupt:
        if is_main():
            files = [f"--plugin={path}" for path in methods.plugins()]
            changes = [f"--{name}={value}" for name, value in options.items() if value is not None]
            changes += [f"--set={each}" for each in overrides] + [f"--track={each}" for each in track]
            changes += [f"--processes={processes}"] * (processes > 1)
            again = shlex.join(["adapt", *files, "train", recipe, *changes, f"--out={folder}"])
            click.echo("stopped" if folder is None else f"stopped; continue with: {again} --resume", err=True)
        raise SystemExit(STOPPED) from None
    if is_main():
        say(result, folder if plot else None)


def say(result: Result, plots: Path | None = None) -> None:
    """Print the result of a run and, if `plots` is not None, draw the run's curves to files in the folder `plots`."""
    click.echo(str(result))
    if plots is not None:
        result.draw(plots)
    if result.adapter is not None:
        baseline, adapted = (result.metrics.get(part, {}).get("r2", 0.0) for part in ("zero_shot", "adapted"))
        size = readable_bytes(result.metrics["adapter_bytes"]) + ", worse than the mean" * (adapted < baseline)
        click.echo(f"adapter    {result.adapter} ({size})")


def _keeping(share: float, recipe: Recipe, overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Return `overrides` plus the settings for --keep-flops, which skips blocks until `share` of the FLOPs remains."""
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
    from adapt.training.extending import extended
    from adapt.training.run_recipe import run_recipe

    recipe = extended(run, DataSection(source=data, root=root, names=names), out)
    recipe = recipe if device is None else recipe.model_copy(update={"device": device})
    say(run_recipe(recipe, out, progress=not quiet))


STOPPED = 130  # the exit status after Ctrl-C
GRACE = 10.0  # seconds for the others to end by themselves once one has failed


def launched(count: int, device: str) -> int:
    """Rerun the current command in `count` processes that train together, and return 0 or the first nonzero exit code.

    The main process prints the results. Errors of the other processes are printed after all processes have ended.
    Ctrl-C is sent to all processes. Raises AdaptError if two processes would share an accelerator.
    """
    available = devices.count()
    if ":" in device:
        raise AdaptError(
            f"--device {device} is a single device, but --processes {count} needs one device per process: give only "
            "the type of device, such as cuda, or auto"
        )
    if device != "cpu" and 0 < available < count:
        raise AdaptError(
            f"--processes {count} needs {count} accelerators, but there are only {available}: give at most {available}"
        )
    command = [sys.executable, "-m", "adapt", *sys.argv[1:]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    place = {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": threads,
    }  # fmt: skip
    with TemporaryFile() as errors:
        processes = [
            subprocess.Popen(
                command,
                env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | place,
                stdout=subprocess.DEVNULL if rank else None,
                stderr=errors if rank else None,
                start_new_session=True,  # so that Ctrl-C reaches it only through this process
            )
            for rank in range(count)
        ]
        status = _ended(processes)
        if status not in (0, STOPPED) and processes[0].returncode != status:
            errors.seek(0)
            click.echo(errors.read().decode(errors="replace").rstrip(), err=True)
    return status


def _ended(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes, or kill all processes soon after one fails; return 0 or the first nonzero exit code."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    status, until = 0, float("inf")
    with handled(ending(), pass_on):
        while any(process.poll() is None for process in processes):
            status = status or _failed(processes)
            if status not in (0, STOPPED):
                until = min(until, time.monotonic() + GRACE)
            if time.monotonic() > until:  # they may wait for the failed one, and ignore other signals
                for process in processes:
                    process.kill()
            time.sleep(0.05)
        return status or _failed(processes)


def _failed(processes: list[subprocess.Popen[bytes]]) -> int:
    return next((status for process in processes if (status := process.poll())), 0)


_SECONDS = {"s": 1, "m": 60, "h": 3600}


class _Time(click.ParamType):
    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a duration such as `90s`, `10m` or `1.5h` into seconds."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(value))
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is not a time such as 90s, 10m or 1h", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


class _Options(TypedDict):
    """The options that are handed on to `adapt.recommend`."""

    root: common.RecipeRoot
    columns: common.ColumnNames
    names: common.ReadableNames
    shots: Annotated[int | None, Option("Training images per class.  [default: all]", min=1)]
    seed: Annotated[int, Option("Seed for picking shots, for the folds and for training.", min=0, default=1)]
    backbone: Annotated[
        tuple[str, ...],
        Option(
            "Backbone to adapt (see `adapt backbones`); of several, each is compared (repeatable).  [default: a CLIP]"
        ),
    ]
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
    target: Annotated[
        float | None,
        Option("Accuracy to say the labels for, such as 0.9.  [default: what twice the images should reach]"),
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
      adapt recommend photos/ --backbone efficientnet-lite0 --backbone mini-clip
      adapt recommend eurosat --root data --shots 16 --budget 30m

    DATA is a folder, a .csv file or the name of a data set. Methods are compared by cross-validation on the training
    images; test images do not influence the choice. If several methods are equally good within the noise, lda_words is
    chosen if it is among these methods (lda on a backbone that reads no words), otherwise the method that is cheapest
    to train. The chosen method is then trained on all training images and, if there are test images, measured on them.

    \b
    OUT receives the run (adapter.safetensors, recipe.yaml, metrics.json, ...), recommendation.json, methods.csv,
    learning_curve.csv, report.html, and lists of what was found: few.csv, confused.csv, suspects.csv, duplicates.csv.
    """
    if resume and out in (None, Path("none")):
        raise AdaptError("--resume needs the folder of the comparison: give --out FOLDER")
    named = out is not None
    out = common.run_folder(out, f"recommend-{common.folder_name(data)}")
    if not quiet:
        for name in options["backbone"] or [None]:
            common.say_backbone(name, data)
        if out is not None:
            click.echo(f"run        {out}", err=True)
        click.echo("Reading the images, and comparing methods on the training images ...", err=True)
    from adapt.backbones.sources import NotHere, best_here
    from adapt.choosing.recommendation import recommend as run

    compare = partial(run, data, out=out, resume=resume, device=device or AUTO, progress=not quiet)
    try:
        try:
            recommendation = compare(**options)
        except NotHere as error:
            if options["backbone"] or quiet or not sys.stdin.isatty():
                raise
            options["backbone"] = (best := best_here(),)
            click.confirm(f"{error}\nCompare methods on {best}, which is here?", default=True, abort=True, err=True)
            common.say_backbone(best, data)
            recommendation = compare(**options)
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
