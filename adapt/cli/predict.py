"""`adapt predict`"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from adapt import hub
from adapt.cli import options as common
from adapt.cli.predictions import Columns, writer
from adapt.data.readers.csv_file import read_paths
from adapt.data.readers.folder import IMAGE_SUFFIXES, images_in
from adapt.data.readers.passed_over import besides, note_files
from adapt.errors import AdaptError
from adapt.shown import first_of, shown

if TYPE_CHECKING:
    from adapt.models.explanation import Explanation
    from adapt.models.prediction import Prediction

ONE_CLASS, FEW_CLASSES = 1, 5  # that are shown of an image: in a table, and to people or programs
# images, which are turned upright by EXIF or not as the models ask for, to what is said of each
Says = Callable[[Callable[[set[bool]], Iterable[Any]]], Iterator[Any]]


class ImageFile(NamedTuple):
    """An image to look at, and what it is called in the output: in a CSV as there, or else its path as it was given."""

    path: Path
    called: str


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(path_type=Path), metavar="[ADAPTER]... IMAGES...")
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    help="Classes to show for an image, the likeliest first.  [default: 5; with --csv 1]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Call an image none where no class is as probable. Where it may have several classes, those that are as "
    "probable are said.  [default for these: 0.5]",
)
@common.classes
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
    help="A row for each image: columns image, class, probability; with --threshold also answer, with --top-k 2 "
    "class_2 and probability_2, and so on. An adapter that learned numbers adds number, one of several classes an "
    "image classes, separated by bars. What a spreadsheet takes for a formula stands after a '.",
)
def predict(
    adapter: Path,
    images: tuple[Path, ...],
    top_k: int | None,
    threshold: float | None,
    classes: str | None,
    question: str | None,
    explain: bool,
    vocabulary_free: Path | None,
    backbone: str | None,
    device: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Classify IMAGES (files, folders searched at any depth, or a .csv with a column path) with ADAPTER, or answer a
    question about each. Regions are "IMAGE#xywh=X,Y,WIDTH,HEIGHT", or columns x0,y0,x1,y1 of the .csv, in pixels.

    An adapter is a file, the folder of a run, or a name on the hub such as hf://user/name. Several stand side by side,
    a column each, and what they share is computed once. Results are printed as they come. In folders, symbolic links
    are followed, and an image counts once. An image that cannot be read is reported and left out; the exit code is 2
    then.

    \b
    Examples:
      adapt predict adapter.safetensors photo.png
      adapt predict adapter.safetensors photos/ --csv > labels.csv
      adapt predict adapter.safetensors photos/ --threshold 0.8
      adapt predict runs/coop runs/lora runs/gda photos/
      adapt predict adapter.safetensors photo.png --classes "cat,dog,parrot"
      adapt predict adapter.safetensors photo.png --question "what is it?"
      adapt predict runs/described photo.png --explain --top-k 2
      adapt predict --vocabulary-free captions.safetensors photos/
    """
    from adapt.cli.quiet import quiet_libraries

    if as_json and as_csv:
        raise AdaptError("--json and --csv are two layouts of one output: give one of them")
    if vocabulary_free is not None and (classes or question or explain or threshold is not None):
        raise AdaptError(
            "--vocabulary-free takes names from captions: leave --classes, --question, --explain and --threshold out"
        )
    top_k = top_k or (ONE_CLASS if as_csv else FEW_CLASSES)
    readable: list[ImageFile] = []
    if vocabulary_free is not None:
        files = list(image_files((adapter, *images)))
        answers = _by_captions(vocabulary_free, backbone, device, top_k, threshold)
        adapters: list[Path] = []
    else:
        adapters = _adapters(adapter, images)
        _check_explained(explain, threshold, as_csv, adapters)
        files = list(image_files(images[len(adapters) - 1 :]))
        asked = {"top_k": top_k, "threshold": threshold}
        answers = _by_adapters(adapters, common.class_names(classes), question, backbone, device, asked, explain)
    write = Columns(adapters, threshold is not None, top_k) if as_csv else writer(adapters, as_json, explain)
    with quiet_libraries():
        for number, found in enumerate(answers(partial(readable_images, files, readable))):
            write(readable[number].called, found)
    if isinstance(write, Columns):
        write.begin()  # where no image could be read
    exit_where_unread(files, readable)


def _check_explained(explain: bool, threshold: float | None, as_csv: bool, adapters: Sequence[Path]) -> None:
    """AdaptError for what does not go with reasons."""
    if explain and threshold is not None:
        raise AdaptError("--explain is of the likeliest classes, whatever their probability: leave --threshold out")
    if explain and (as_csv or len(adapters) > 1):
        raise AdaptError("--explain is of one adapter, in lines or --json: leave --csv and the other adapters out")


