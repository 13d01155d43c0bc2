"""`adapt predict`: its options, and its writers of text, JSON or CSV, for one adapter or several side by side"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, takewhile, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from adapt.cli import options as common
from adapt.cli.image_files import ImageFile, image_files, is_adapter, opened_items
from adapt.cli.options import Argument, Option, command
from adapt.common import hub, plain
from adapt.common.devices import AUTO
from adapt.common.disk import check_free
from adapt.common.errors import AdaptError
from adapt.common.progress import counted, counting_bar
from adapt.common.shown import SEPARATOR, csv_text, shown
from adapt.formats import distinct_names

if TYPE_CHECKING:
    from adapt.models.answer import Reasons
    from adapt.models.prediction import Prediction, Query
    from adapt.models.watch import Window, Windows
    from adapt.models.wrap import Model

    # from whether images are turned upright by EXIF, or read as stored, as the models need them, to those of each item
    Opened = Callable[[set[bool]], Iterable[list[object]]]
    Answer = tuple[Sequence[Prediction], Sequence[Reasons]]  # of each adapter, and reasons of a single one
    Write = Callable[[str, Sequence[Prediction], Sequence[Reasons]], None]  # takes the name of an image first


logger = logging.getLogger("adapt")

_MANY = 32  # images whose features are looked up and kept; of fewer, looking costs more than it saves
_AT_ONCE = 100  # windows of images that are compared together, so that each has images from all over a folder
# what is given with an option that does not go with it
_APART = {
    "--json": ("--csv",),
    "--vocabulary-free": (
        "--classes", "--question", "--explain", "--set", "--threshold", "--sets", "--together", "--at-a-time",
        "--items", "--maps", "--boxes",
    ),
    "--question": ("several adapters",),
    "--explain": ("--threshold", "--csv", "several adapters"),
    "--together": ("several adapters", "--question", "--explain"),
    "items of several images": ("several adapters", "--question", "--explain", "--together"),
    "--boxes": ("--csv", "items of several images", "several adapters"),
    "--maps": ("several adapters", "--question", "items of several images"),
}  # fmt: skip
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
    sets: Annotated[
        float | None,
        Option(
            "Also give the set of classes that holds the true one at this level, such as 0.9, or the interval of a "
            "number (see `adapt sets`).",
            min=0,
            max=1,
            metavar="LEVEL",
        ),
    ] = None,
    classes: common.OtherClasses = None,
    question: Annotated[
        str | None, "Question about each image, for an adapter that answers questions; with --classes, by one of these."
    ] = None,
    together: Annotated[
        bool,
        "Answer all images as one set, with an adapter of a method such as stata, or with --sets; results come at the "
        "end.",
    ] = False,
    at_a_time: Annotated[
        int | None,
        Option("With --together, answer sets of about N images one after the other.", min=1, metavar="N"),
    ] = None,
    items: Annotated[bool, "Answer each folder of images as one item of several images."] = False,
    maps: Annotated[
        Path | None,
        Option(
            "New folder for pictures of where images look abnormal, by an adapter that tells; with --explain, of what "
            "the answers of any adapter rest on.",
            metavar="FOLDER",
        ),
    ] = None,
    explain: Annotated[
        bool, "Show which descriptors of a class decided, for an adapter with some; with --maps, where it looked."
    ] = False,
    boxes: Annotated[
        bool,
        "Look for the adapter's classes in windows of each image, and give the boxes of those that reach --threshold "
        "(0.9 by default); the class is that of the surest window.",
    ] = False,
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
    adapters are shown side by side (`adapt average` makes one of them). Shared computations run only once.

    IMAGES are files, folders (searched at any depth), or a .csv with a column path. A region of an image is written
    "IMAGE#xywh=X,Y,WIDTH,HEIGHT", or as columns x0,y0,x1,y1 of the .csv, in pixels. In folders, symbolic links are
    followed, and each image is used only once. Results are printed as soon as they are ready. An image that cannot be
    read is reported and skipped, and the exit code is then 2.

    Features of 32 images and more are kept in the cache (see `adapt cache`), for later commands on the same images.

    Images of one thing get one answer: give a .csv with the columns path and item, or folders with --items. JSON then
    says what each image contributes.

    With --maps, each image gets two PNGs of the area that the backbone reads: 16-bit values of its pixels, whose scores
    are offset + scale * value, and colours over the image, on one scale for all images. An adapter with a threshold
    of pixels leaves all below it without colour; without one, the less abnormal half has none, and some pixels
    are warm even if no image has a defect. With --explain, a score is how much the log-odds of the answer fall where
    the image is covered, and each image has a scale of its own; that takes 82 passes more.

    With --csv, the columns are image, class and probability. --threshold adds a column answer, and --sets a column
    set, with names separated by bars. --top-k 2 adds class_2 and probability_2, and so on. A regression adapter adds a
    column number, and with --sets the columns low and high. A multi-label adapter adds a column classes, with names
    separated by bars. An adapter that learned from good images alone adds a column p_value. --maps adds map_scores,
    map_overlay, map_scale, map_offset, map_threshold and map_highest. An average adds the columns
    disagreement and nats, and an adapter that was trained with --watch a column strangeness. A cell that a spreadsheet
    would run as a formula begins with an apostrophe.

    \b
    Examples:
      adapt predict adapter.safetensors photo.png
      adapt predict adapter.safetensors photos/ --csv > labels.csv
      adapt predict adapter.safetensors photos/ --threshold 0.8
      adapt predict adapter.safetensors photos/ --sets 0.9
      adapt predict runs/screw photos/ --maps heat
      adapt predict runs/lora photo.jpg --boxes --json
      adapt predict runs/coop runs/lora runs/gda photos/
      adapt predict runs/stata --together photos/ --csv > labels.csv
      adapt predict runs/products products/ --items --json
      adapt predict adapter.safetensors photo.png --classes "cat,dog,parrot"
      adapt predict adapter.safetensors photo.png --question "what is it?"
      adapt predict runs/described photo.png --explain --top-k 2
      adapt predict runs/lora photos/ --explain --maps why
      adapt predict --vocabulary-free captions.safetensors photos/
    """
    top_k = top_k or (ONE_CLASS if as_csv else FEW_CLASSES)
    adapters = [] if vocabulary_free is not None else _adapters(adapter, images)
    files = list(image_files((adapter, *images)[len(adapters) :], items))
    of_items = vocabulary_free is None and any(file.item for file in files)
    given = {
        "--json": as_json, "--csv": as_csv, "--vocabulary-free": vocabulary_free, "--explain": explain,
        "--together": together, "--boxes": boxes, "--maps": maps, "--question": question, "--classes": classes,
        "--set": at_use, "--at-a-time": at_a_time, "--items": items,
        "--threshold": threshold is not None, "--sets": sets is not None, "items of several images": of_items,
        "several adapters": len(adapters) > 1,
    }  # fmt: skip
    for option, others in _APART.items():
        if given[option] and (clashing := [each for each in others if given[each]]):
            raise AdaptError(f"{option} cannot go with {' and '.join(clashing)}: leave one or the other out")
    if at_a_time is not None and not together:
        raise AdaptError("--at-a-time divides the images that --together answers: give --together, or leave it out")
    if maps is not None:
        check_free(maps)
    write: Write = partial(_json if as_json else _lines, [*map(hub.spelled, adapters)])
    if as_csv:
        write = Columns(adapters, threshold is not None, top_k, sets is not None)
    read: list[list[ImageFile]] = []
    opened = partial(opened_items, files, read, of_items)
    from adapt.models.prediction import Query

    names = common.class_names(classes)
    asked = top_k, threshold, False, question, of_items, together, at_a_time, explain, sets
    query, drawn = (
        Query(*asked, maps=maps is not None, boxes=boxes, options=names if question is not None else None),
        None,
    )
    watched: list[tuple[Windows, list[Window]]] = []  # of each adapter, with those that were compared
    if vocabulary_free is not None:
        answers = _by_captions(vocabulary_free, backbone, device, query, opened)
    else:
        from adapt.loading import load_many
        from adapt.methods.base.traits import PoolsBags, trait

        paths, loaded = [*map(hub.spelled, adapters)], common.given_backbone(backbone, device)
        models = load_many(paths, loaded, names, device=device)
        for model in models:
            if of_items and (pools := trait(model.method, PoolsBags)):
                pools.check_views((file.called, file.view) for file in files)
            common.set_at_use(model, at_use)
            if sets is not None:
                click.echo(model.sets_at(sets, of_items, together).promise(sets, model.class_names), err=True)
        if maps is not None:
            from adapt.cli.map_files import MapFiles

            models[0].check_query(query)
            drawn = MapFiles(maps, models[0], explain)
        answers = _by_adapters(models, query, opened, (str(own[0].path) for own in read), len(files))
        if any(model.watch is not None for model in models):
            from adapt.models import watch

            watched = [(watch.Windows(model.watch, at_once=_AT_ONCE), []) for model in models]
            if of_items or together or boxes or (explain and maps is None):  # maps of reasons are of images
                click.echo("warning: the watch sees whole single images alone, and none of these answers", err=True)
    for number, (answer, reasons) in enumerate(answers):
        first = read[number][0]
        if of_items:
            named = zip(answer[0].images or (), read[number], strict=True)
            images_of_item = tuple(each._replace(image=file.called) for each, file in named)
            answer = [replace(answer[0], images=images_of_item)]
        if drawn is not None:
            answer = [drawn.write(first.path.stem, answer[0])]
        write(first.item or first.called, answer, reasons)
        for (own, compared), each in zip(watched, answer):
            compared += own.add(each.sighting, first.called)
    if drawn is not None:
        drawn.finish()
    for name, (own, compared) in zip(adapters, watched):
        compared += own.rest()
        if any(window.alarm for window in compared):
            of_adapter = f"{shown(hub.spelled(name))}: " * (len(adapters) > 1)
            click.echo(f"warning: {of_adapter}{watch.summary(compared)}", err=True)
    if isinstance(write, Columns):
        write.begin()  # if no image could be read
    if unread := len(files) - sum(map(len, read)):
        click.echo(f"{unread} of {len(files)} images could not be read", err=True)
        sys.exit(2)


