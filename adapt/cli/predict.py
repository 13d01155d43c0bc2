"""`adapt predict`"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapt import hub, plain
from adapt.cells import guarded
from adapt.cli import options as common
from adapt.data.readers.folder import IMAGE_SUFFIXES, images_in
from adapt.data.readers.lines import read_lines
from adapt.errors import AdaptError
from adapt.shown import first_of, shown, unseen

if TYPE_CHECKING:
    from adapt.models.explanation import Explanation
    from adapt.models.prediction import Prediction

Says = Callable[[Iterable[Any]], Iterator[Any]]  # images to what is said of each


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(path_type=Path), metavar="[ADAPTER]... IMAGES...")
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes to show for an image.")
@click.option("--classes", help="Other class names: separated by commas, or a text file with one a line.")
@click.option("--question", help="What is asked about the images, of an adapter that answers questions.")
@click.option("--explain", is_flag=True, help="Say which descriptors of a class decided, of an adapter that has some.")
@click.option(
    "--vocabulary-free",
    type=click.Path(path_type=Path),
    metavar="INDEX",
    help="Without an adapter: name images by words of the captions in an index (see `adapt index`).",
)
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
    explain: bool,
    vocabulary_free: Path | None,
    backbone: str | None,
    device: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Classify IMAGES (files, or folders searched at any depth) with ADAPTER, or answer a question about each.

    An adapter is a file, the folder of a run, or a name on the hub such as hf://user/name. Several stand side by side,
    a column each, and what they share is computed once. Results are printed as they come. In folders, symbolic links
    are followed, and an image counts once. An image that cannot be read is reported and left out; the exit code is 2
    then.

    \b
    Examples:
      adapt predict adapter.safetensors photo.png
      adapt predict adapter.safetensors photos/ --csv > labels.csv
      adapt predict runs/coop runs/lora runs/gda photos/
      adapt predict adapter.safetensors photo.png --classes "cat,dog,parrot"
      adapt predict adapter.safetensors photo.png --question "what is it?"
      adapt predict runs/described photo.png --explain --top-k 2
      adapt predict --vocabulary-free captions.safetensors photos/
    """
    from adapt.cli.quiet import quiet_libraries

    if as_json and as_csv:
        raise AdaptError("--json and --csv are two layouts of one output: give one of them")
    if vocabulary_free is not None and (classes or question or explain):
        raise AdaptError("--vocabulary-free takes names from captions: leave --classes, --question and --explain out")
    readable: list[Path] = []
    if vocabulary_free is not None:
        files = list(image_files((adapter, *images)))
        answers = _by_captions(vocabulary_free, backbone, device, top_k)
        write = _writer(as_json, as_csv)
    else:
        adapters = _adapters(adapter, images, explain, as_csv)
        files = list(image_files(images[len(adapters) - 1 :]))
        answers = _by_adapters(adapters, _class_names(classes), question, backbone, device, top_k, explain)
        write = _writer_of(adapters, as_json, as_csv, explain)
    with quiet_libraries():
        for number, found in enumerate(answers(readable_images(files, readable))):
            write(readable[number], found)
    if len(readable) < len(files):
        click.echo(f"{len(files) - len(readable)} of {len(files)} images could not be read", err=True)
        sys.exit(2)


def _adapters(first: Path, images: Sequence[Path], explain: bool, as_csv: bool) -> list[Path]:
    """The adapters among what is given, of which the last is an image. AdaptError where they do not go together."""
    if not images:
        raise AdaptError(f"there is no image behind {first}: expected an adapter, then images or folders of them")
    adapters = [first, *takewhile(_is_adapter, images[:-1])]
    if explain and (as_csv or len(adapters) > 1):
        raise AdaptError("--explain is of one adapter, in lines or --json: leave --csv and the other adapters out")
    if len(set(adapters)) < len(adapters):
        raise AdaptError(f"{', '.join(map(str, adapters))}: one adapter is given twice; give each of them once")
    return adapters


def _by_captions(index: Path, backbone: str | None, device: str, top_k: int) -> Says:
    """Answers in words of an index of captions."""

    def answers(images: Iterable[Any]) -> Iterator[Any]:
        from adapt.backbones.load import load_backbone
        from adapt.retrieval.index import load_index
        from adapt.retrieval.vocabulary_free import VocabularyFree

        captions = load_index(index)
        name = backbone or captions.header.backbone
        if not name:
            raise AdaptError(f"{index} does not name its backbone: give --backbone")
        found: Any = load_backbone(name, device)
        return ((each,) for each in VocabularyFree(found, captions).predict_stream(images, top_k))

    return answers


def _by_adapters(
    adapters: Sequence[Path],
    names: list[str] | None,
    question: str | None,
    backbone: str | None,
    device: str,
    top_k: int,
    explain: bool,
) -> Says:
    """Answers of each adapter, or of one of them with its reasons."""

    def answers(images: Iterable[Any]) -> Iterator[Any]:
        from adapt.loading import load_many

        models = load_many(adapters, common.given_backbone(backbone, device), names, device=device)
        if explain:
            return _explanations(adapters[0], models[0], images, top_k)
        return _predictions(adapters, models, images, top_k, question)

    return answers


def _predictions(
    adapters: Sequence[Path], models: Sequence[Any], images: Iterable[Any], top_k: int, question: str | None
) -> Iterator[tuple[Prediction, ...]]:
    """What each model says of each image."""
    if len(models) == 1:
        asked = _asked(adapters[0], models[0], question)
        return ((prediction,) for prediction in models[0].predict_stream(images, top_k, **asked))
    answering = [adapter for adapter, model in zip(adapters, models, strict=True) if not _classifies(model)]
    if answering or question is not None:
        named = f"; {first_of(answering)} answers questions" if answering else ""
        raise AdaptError(f"several adapters stand side by side where they classify{named}: ask one at a time")
    from adapt.models.many import predict_many_stream

    return predict_many_stream(models, images, top_k)


