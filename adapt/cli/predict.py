"""`adapt predict`"""

from __future__ import annotations

import logging
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
    from PIL import Image

    from adapt.models.explanation import Explanation
    from adapt.models.prediction import Prediction
    from adapt.models.wrap import Model
    from adapt.progress import Progress

    OpenedImages = Iterable[Image.Image | Path]
    # a function from images, opened upright by EXIF or as stored as the models need them, to the answers for each
    Says = Callable[[Callable[[set[bool]], OpenedImages]], Iterator[Any]]
    # a function from adapters, their models and images to the answers for each image
    Answering = Callable[[Sequence[Path], Sequence[Model], OpenedImages], Iterator[Any]]

logger = logging.getLogger("adapt")

ONE_CLASS, FEW_CLASSES = 1, 5  # shown per image by default: in a CSV, and in text or JSON


class ImageFile(NamedTuple):
    """An image file and its name in the output, which is the name in the .csv that lists the image, or its path."""

    path: Path
    called: str


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(path_type=Path), metavar="[ADAPTER]... IMAGES...")
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    help="Classes to show per image, the most probable first.  [default: 5; with --csv 1]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Answer none if no class reaches this probability; a multi-label adapter names all that do.  "
    "[default for multi-label: 0.5]",
)
@common.classes
@click.option("--question", help="Question about each image, for an adapter that answers questions.")
@click.option(
    "--together",
    is_flag=True,
    help="Answer all images as one set, with an adapter of a method such as stata; results come at the end.",
)
@click.option(
    "--at-a-time",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --together, answer sets of at most N images one after the other.",
)
@click.option("--explain", is_flag=True, help="Show which descriptors of a class decided, for an adapter with some.")
@click.option(
    "--vocabulary-free",
    type=click.Path(path_type=Path),
    metavar="INDEX",
    help="Name images without an adapter, by words from the captions of an index (see `adapt index`).",
)
@common.at_use
@common.of_adapter
@common.device
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option(
    "--csv",
    "as_csv",
    is_flag=True,
    help="Print a CSV row per image, with the columns described above.",
)
def predict(
    adapter: Path,
    images: tuple[Path, ...],
    top_k: int | None,
    threshold: float | None,
    classes: str | None,
    question: str | None,
    together: bool,
    at_a_time: int | None,
    explain: bool,
    vocabulary_free: Path | None,
    at_use: tuple[str, ...],
    backbone: str | None,
    device: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Classify IMAGES with ADAPTER, or answer a question about each image.

    ADAPTER is a file, the folder of a run, or a name on the hub such as hf://user/name. The predictions of several
    adapters are shown side by side, and shared computations run only once.

    IMAGES are files, folders (searched at any depth), or a .csv with a column path. A region of an image is written
    "IMAGE#xywh=X,Y,WIDTH,HEIGHT", or as columns x0,y0,x1,y1 of the .csv, in pixels. In folders, symbolic links are
    followed, and each image is used only once. Results are printed as soon as they are ready. An image that cannot be
    read is reported and skipped, and the exit code is then 2.

    With --csv, the columns are image, class and probability. --threshold adds a column answer. --top-k 2 adds class_2
    and probability_2, and so on. A regression adapter adds a column number. A multi-label adapter adds a column
    classes, with names separated by bars. A cell that a spreadsheet would run as a formula begins with an apostrophe.

    \b
    Examples:
      adapt predict adapter.safetensors photo.png
      adapt predict adapter.safetensors photos/ --csv > labels.csv
      adapt predict adapter.safetensors photos/ --threshold 0.8
      adapt predict runs/coop runs/lora runs/gda photos/
      adapt predict runs/stata --together photos/ --csv > labels.csv
      adapt predict adapter.safetensors photo.png --classes "cat,dog,parrot"
      adapt predict adapter.safetensors photo.png --question "what is it?"
      adapt predict runs/described photo.png --explain --top-k 2
      adapt predict --vocabulary-free captions.safetensors photos/
    """
    from adapt.cli.quiet import quiet_libraries

    if as_json and as_csv:
        raise AdaptError("--json and --csv are two formats of one output: give only one of them")
    if vocabulary_free is not None and (classes or question or explain or at_use or threshold is not None):
        raise AdaptError(
            "--vocabulary-free predicts words from captions: leave out --classes, --question, --explain, --set and "
            "--threshold"
        )
    top_k = top_k or (ONE_CLASS if as_csv else FEW_CLASSES)
    readable: list[ImageFile] = []
    if vocabulary_free is not None:
        files = list(image_files((adapter, *images)))
        answers = _by_captions(vocabulary_free, backbone, device, top_k)
        adapters: list[Path] = []
    else:
        adapters = _adapters(adapter, images)
        _check_explained(explain, threshold, as_csv, adapters)
        _check_together(together, at_a_time, adapters, question, explain)
        files = list(image_files(images[len(adapters) - 1 :]))
        answering: Answering = partial(_predictions, top_k, threshold, question)
        if explain:
            answering = partial(_explanations, top_k)
        elif together:
            answering = partial(_as_set, top_k, threshold, at_a_time, len(files))
        answers = _by_adapters(adapters, common.class_names(classes), at_use, backbone, device, answering)
    write = Columns(adapters, threshold is not None, top_k) if as_csv else writer(adapters, as_json, explain)
    with quiet_libraries():
        for number, answer in enumerate(answers(partial(readable_images, files, readable))):
            write(readable[number].called, answer)
    if isinstance(write, Columns):
        write.begin()  # if no image could be read
    exit_where_unread(files, readable)


def _check_explained(explain: bool, threshold: float | None, as_csv: bool, adapters: Sequence[Path]) -> None:
    """Raise AdaptError if --explain is combined with --threshold, --csv or several adapters."""
    if explain and threshold is not None:
        raise AdaptError("--explain always shows the most probable classes, without a threshold: leave --threshold out")
    if explain and (as_csv or len(adapters) > 1):
        raise AdaptError("--explain takes a single adapter and prints text or JSON: leave --csv and other adapters out")


def _check_together(
    together: bool, at_a_time: int | None, adapters: Sequence[Path], question: str | None, explain: bool
) -> None:
    """Raise AdaptError for options that --together excludes, or that need it."""
    if at_a_time is not None and not together:
        raise AdaptError("--at-a-time divides the images that --together answers: give --together, or leave it out")
    if together and (len(adapters) > 1 or question or explain):
        raise AdaptError("--together takes a single adapter and classifies images: leave --question and --explain out")


def _adapters(first: Path, images: Sequence[Path]) -> list[Path]:
    """Return the adapters before the images. Raises AdaptError if there is no image or an adapter is repeated."""
    if not images:
        raise AdaptError(f"there is no image after {first}; expected an adapter, then images or folders of images")
    adapters = [first, *takewhile(_is_adapter, images[:-1])]
    if len(set(adapters)) < len(adapters):
        raise AdaptError(f"an adapter is given twice in {', '.join(map(str, adapters))}: give each adapter once")
    return adapters


def _by_captions(index: Path, backbone: str | None, device: str, top_k: int) -> Says:
    """Return a function that predicts a name for each image, chosen from the words in an index of captions."""

    def answers(images: Callable[[set[bool]], OpenedImages]) -> Iterator[tuple[Prediction]]:
        from adapt.backbones.load import load_backbone
        from adapt.retrieval.index import load_index
        from adapt.retrieval.vocabulary_free import VocabularyFree

        captions = load_index(index)
        name = backbone or captions.header.backbone
        if not name:
            raise AdaptError(f"the index {index} does not record its backbone: give --backbone")
        namer = VocabularyFree(load_backbone(name, device), captions)  # type: ignore[arg-type]  # it refuses others
        return ((prediction,) for prediction in namer.predict_stream(images({True}), top_k))

    return answers


def _by_adapters(
    adapters: Sequence[Path],
    names: list[str] | None,
    at_use: Sequence[str],
    backbone: str | None,
    device: str,
    answering: Answering,
) -> Says:
    """Return a function that loads the adapters as models, and returns the results of `answering` for all images."""

    def answers(images: Callable[[set[bool]], OpenedImages]) -> Iterator[Any]:
        from adapt.loading import load_many

        models = load_many(adapters, common.given_backbone(backbone, device), names, device=device)
        for model in models:
            common.set_at_use(model, at_use)
        return answering(adapters, models, images({model.backbone.preprocess.turned for model in models}))

    return answers


def _predictions(
    top_k: int,
    threshold: float | None,
    question: str | None,
    adapters: Sequence[Path],
    models: Sequence[Model],
    images: OpenedImages,
) -> Iterator[tuple[Prediction, ...]]:
    """Yield a tuple with the predictions of all models for each image."""
    if len(models) == 1:
        _check_question(adapters[0], models[0], question)
        _note_alone(models[0])
        predictions = models[0].predict_stream(images, top_k, question=question, threshold=threshold)
        return ((prediction,) for prediction in predictions)
    answering = [adapter for adapter, model in zip(adapters, models, strict=True) if not _classifies(model)]
    if answering or question is not None:
        named = f"; {first_of(answering)} answers questions" if answering else ""
        raise AdaptError(
            f"several adapters are shown side by side only if all of them classify images, without --question{named}: "
            "give one adapter at a time"
        )
    from adapt.models.many import predict_many_stream

    return predict_many_stream(models, images, top_k, threshold=threshold)


def _as_set(
    top_k: int,
    threshold: float | None,
    at_a_time: int | None,
    count: int,
    adapters: Sequence[Path],
    models: Sequence[Model],
    images: OpenedImages,
) -> Iterator[tuple[Prediction]]:
    """Yield the predictions of a model for all of the `count` images, answered together."""
    from adapt.models.image_model import ImageModel
    from adapt.progress import counting_bar

    [model] = models
    if not isinstance(model, ImageModel):
        raise AdaptError(f"{adapters[0]} classifies no sets of images: leave --together out")
    with counting_bar("reading images", True) as bar:
        counted = images if bar is None else _counted(images, bar, count)
        predictions = model.predict_together(counted, top_k, at_a_time=at_a_time, threshold=threshold)
    yield from ((prediction,) for prediction in predictions)


def _counted(images: OpenedImages, bar: Progress, count: int) -> Iterator[Image.Image | Path]:
    for number, image in enumerate(images, 1):
        bar(number, count)
        yield image


def _explanations(
    top_k: int, adapters: Sequence[Path], models: Sequence[Model], images: OpenedImages
) -> Iterator[Explanation]:
    from adapt.models.classifier import AdaptedModel
    from adapt.models.explanation import explained
    from adapt.models.prediction import Wanted

    [adapter], [model] = adapters, models
    if not isinstance(model, AdaptedModel):
        raise AdaptError(f"{adapter} has no class descriptors: leave --explain out")
    return explained(model, images, Wanted(top_k), batch_size=64)


def _classifies(model: Model) -> bool:
    from adapt.models.image_model import ImageModel

    return isinstance(model, ImageModel)


def _check_question(adapter: Path, model: Model, question: str | None) -> None:
    """Raise AdaptError if a model gets no question and needs one, or gets one and answers none."""
    if question is None and not model.classifies:
        raise AdaptError(f"{adapter} answers questions: give --question")
    if question is not None and not model.answers_questions:
        raise AdaptError(f"{adapter} classifies images: leave --question out")


def _note_alone(model: Model) -> None:
    """Say that a model which answers sets of images is used for each image by itself."""
    from adapt.methods.base.traits import OverSet, has_trait

    if has_trait(model.method, OverSet):
        logger.warning(
            "each image is answered by itself; %s answers them as one set with --together", model.method.name
        )


def _is_adapter(path: Path) -> bool:
    """Return whether `path` is an adapter file, a hub name, or a folder that contains an adapter, such as a run."""
    inside = ("adapter.safetensors", "adapter_config.json")
    return hub.is_name(path) or path.suffix == ".safetensors" or any((path / name).is_file() for name in inside)


def image_files(images: Sequence[Path]) -> Iterator[ImageFile]:
    """Yield the image files in files, folders and .csv lists. Raises AdaptError for an adapter or an empty folder."""
    for path in images:
        if _is_adapter(path) and not (path.is_dir() and images_in(str(path))):
            raise AdaptError(f"{path} is an adapter; expected an image: give all adapters before the images")
        if not (path.suffix or path.exists()):
            raise AdaptError(f"{path} does not exist; expected an adapter or an image")
        if path.suffix.lower() == ".csv":
            yield from (ImageFile(Path(listed), called) for listed, called in read_paths(path))
        elif path.is_dir():
            paths = images_in(str(path))
            if not paths:
                raise AdaptError(f"the folder {path} contains no image files ({', '.join(IMAGE_SUFFIXES)})")
            note_files(str(path), besides(path, paths))
            yield from (ImageFile(Path(each), each) for each in paths)
        else:
            yield ImageFile(path, str(path))


def readable_images(files: list[ImageFile], read: list[ImageFile], turnings: set[bool]) -> Iterator[Image.Image | Path]:
    """Yield the images that can be decoded and append their files to `read`; print errors for unreadable images.

    `turnings` contains True to rotate images upright by EXIF, or False to read images as stored. If `turnings` contains
    both values, because the models differ, image paths are yielded, and each model decodes the images itself.
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
    """If some of the `files` could not be read, print the number of unreadable files, and exit with status 2."""
    if len(read) < len(files):
        click.echo(f"{len(files) - len(read)} of {len(files)} images could not be read", err=True)
        sys.exit(2)


COMMANDS = {"predict": predict}