def _by_captions(index: Path, backbone: str | None, device: str, query: Query, opened: Opened) -> Iterator[Answer]:
    """Yield a name for each image, chosen from the words in an index of captions."""
    from adapt.backbones.load import load_backbone
    from adapt.retrieval.index import load_index
    from adapt.retrieval.vocabulary_free import VocabularyFree

    captions = load_index(index)
    name = backbone or captions.header.backbone
    if not name:
        raise AdaptError(f"the index {index} does not record its backbone: give --backbone")
    namer = VocabularyFree(load_backbone(name, device), captions)  # type: ignore[arg-type]  # it refuses others
    for prediction in namer.predict_stream(chain.from_iterable(opened({True})), query.top_k):
        yield (prediction,), ()


def _by_adapters(
    models: Sequence[Model], query: Query, opened: Opened, paths: Iterable[str], count: int
) -> Iterator[Answer]:
    """Yield the answers of all models to the query for each image or item; there are `count` images, of these paths."""
    from adapt.methods.base.traits import OverSet, has_trait

    of_items = opened({model.backbone.preprocess.turned for model in models})
    images: Iterable[Any] = of_items if query.items else chain.from_iterable(of_items)
    if len(models) > 1:
        from adapt.models.many import SideBySide

        yield from ((row, ()) for row in SideBySide(models).ask(images, query))
        return
    [model] = models
    if query.together:
        with counting_bar("reading images", True) as bar:
            answers: Iterable[Any] = list(model.ask(counted(images, count, bar), query))
    else:
        answers = model.ask(images, query)
        if count >= _MANY and model.watch is None and not model.method.views:
            from adapt.models.features import answers_of_files, keeps_features
            from adapt.models.prediction import Query

            alone = query == Query(query.top_k, query.threshold, sets=query.sets)
            if alone and keeps_features(model, cache=True):  # an image is opened before its path is known
                answers = answers_of_files(
                    model, ((path, one) for one, path in zip(images, paths, strict=False)), query
                )
        if not (query.items or query.explain) and has_trait(model.method, OverSet):
            logger.warning(
                "each image is answered by itself; %s answers them as one set with --together", model.method.name
            )
    for answer in answers:
        yield ((answer,), ()) if query.maps or not query.explain else ((answer.prediction,), answer.reasons)


