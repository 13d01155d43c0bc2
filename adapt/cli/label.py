"""`adapt label`"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from adapt.cli import options as common
from adapt.cli.serve import listening_at
from adapt.common.devices import AUTO
from adapt.common.errors import missing
from adapt.common.shown import shown

_LIBRARIES = ("fastapi", "uvicorn", "httptools")


@click.command()
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("--adapter", "run", required=True, type=click.Path(path_type=Path), help="Folder of a run.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the answers, new or begun.")
@click.option(
    "--a-round", type=click.IntRange(min=1), default=10, show_default=True, help="Answers before each training."
)
@click.option(
    "--propose", type=click.IntRange(1, 1000), help="Only write this many proposals to OUT, without the page."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port of the page, or 0 for any."
)
@common.recipe_device
@click.option("--quiet", is_flag=True, help="Hide progress.")
def label(
    images: tuple[Path, ...],
    run: Path,
    out: Path,
    a_round: int,
    propose: int | None,
    port: int,
    device: str | None,
    quiet: bool,
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
    from adapt.cli.quiet import quiet_libraries

    with quiet_libraries():
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


COMMANDS = {"label": label}
