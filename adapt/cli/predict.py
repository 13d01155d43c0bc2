"""`adapt predict`"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapt.cli import options as common
from adapt.cli.image_files import ImageFile, by_item, exit_where_unread, image_files, is_adapter, opened_items
from adapt.cli.options import Argument, Option, command
from adapt.cli.predictions import Columns, writer
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError
from adapt.common.progress import counting_bar
from adapt.common.shown import first_of

if TYPE_CHECKING:
    from PIL import Image

    from adapt.common.progress import Progress
    from adapt.models.prediction import Prediction, Query
    from adapt.models.wrap import Model

    # from whether images are turned upright by EXIF, or read as stored, as the models need them
    Opened = Callable[[set[bool]], Iterable[Any]]

logger = logging.getLogger("adapt")

ONE_CLASS, FEW_CLASSES = 1, 5  # shown per image by default: in a CSV, and in text or JSON


@command()
def predict(
    adapter: Path,
    images: Annotated[tuple[Path, ...], Argument("[ADAPTER]... IMAGES...")] = (),
    *,
    top_k: Annotated[
        int | None, Option("Classes to show per image, the most probable first.  [default: 5; with --csv 1]", min=1)
    ] = None,
    threshold: Annotated[
        float | None,
        Option(
            "Answer none if no class reaches this probability; a multi-label adapter names all that do.  "
            "[default for multi-label: 0.5]",
            min=0,
            max=1,
        ),
    ] = None,
    classes: common.OtherClasses = None,
    question: Annotated[str | None, "Question about each image, for an adapter that answers questions."] = None,
    together: Annotated[
        bool, "Answer all images as one set, with an adapter of a method such as stata; results come at the end."
    ] = False,
    at_a_time: Annotated[
        int | None,
        Option("With --together, answer sets of about N images one after the other.", min=1, metavar="N"),
    ] = None,
    items: Annotated[bool, "Answer each folder of images as one item of several images."] = False,
    explain: Annotated[bool, "Show which descriptors of a class decided, for an adapter with some."] = False,
    vocabulary_free: Annotated[
        Path | None,
        Option(
            "Name images without an adapter, by words from the captions of an index (see `adapt index`).",
            metavar="INDEX",
        ),
    ] = None,
    at_use: common.AtUse = (),
    backbone: common.OfAdapter = None,
    device: common.RunsOn = AUTO,
    as_json: Annotated[bool, Option("Print one JSON object per line.", "--json")] = False,
    as_csv: Annotated[bool, Option("Print a CSV row per image, with the columns described above.", "--csv")] = False,
) -> None:
    """Classify IMAGES with ADAPTER, or answer a question about each image.

    ADAPTER is a file, the folder of a run, or a name on the hub such as hf://user/name. The predictions of several
    adapters are shown side by side, and shared computations run only once.

    IMAGES are files, folders (searched at any depth), or a .csv with a column path. A region of an image is written
    "IMAGE#xywh=X,Y,WIDTH,HEIGHT", or as columns x0,y0,x1,y1 of the .csv, in pixels. In folders, symbolic links are
    followed, and each image is used only once. Results are printed as soon as they are ready. An image that cannot be
    read is reported and skipped, and the exit code is then 2.

    Images of one thing get one answer: give a .csv with the columns path and item, or folders with --items. JSON then
    says what each image contributes.

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
      adapt predict runs/products products/ --items --json
      adapt predict adapter.safetensors photo.png --classes "cat,dog,parrot"
      adapt predict adapter.safetensors photo.png --question "what is it?"
      adapt predict runs/described photo.png --explain --top-k 2
      adapt predict --vocabulary-free captions.safetensors photos/
    """
    if as_json and as_csv:
        raise AdaptError("--json and --csv are two formats of one output: give only one of them")
    others = classes or question or explain or at_use or together or at_a_time or items or threshold is not None
    if vocabulary_free is not None and others:
        raise AdaptError(
            "--vocabulary-free predicts words from captions: leave out --classes, --question, --explain, --set, "
            "--threshold, --together, --at-a-time and --items"
        )
    top_k = top_k or (ONE_CLASS if as_csv else FEW_CLASSES)
    adapters = [] if vocabulary_free is not None else _adapters(adapter, images)
    files = list(image_files((adapter, *images)[len(adapters) :], items))
    of_items = vocabulary_free is None and any(file.item for file in files)
    _check_options(len(adapters), as_csv, threshold, question, together, at_a_time, explain, of_items)
    write = Columns(adapters, threshold is not None, top_k) if as_csv else writer(adapters, as_json, explain)
    read: list[list[ImageFile]] = []
    opened = partial(_opened, of_items, files, read)
    with common.quiet_libraries():
        from adapt.models.prediction import Query

        query = Query(top_k, threshold, False, question, of_items, together, at_a_time, explain)
        if vocabulary_free is not None:
            answers = _by_captions(vocabulary_free, backbone, device, query, opened)
        else:
            from adapt.loading import load_many

            own = common.given_backbone(backbone, device)
            models = load_many(adapters, own, common.class_names(classes), device=device)
            for model in models:
                common.set_at_use(model, at_use)
            answers = _by_adapters(adapters, models, query, opened, len(files))
        for number, answer in enumerate(answers):
            first = read[number][0]
            write(first.item or first.called, _with_names(answer, read[number]) if of_items else answer)
    if isinstance(write, Columns):
        write.begin()  # if no image could be read
    exit_where_unread(files, list(chain.from_iterable(read)))


def _check_options(
    adapters: int,
    as_csv: bool,
    threshold: float | None,
    question: str | None,
    together: bool,
    at_a_time: int | None,
    explain: bool,
    items: bool,
) -> None:
    """Raise AdaptError for options that exclude each other, before torch is imported."""
    if explain and threshold is not None:
        raise AdaptError("--explain always shows the most probable classes, without a threshold: leave --threshold out")
    if explain and (as_csv or adapters > 1):
        raise AdaptError("--explain takes a single adapter and prints text or JSON: leave --csv and other adapters out")
    if at_a_time is not None and not together:
        raise AdaptError("--at-a-time divides the images that --together answers: give --together, or leave it out")
    if together and (adapters > 1 or question or explain):
        raise AdaptError("--together takes a single adapter and classifies images: leave --question and --explain out")
    if items and (adapters > 1 or question or explain or together):
        raise AdaptError(
            "items of several images are classified by a single adapter, without --question, --explain and "
            "--together: give one adapter, and leave these options out"
        )


def _by_captions(
    index: Path, backbone: str | None, device: str, query: Query, opened: Opened
) -> Iterator[tuple[Prediction]]:
    """Yield a name for each image, chosen from the words in an index of captions."""
    from adapt.backbones.load import load_backbone
    from adapt.retrieval.index import load_index
    from adapt.retrieval.vocabulary_free import VocabularyFree

    captions = load_index(index)
    name = backbone or captions.header.backbone
    if not name:
        raise AdaptError(f"the index {index} does not record its backbone: give --backbone")
    namer = VocabularyFree(load_backbone(name, device), captions)  # type: ignore[arg-type]  # it refuses others
    for prediction in namer.predict_stream(opened({True}), query.top_k):
        yield (prediction,)


def _by_adapters(
    adapters: Sequence[Path], models: Sequence[Model], query: Query, opened: Opened, count: int
) -> Iterator[Any]:
    """Yield the answers of all models to the query for each image or item; there are `count` images."""
    from adapt.methods.base.traits import OverSet, has_trait

    images = opened({model.backbone.preprocess.turned for model in models})
    if len(models) > 1:
        _check_all_classify(adapters, models, query.question)
        from adapt.models.many import predict_many_stream

        yield from predict_many_stream(models, images, query.top_k, threshold=query.threshold)
        return
    [model] = models
    if query.question is None and not model.classifies:
        raise AdaptError(f"{adapters[0]} answers questions: give --question")
    if query.question is not None and not model.answers_questions:
        raise AdaptError(f"{adapters[0]} classifies images: leave --question out")
    if query.together:
        with counting_bar("reading images", True) as bar:
            answers: Iterable[Any] = list(model.ask(images if bar is None else _counted(images, bar, count), query))
    else:
        answers = model.ask(images, query)
        if not (query.items or query.explain) and has_trait(model.method, OverSet):
            logger.warning(
                "each image is answered by itself; %s answers them as one set with --together", model.method.name
            )
    for answer in answers:
        yield answer if query.explain else (answer,)


def _opened(
    items: bool, files: Sequence[ImageFile], read: list[list[ImageFile]], turnings: set[bool]
) -> Iterable[Image.Image | Path | list[Image.Image | Path]]:
    """Return an iterator over images, or over items of several images; the files of each are appended to `read`."""
    opened = opened_items(by_item(files), read, turnings)
    return opened if items else chain.from_iterable(opened)


def _with_names(answer: Sequence[Prediction], files: Sequence[ImageFile]) -> list[Prediction]:
    """Return the answer about an item, with the names of its images."""
    [prediction] = answer
    named = zip(prediction.images or (), files, strict=True)
    return [replace(prediction, images=tuple(each._replace(image=file.called) for each, file in named))]


def _adapters(first: Path, images: Sequence[Path]) -> list[Path]:
    """Return the adapters before the images. Raises AdaptError if there is no image or an adapter is repeated."""
    if not images:
        raise AdaptError(f"there is no image after {first}; expected an adapter, then images or folders of images")
    adapters = [first, *takewhile(is_adapter, images[:-1])]
    if len(set(adapters)) < len(adapters):
        raise AdaptError(f"an adapter is given twice in {', '.join(map(str, adapters))}: give each adapter once")
    return adapters


def _counted(images: Iterable[object], bar: Progress, count: int) -> Iterator[object]:
    for number, image in enumerate(images, 1):
        bar(number, count)
        yield image


def _check_all_classify(adapters: Sequence[Path], models: Sequence[Model], question: str | None) -> None:
    """Raise AdaptError if one of several models answers questions."""
    answering = [adapter for adapter, model in zip(adapters, models, strict=True) if not model.classifies]
    if answering or question is not None:
        named = f"; {first_of(answering)} answers questions" if answering else ""
        raise AdaptError(
            f"several adapters are shown side by side only if all of them classify images, without --question{named}: "
            "give one adapter at a time"
        )