def _adapters(first: Path, images: Sequence[Path]) -> list[Path]:
    """Return the adapters before the images. Raises AdaptError if there is no image or an adapter is repeated."""
    if not images:
        raise AdaptError(f"there is no image after {first}; expected an adapter, then images or folders of images")
    adapters = [first, *takewhile(is_adapter, images[:-1])]
    if len(set(adapters)) < len(adapters):
        raise AdaptError(f"an adapter is given twice in {', '.join(map(str, adapters))}: give each adapter once")
    return adapters


class Columns:
    """A CSV writer that prints one row per image, with the most probable class and its probability for each adapter.

    A regression adapter adds a number. A multi-label adapter adds all predicted classes. For other adapters,
    `threshold` adds the answer, which may be `none`, and `sets` the set of classes or the ends of the interval. The
    next most probable classes follow, up to `ranks` in total.
    """

    def __init__(self, adapters: Sequence[Path], threshold: bool, ranks: int, sets: bool = False) -> None:
        self._adapters = distinct_names(adapters) if len(adapters) > 1 else [""]
        self._threshold, self._sets, self._ranks, self._begun = threshold, sets, ranks, False

    def begin(self, predictions: Sequence[Prediction] = ()) -> None:
        """Print the header once, with the columns that the `predictions` for the first image need."""
        if self._begun:
            return
        self._begun = True
        if not predictions:
            from adapt.models.prediction import Prediction

            predictions = [Prediction("", 0.0, (), set=() if self._sets else None)] * len(self._adapters)
        header = ["image" if predictions[0].images is None else "item"]
        for adapter, prediction in zip(self._adapters, predictions, strict=True):
            first, *names = (name for name, _ in self._columns(prediction))
            header += [adapter, *(f"{adapter} {name}" for name in names)] if adapter else [first, *names]
        _print_csv(header)

    def __call__(self, image: str, predictions: Sequence[Prediction], reasons: Sequence[Reasons] = ()) -> None:
        self.begin(predictions)
        _print_csv([image, *(cell for prediction in predictions for _, cell in self._columns(prediction))])

    def _columns(self, prediction: Prediction) -> Iterator[tuple[str, str]]:
        """Yield the names and cells of one adapter's `prediction`; cells are empty if there are too few classes."""
        ranked = [(name, f"{probability:.6f}") for name, probability in prediction.top[: self._ranks]]
        best, *others = [*ranked, *[("", "")] * (self._ranks - len(ranked))]
        yield from zip(("class", "probability"), best)
        if prediction.number is not None:
            yield "number", f"{prediction.number:.6g}"
        if prediction.p_value is not None:
            yield "p_value", f"{prediction.p_value:.6g}"
        for name, value in (prediction.drawn or {}).items():
            yield f"map_{name}", f"{value:.9g}" if isinstance(value, float) else str(value or "")
        yield from zip(("disagreement", "nats"), (f"{value:.6g}" for value in prediction.disagreement or ()))
        if prediction.sighting is not None:
            yield "strangeness", f"{prediction.sighting.strangeness:.3f}"
        if prediction.class_names is not None:
            yield "classes", SEPARATOR.join(prediction.class_names) or prediction.class_name
        elif self._threshold:
            yield "answer", prediction.class_name
        if prediction.set is not None:
            yield "set", SEPARATOR.join(prediction.set)
        yield from zip(("low", "high"), (f"{end:.6g}" for end in prediction.interval or ()))
        for rank, pair in enumerate(others, 2):
            yield from zip((f"class_{rank}", f"probability_{rank}"), pair)