def _explanations(adapter: Path, model: Any, images: Iterable[Any], top_k: int) -> Iterator[Explanation]:
    if not _classifies(model):
        raise AdaptError(f"{adapter} answers questions, and has no descriptors of classes: leave --explain out")
    from adapt.models.explanation import explained
    from adapt.models.prediction import Wanted

    return explained(model, images, Wanted(top_k), batch_size=64)


def _classifies(model: Any) -> bool:
    return bool(model.backbone.family == "dual encoder")


def _asked(adapter: Path, model: Any, question: str | None) -> dict[str, str]:
    answers = not _classifies(model)
    if answers != (question is not None):
        need = "answers questions: give --question" if answers else "classifies images: leave --question out"
        raise AdaptError(f"{adapter} {need}")
    return {} if question is None else {"question": question}


def _is_adapter(path: Path) -> bool:
    """Whether `path` is an adapter, the folder of a run, of an exported model or of peft's, or a name on the hub."""
    inside = ("adapter.safetensors", "adapter_config.json")
    return hub.is_name(path) or path.suffix == ".safetensors" or any((path / name).is_file() for name in inside)


def image_files(images: Sequence[Path]) -> Iterator[Path]:
    """Files as they are, and the images in folders. AdaptError for what is neither, and for a folder without any."""
    for path in images:
        if _is_adapter(path) and not (path.is_dir() and images_in(str(path))):
            raise AdaptError(
                f"{path} is an adapter, where an image is expected: adapters come first, images behind them"
            )
        if not (path.suffix or path.exists()):
            raise AdaptError(f"there is nothing at {path}, neither an adapter nor an image")
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


def readable_images(files: list[Path], read: list[Path]) -> Iterator[Any]:
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
    """A function that prints the one prediction of one image."""
    if as_csv:
        _print_csv([["image", "rank", "class", "probability"]])
        return lambda path, found: _csv_columns(path, found)
    if as_json:
        return lambda path, found: click.echo(plain.dump({"image": str(path), **_answer(found[0])}))
    return _lines


def _writer_of(adapters: Sequence[Path], as_json: bool, as_csv: bool, explain: bool) -> Any:
    """A function that prints what the adapters say of one image."""
    if explain:
        return _explained_json if as_json else _explained
    return (
        _side_by_side(as_json, as_csv, [*map(hub.spelled, adapters)]) if len(adapters) > 1 else _writer(as_json, as_csv)
    )


def _side_by_side(as_json: bool, as_csv: bool, adapters: Sequence[str]) -> Any:
    """A function that prints what each of the adapters says of one image."""
    if as_csv:
        _print_csv([["image", "rank", *(cell for name in adapters for cell in (name, f"{name} probability"))]])
    if as_json:
        return lambda path, found: click.echo(
            plain.dump({"image": str(path), "adapters": dict(zip(adapters, map(_top, found), strict=True))})
        )
    return _csv_columns if as_csv else partial(_columns, adapters)


def _top(found: Prediction) -> list[dict[str, Any]]:
    return [{"class": name, "probability": value} for name, value in found.top]


def _answer(found: Prediction) -> dict[str, Any]:
    number = {} if found.number is None else {"number": found.number}
    return {**number, "top": _top(found)}


def _cells(each: tuple[str, float] | None) -> list[str]:
    """Class and probability; empty behind the last class."""
    return ["", ""] if each is None else [each[0], f"{each[1]:.6f}"]


def _csv_columns(path: Path, found: Sequence[Prediction]) -> None:
    ranks = enumerate(zip_longest(*(each.top for each in found)), 1)
    _print_csv([str(path), rank, *(cell for each in row for cell in _cells(each))] for rank, row in ranks)


def _columns(adapters: Sequence[str], path: Path, found: Sequence[Prediction]) -> None:
    columns = [[shown(name), *map(_line, each.top)] for name, each in zip(adapters, found, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    click.echo(shown(path))
    for row in zip_longest(*columns, fillvalue=""):
        click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _line(each: tuple[str, float]) -> str:
    return f"{100 * each[1]:5.1f} %  {shown(each[0])}"


def _print_csv(rows: Iterable[Sequence[Any]]) -> None:
    """Guarded as in files; in UTF-8, and paths that are none as their bytes are."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(guarded, row) for row in rows)
    click.echo(text.getvalue().encode(errors="surrogateescape"), nl=False)


def _lines(path: Path, found: Sequence[Prediction]) -> None:
    number = found[0].number
    click.echo(shown(path) + ("" if number is None else f"  {number:.3g}"))
    for each in found[0].top:
        click.echo(f"  {_line(each)}")


def _explained(path: Path, found: Explanation) -> None:
    click.echo(shown(path))
    for each, reasons in zip(found.prediction.top, found.reasons, strict=True):
        click.echo(f"  {_line(each)}, cosines: mean {reasons.mean:.3f}, largest {reasons.descriptors[0][1]:.3f}")
        for descriptor, cosine in reasons.descriptors:
            click.echo(f"           {cosine:6.3f}  {shown(descriptor)}")


def _explained_json(path: Path, found: Explanation) -> None:
    top = [told | reasons.plain() for told, reasons in zip(_top(found.prediction), found.reasons, strict=True)]
    click.echo(plain.dump({"image": str(path), "top": top}))


COMMANDS = {"predict": predict}