def _adapters(first: Path, images: Sequence[Path]) -> list[Path]:
    """The adapters among what is given, of which the last is an image. AdaptError where they do not go together."""
    if not images:
        raise AdaptError(f"there is no image behind {first}: expected an adapter, then images or folders of them")
    adapters = [first, *takewhile(_is_adapter, images[:-1])]
    if len(set(adapters)) < len(adapters):
        raise AdaptError(f"{', '.join(map(str, adapters))}: one adapter is given twice; give each of them once")
    return adapters


def _by_captions(index: Path, backbone: str | None, device: str, top_k: int, threshold: float | None) -> Says:
    """Answers in words of an index of captions."""

    def answers(images: Callable[[set[bool]], Iterable[Any]]) -> Iterator[Any]:
        from adapt.backbones.load import load_backbone
        from adapt.models.prediction import judged
        from adapt.retrieval.index import load_index
        from adapt.retrieval.vocabulary_free import VocabularyFree

        captions = load_index(index)
        name = backbone or captions.header.backbone
        if not name:
            raise AdaptError(f"{index} does not name its backbone: give --backbone")
        found: Any = load_backbone(name, device)
        named = VocabularyFree(found, captions).predict_stream(images({True}), top_k)
        return ((judged(each, threshold),) for each in named)

    return answers


def _by_adapters(
    adapters: Sequence[Path],
    names: list[str] | None,
    question: str | None,
    backbone: str | None,
    device: str,
    asked: dict[str, Any],
    explain: bool,
) -> Says:
    """Answers of each adapter, or of one of them with its reasons."""

    def answers(images: Callable[[set[bool]], Iterable[Any]]) -> Iterator[Any]:
        from adapt.loading import load_many

        models = load_many(adapters, common.given_backbone(backbone, device), names, device=device)
        opened = images({model.backbone.preprocess.turned for model in models})
        if explain:
            return _explanations(adapters[0], models[0], opened, asked["top_k"], asked["threshold"])
        return _predictions(adapters, models, opened, question, asked)

    return answers


def _predictions(
    adapters: Sequence[Path],
    models: Sequence[Any],
    images: Iterable[Any],
    question: str | None,
    asked: dict[str, Any],
) -> Iterator[tuple[Prediction, ...]]:
    """What each model says of each image."""
    if len(models) == 1:
        asked = asked | _asked(adapters[0], models[0], question)
        return ((prediction,) for prediction in models[0].predict_stream(images, **asked))
    answering = [adapter for adapter, model in zip(adapters, models, strict=True) if not _classifies(model)]
    if answering or question is not None:
        named = f"; {first_of(answering)} answers questions" if answering else ""
        raise AdaptError(f"several adapters stand side by side where they classify{named}: ask one at a time")
    from adapt.models.many import predict_many_stream

    return predict_many_stream(models, images, **asked)


def _explanations(
    adapter: Path, model: Any, images: Iterable[Any], top_k: int, threshold: float | None
) -> Iterator[Explanation]:
    if not _classifies(model):
        raise AdaptError(f"{adapter} answers questions, and has no descriptors of classes: leave --explain out")
    from adapt.models.explanation import explained
    from adapt.models.prediction import Wanted

    return explained(model, images, Wanted(top_k, threshold), batch_size=64)


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


def image_files(images: Sequence[Path]) -> Iterator[ImageFile]:
    """Files as they are, and the images in folders. AdaptError for what is neither, and for a folder without any."""
    for path in images:
        if _is_adapter(path) and not (path.is_dir() and images_in(str(path))):
            raise AdaptError(
                f"{path} is an adapter, where an image is expected: adapters come first, images behind them"
            )
        if not (path.suffix or path.exists()):
            raise AdaptError(f"there is nothing at {path}, neither an adapter nor an image")
        if path.suffix.lower() == ".csv":
            yield from (ImageFile(Path(listed), called) for listed, called in read_paths(path))
        elif path.is_dir():
            found = images_in(str(path))
            if not found:
                raise AdaptError(f"the folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            note_files(str(path), besides(path, found))
            yield from (ImageFile(Path(each), each) for each in found)
        else:
            yield ImageFile(path, str(path))


def readable_images(files: list[ImageFile], read: list[ImageFile], turnings: set[bool]) -> Iterator[Any]:
    """Images decoded, upright by EXIF or as stored; their paths where `turnings` has both, for each model to do so.

    `read` gets the file of each, and what cannot be read is reported.
    """
    from adapt.data.decoding.images import open_image

    for file in files:
        try:
            pictures = [open_image(file.path, turned=turned) for turned in turnings]
        except AdaptError as error:
            click.echo(f"Error: {shown(error)}", err=True)
            continue
        read.append(file)
        yield pictures[0] if len(pictures) == 1 else file.path


def exit_where_unread(files: Sequence[ImageFile], read: Sequence[ImageFile]) -> None:
    """Says how many files could not be read, if some, and ends the command with 2 then."""
    if len(read) < len(files):
        click.echo(f"{len(files) - len(read)} of {len(files)} images could not be read", err=True)
        sys.exit(2)


COMMANDS = {"predict": predict}