def _print_csv(row: Iterable[str]) -> None:
    """Print a CSV row in UTF-8, with control characters escaped; non-UTF-8 bytes are kept, so that paths stay valid."""
    cells = ("".join(each if "\udc80" <= each <= "\udcff" else shown(each) for each in text) for text in row)
    click.echo(csv_text([cells]).encode(errors="surrogateescape"), nl=False)


def _json(adapters: Sequence[str], image: str, predictions: Sequence[Prediction], reasons: Sequence[Reasons]) -> None:
    """Print the predictions for one image, with the reasons for each class of a single one, as JSON."""
    told = [each.plain() for each in predictions]
    if len(adapters) > 1:
        click.echo(plain.dump({"image": image, "adapters": dict(zip(adapters, told, strict=True))}))
        return
    if reasons:
        told[0]["top"] = [each | own.plain() for each, own in zip(told[0]["top"], reasons, strict=True)]
    click.echo(plain.dump({"image" if predictions[0].images is None else "item": image, **told[0]}))


def _lines(adapters: Sequence[str], image: str, predictions: Sequence[Prediction], reasons: Sequence[Reasons]) -> None:
    """Print the predictions for one image as text: those of several adapters side by side, or a single one's.

    The reasons for each class of a single one follow the class.
    """
    if len(adapters) > 1:
        _side_by_side(adapters, image, predictions)
        return
    click.echo(shown(image) + _answer(predictions[0]))
    if (drawn := predictions[0].drawn) is not None:
        click.echo(f"  map up to {drawn['highest']:.4f}  {shown(drawn['overlay'])}")
    for each, own in zip_longest(predictions[0].top, reasons):
        if own is None:
            click.echo(f"  {_line(each)}")
            continue
        click.echo(f"  {_line(each)}, cosines: mean {own.mean:.3f}, largest {own.descriptors[0][1]:.3f}")
        for descriptor, cosine in own.descriptors:
            click.echo(f"           {cosine:6.3f}  {shown(descriptor)}")


