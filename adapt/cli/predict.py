"""`adapt predict`"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapt import plain
from adapt.cells import guarded
from adapt.cli import options as common
from adapt.data.readers.folder import IMAGE_SUFFIXES, images_in
from adapt.data.readers.lines import read_lines
from adapt.errors import AdaptError
from adapt.shown import shown, unseen

if TYPE_CHECKING:
    from adapt.models.prediction import Prediction


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes to show for an image.")
@click.option("--classes", help="Other class names: separated by commas, or a text file with one a line.")
@click.option("--question", help="What is asked about the images, of an adapter that answers questions.")
@common.of_adapter
@common.device
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option(
    "--csv",
    "as_csv",
    is_flag=True,
    help="Columns image, rank, class, probability; what a spreadsheet takes for a formula after a '.",
)
def predict(
    adapter: Path,
    images: tuple[Path, ...],
    top_k: int,
    classes: str | None,
    question: str | None,
    backbone: str | None,
    device: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Classify IMAGES (files, or folders searched at any depth) with ADAPTER, or answer a question about each.

    Results are printed as they come. In folders, symbolic links are followed, and an image counts once. An image that
    cannot be read is reported and left out; the exit code is 2 then.

    \b
    Examples:
      adapt predict adapter.safetensors photo.png
      adapt predict adapter.safetensors photos/ --csv > labels.csv
      adapt predict adapter.safetensors photo.png --classes "cat,dog,parrot"
      adapt predict adapter.safetensors photo.png --question "what is it?"
    """
    from adapt.cli.quiet import quiet_libraries

    if as_json and as_csv:
        raise AdaptError("--json and --csv are two layouts of one output: give one of them")
    files = list(_files(images))
    names = _class_names(classes)
    with quiet_libraries():
        from adapt.backbones.load import load_backbone
        from adapt.loading import load

        model = load(adapter, load_backbone(backbone, device) if backbone else None, names, device=device)
        readable: list[Path] = []
        write = _writer(as_json, as_csv)
        asked = _asked(adapter, model, question)
        for number, prediction in enumerate(model.predict_stream(_readable(files, readable), top_k, **asked)):
            write(readable[number], prediction)
    if len(readable) < len(files):
        click.echo(f"{len(files) - len(readable)} of {len(files)} images could not be read", err=True)
        sys.exit(2)


def _asked(adapter: Path, model: Any, question: str | None) -> dict[str, str]:
    answers = model.backbone.family != "dual encoder"
    if answers != (question is not None):
        need = "answers questions: give --question" if answers else "classifies images: leave --question out"
        raise AdaptError(f"{adapter} {need}")
    return {} if question is None else {"question": question}


def _files(images: tuple[Path, ...]) -> Iterator[Path]:
    for path in images:
        if path.is_dir():
            found = images_in(str(path))
            if not found:
                raise AdaptError(f"the folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            yield from map(Path, found)
        else:
            yield path


def _class_names(classes: str | None) -> list[str] | None:
    if classes is None:
        return None
    lines = read_lines(Path(classes)) if _is_file(classes) else classes.split(",")
    names = [line.strip() for line in lines if line.strip()]
    for name in filter(unseen, names):
        raise AdaptError(f"--classes has {name!r}, with a control character: take it out")
    return names


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a file's name: a list of classes
        return False


def _readable(files: list[Path], read: list[Path]) -> Iterator[Any]:
    """Decoded images; `read` gets the path of each, and what cannot be read is reported."""
    from adapt.data.decoding.images import open_image

    for file in files:
        try:
            image = open_image(file)
        except AdaptError as error:
            click.echo(f"Error: {error}", err=True)
            continue
        read.append(file)
        yield image


def _writer(as_json: bool, as_csv: bool) -> Any:
    """A function that prints the prediction of one image."""
    if as_csv:
        _print_csv([["image", "rank", "class", "probability"]])
        return lambda path, found: _print_csv(
            [str(path), rank, name, f"{probability:.6f}"] for rank, (name, probability) in enumerate(found.top, 1)
        )
    if as_json:
        return lambda path, found: click.echo(
            plain.dump(
                {"image": str(path), "top": [{"class": name, "probability": value} for name, value in found.top]}
            )
        )
    return _lines


def _print_csv(rows: Iterable[Sequence[Any]]) -> None:
    """Guarded as in files; in UTF-8, and paths that are none as their bytes are."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(guarded, row) for row in rows)
    click.echo(text.getvalue().encode(errors="surrogateescape"), nl=False)


def _lines(path: Path, found: Prediction) -> None:
    click.echo(shown(path))
    for name, probability in found.top:
        click.echo(f"  {100 * probability:5.1f} %  {shown(name)}")


COMMANDS = {"predict": predict}
