"""`adapt label`"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import click

from adapt.cli import options as common
from adapt.cli.options import Option, command
from adapt.cli.serve import listening_at
from adapt.common.devices import AUTO
from adapt.common.errors import missing
from adapt.common.shown import shown

_LIBRARIES = ("fastapi", "uvicorn", "httptools")


@command()
def label(
    images: tuple[Path, ...] = (),
    *,
    run: Annotated[Path, Option("Folder of a run.", "--adapter")],
    out: Annotated[Path, "Folder for the answers, new or begun."],
    a_round: Annotated[int, Option("Answers before each training.", min=1)] = 10,
    propose: Annotated[
        int | None, Option("Only write this many proposals to OUT, without the page.", min=1, max=1000)
    ] = None,
    port: Annotated[int, Option("Port of the page, or 0 for any.", min=0, max=65535)] = 8000,
    device: common.RecipeDevice = None,
    quiet: common.Quiet = False,
) -> None:
    """Label images on a web page, by the keyboard, with proposals of the adapter of a run.

    IMAGES are folders, .csv lists or files of images without labels; the unlabelled images of the run's own data are
    asked about too. The images come first whose labels help most: those that many other images resemble, above all
    images of which the adapter is unsure. After each round the run's recipe is trained on all images with a label, and
    the page shows what that changed on the test images.

    A list that `adapt recommend` or `adapt data check` wrote (suspects.csv, confused.csv, contradictions.csv,
    duplicates.csv, ...) asks about the images of the run that it names: keep the label, change it, or drop the image.

    \b
    OUT receives
      annotations.csv  each answer, at once
      proposals.csv    the images of the round, with their proposed labels, and a column answer to fill in
      data.csv         all images with their labels, and recipe.yaml, which trains on them
      rounds.json      the results of the rounds
      round-N/         the run of each round

    The same command again goes on from there. The page needs the extra `serve`.

    \b
    Examples:
      adapt label photos/ --adapter runs/first --out runs/labels
      adapt label runs/recommend-photos/suspects.csv --adapter runs/recommend-photos --out runs/fixed
      adapt label photos/ --adapter runs/first --out runs/labels --propose 100
    """
    absent = [name for name in _LIBRARIES if find_spec(name) is None]
    if absent and propose is None:
        raise missing("the page of adapt label", ", ".join(absent), "serve")
    with common.quiet_libraries():
        from adapt.labelling.begun import PROPOSALS
        from adapt.labelling.labelling import Labelling

        labelling = Labelling(run, images, out, device or AUTO, progress=not quiet)
        proposals = labelling.propose(a_round if propose is None else propose + labelling.answers)
        labelling.write()
        if propose is not None:
            click.echo(f"{len(proposals)} proposals, the most useful first: {shown(str(out / PROPOSALS))}")
            return
        from adapt.labelling.server import create_label_app
        from adapt.serving.running import run as serve

        with listening_at("127.0.0.1", port) as listening:
            click.echo(f"Label the images at http://127.0.0.1:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
            try:
                serve(create_label_app(labelling, a_round), listening, 30.0)
            finally:
                labelling.write()
                click.echo(f"To train on all labels: {shown(labelling.command)}")