def _side_by_side(adapters: Sequence[str], image: str, predictions: Sequence[Prediction]) -> None:
    columns = [
        [shown(name) + _answer(each), *map(_line, each.top)] for name, each in zip(adapters, predictions, strict=True)
    ]
    widths = [max(map(len, column)) for column in columns]
    click.echo(shown(image))
    for row in zip_longest(*columns, fillvalue=""):
        click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _answer(prediction: Prediction) -> str:
    """Return the text after an image's name: the number or disagreement, the set, and an answer other than the top."""
    if prediction.boxes is not None:
        return f"  {plain.dump([box.plain() for box in prediction.boxes])}"
    number = "" if prediction.number is None else f"  {prediction.number:.3g}"
    number += "" if prediction.p_value is None else f"  p = {prediction.p_value:.3g}"
    number += "" if prediction.interval is None else " ({:.3g} to {:.3g})".format(*prediction.interval)
    if apart := prediction.disagreement:
        number = f"  {100 * apart.share:.0f} % of the adapters disagree ({apart.nats:.3f} nats)"
    if prediction.set is not None:
        return f"{number}  {{{', '.join(map(shown, prediction.set))}}}"
    if prediction.class_names is None and prediction.class_name == prediction.top[0][0]:
        return number
    return f"{number}  {', '.join(map(shown, prediction.class_names or [prediction.class_name]))}"


def _line(each: tuple[str, float]) -> str:
    return f"{100 * each[1]:5.1f} %  {shown(each[0])}"
