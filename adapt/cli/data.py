"""`adapt data`: `list`, `check`, `show`, `match`, `filter`, `retrieve`, `describe` and `pairs`"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, Unpack

import click

from adapt import tasks
from adapt.cli import CommandGroup
from adapt.cli import options as common
from adapt.cli.options import Argument, Option, command
from adapt.common import plain
from adapt.common.devices import AUTO
from adapt.common.disk import check_free, new_folder, replacing, write_csv, write_text
from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.common.progress import counting_bar
from adapt.common.shown import shown, spread
from adapt.data.emoji import bundled
from adapt.data.readers import load, published, torchvision_sets
from adapt.data.readers.folder import images_in
from adapt.data.readers.names_file import read_descriptors

if TYPE_CHECKING:
    from adapt.data.checks import Finding, Looked
    from adapt.data.item import Item
    from adapt.data.readers.published import Published
    from adapt.data.split import Split
    from adapt.labelling.describing import RowMaker
    from adapt.models.native_vlm import ChatModel

_Folder = Annotated[str | None, Argument("[ROOT]")]  # which --root may name too


@click.group(cls=CommandGroup)
def data() -> None:
    """List the papers' data sets, check data before training, and view data.

    \b
    Examples:
      adapt data list
      adapt data check eurosat data
      adapt data check photos
      adapt data check photos --out lists
      adapt data show photos --out photos.png
    """


@command("list", short_help="List the data sets known by name.", group=data)
def list_sets() -> None:
    """List the data sets that are available by name, and where to put the files of the papers' data sets."""
    click.echo(f"{'name':16} {'classes':>7} {'train':>9} {'val':>6} {'test':>6}  files under ROOT")
    for name, each in published.sets().items():
        sizes = " ".join(f"{size:{width},}" for size, width in zip(each.sizes, (9, 6, 6), strict=True))
        files = ", ".join([*(f"{folder}/" for folder in each.images), *each.lists])
        click.echo(f"{name:16} {each.classes:7,} {sizes}  {each.folder}/: {files}")
    click.echo("\nWhat to download and from where: adapt data check NAME ROOT")
    whole = [name for name in bundled.names() if "@" not in name]
    styles = sorted({style for name in bundled.names() for style in name.split("@")[1:]})
    click.echo(f"Bundled: {', '.join(whole)}")
    click.echo(f"         of one style by NAME@STYLE: {', '.join(styles)}")
    click.echo(f"Others:  torchvision:NAME ({', '.join(torchvision_sets.names())}),")
    click.echo("         hf:NAME_OR_FOLDER, an image folder, a .csv, .json or .parquet")


@command(short_help="Check files and labels before training.", group=data)
def check(
    source: str,
    folder: _Folder = None,
    *,
    root: common.Root = None,
    columns: common.ColumnNames = None,
    out: Annotated[Path | None, "New folder for lists of the files concerned, a CSV per finding."] = None,
    backbone: Annotated[str | None, "Native vision-language model whose tokens are counted in conversations."] = None,
) -> None:
    """Check SOURCE for files and labels that would stop training, and for anything unusual.

    SOURCE is a name from `adapt data list`, an image folder, a .csv, .json or .parquet. ROOT is the folder of
    published data sets, or that paths inside a list or table are relative to. Nothing is downloaded.

    Problems stop training. They are printed one per line, and the exit code is then 2. Problems are images that are
    missing, empty, truncated or need a library (HEIC), masks and regions that do not fit the image, blank masks of
    damaged images, classes without a training image, and numbers of images that differ from the published numbers.

    Notes do not stop training. Notes are about image files that are not in the data, identical images with two labels,
    copies of training images in val or test, copies within train, val or test, classes with a single image, photographs
    that EXIF rotates, files with a wrong suffix, 16-bit, CMYK and animated images, and images of more than 24
    megapixels. --out lists all these files.
    """
    from adapt.data import checks
    from adapt.data.check import check_root

    if out is not None:
        check_free(out)
    entry = published.find(source)
    split, inconsistent = checks.read_leniently(source, _root(folder, root), columns)
    parts = (*common.PARTS, "unlabelled") if split.unlabelled else common.PARTS
    each_part = {part: getattr(split, part) for part in parts}
    alone = {part for part, own in each_part.items() if own and not (own[0].path or own[0].task.mixes_texts)}
    sizes = ", ".join(f"{part} {len(own):,}" + " texts" * (part in alone) for part, own in each_part.items())
    items = list(split.items())
    what = split.kind if items else "no images"
    classes = len(split.class_names)
    contents = f"{classes:,} class{'es' * (classes > 1)}; images" if classes else what
    click.echo(f"{shown(split.name)}: {contents}: {sizes}")
    facts = [*split.task.facts(items)] if items else []
    line_of_tokens, too_long = ("", []) if backbone is None or not items else _tokens(items, backbone, split.turned)
    for line in [*facts, line_of_tokens] if line_of_tokens else facts:
        click.echo(f"  {line}")
    check_root(split)
    with counting_bar("checking", True) as bar:
        looked = checks.look(source, split, inconsistent, bar)
    findings = [*_wrong_counts(entry, split), *too_long, *checks.found_in(looked)]
    _print_findings(looked, findings)
    if out is not None:
        _write_lists(out, findings)
    if problems := sum(len(finding.rows) for finding in findings if finding.stops):
        summary = f"{problems:,} problem{'s' * (problems > 1)} in {shown(split.name)}. {entry.advice if entry else ''}"
        click.echo(summary.rstrip(), err=True)
        sys.exit(2)


def _tokens(items: Sequence[Item], name: str, turned: bool) -> tuple[str, list[Finding]]:
    """Return a line about the tokens that items take as conversations, and a finding that lists those too long."""
    from adapt.data.checks import Finding, ListRow

    model, task = _reading_model(None, name, "cpu", turned), tasks.of(items)
    if model.backbone.kind not in task.backbones:
        raise AdaptError(
            f"{name} is a {model.backbone.kind}, which reads no {task.items_are} as conversations: leave --backbone out"
        )
    lengths = model.lengths(items)
    most = model.backbone.longest
    rows: list[ListRow] = [
        {"path": item.name, "tokens": length} for item, length in zip(items, lengths) if length > most
    ]
    line = f"{len(rows):,} of {len(items):,} conversations take more than the {most:,} tokens that {name} reads"
    found = [Finding("tokens", line, rows, stops=True)] if rows else []
    return f"{spread(lengths)} tokens, of which {name} reads {most:,}", found


def _print_findings(looked: Looked, findings: Sequence[Finding]) -> None:
    """Print the problems of a data set, or a message that there are no problems, and then the notes."""
    for finding in findings:
        if finding.stops:
            click.echo(shown(finding.line))
    if not any(finding.stops for finding in findings):
        images, others = len(looked.of_parts), len(looked.passed_over)
        files = "1 other file is" if others == 1 else f"{others:,} other files are"
        click.echo(
            f"All {images:,} images of the data can be used; {files} left out." if others else "All images can be used."
        )
    for finding in findings:
        if not finding.stops:
            click.echo(f"Note: {shown(finding.line)}")


def _write_lists(out: Path, findings: Sequence[Finding]) -> None:
    lists = grouped((finding.list, row) for finding in findings for row in finding.rows)
    if not lists:
        click.echo(f"Nothing was found, so no list was written to {shown(str(out))}.")
        return
    with new_folder(out) as folder:
        for name, rows in lists.items():
            write_csv(folder / f"{name}.csv", rows)
    listed = ", ".join(f"{name}.csv ({len(rows):,})" for name, rows in lists.items())
    click.echo(f"{out}  {listed}")


def _root(folder: str | None, root: str | None) -> str | None:
    if None not in (folder, root) and folder != root:
        raise AdaptError(f"the root is given twice, as {folder} and as --root {root}: give only one of them")
    return root or folder


def _wrong_counts(entry: Published | None, split: Split) -> list[Finding]:
    from adapt.data.checks import Finding

    counts = [(part, len(getattr(split, part)), size) for part, size in zip(common.PARTS, entry.sizes if entry else ())]
    return [
        Finding(
            "counts",
            f"{part}: {count:,} images; {size:,} are published",
            [{"part": part, "images": count, "published": size}],
            stops=True,
        )
        for part, count, size in counts
        if count != size
    ]


@command(short_help="Draw a few images of each class.", group=data)
def show(
    source: str,
    folder: _Folder = None,
    *,
    root: common.Root = None,
    out: Annotated[Path, "PNG file to write."],
    part: Annotated[Literal["train", "val", "test"] | None, "Part to draw.  [default: train, or else test]"] = None,
    images: Annotated[int, Option("Images per class.", min=1)] = 6,
    names: common.ReadableNames = None,
    font: Annotated[str | None, "TrueType file, for class names in letters that DejaVu Sans lacks."] = None,
) -> None:
    """Draw a few images of each class of SOURCE, with the class names, in one PNG.

    SOURCE and ROOT are the same as for `adapt data check`. An image that cannot be decoded is crossed out.
    """
    from adapt.data.contact_sheet import contact_sheet

    check_free(out, "file")
    split = load(source, _root(folder, root), names)
    drawn = split.train if split.train and split.train[0].path else split.test
    items = getattr(split, part) if part else drawn
    with counting_bar("drawing", True) as bar:
        sheet = contact_sheet(items, split.class_names, images, font=font, progress=bar)
    with replacing(out) as temporary:
        sheet.save(temporary, "PNG")
    click.echo(f"{out}  {sheet.width} x {sheet.height} pixels, {len(split.class_names):,} classes")


@command(short_help="Pair images with the texts nearest to them.", group=data)
def match(
    source: str,
    folder: _Folder = None,
    *,
    root: common.Root = None,
    texts: Annotated[str, "Texts of each class: a .json {class: [text, ...]} or a .csv (class,descriptor)."],
    out: Annotated[Path, "CSV file to write."],
    part: Annotated[Literal["train", "val", "test"], "Part to match."] = "train",
    top: Annotated[int, Option("Texts per image.", min=1)] = 5,
    backbone: Annotated[str, "Backbone that compares images with texts (see `adapt backbones`)."],
    device: common.RunsOn = AUTO,
) -> None:
    """Write a CSV that pairs each image of SOURCE with the texts of its class that have the most similar features.

    The CSV has one row per pair, with the columns path and text. Paths are relative to the root folder of the data.
    """
    split, descriptors = _to_list(source, _root(folder, root), out), read_descriptors(texts)
    split.check_classes()
    items = [item for item in getattr(split, part) if item.path]
    if not items:
        raise AdaptError(f"{shown(split.name)} has no {part} images: choose another --part")
    from adapt.backbones.load import load_backbone
    from adapt.models.dual_encoder import AdaptedModel
    from adapt.models.unadapted import unadapted
    from adapt.retrieval.matching import match as matched

    model = unadapted(load_backbone(backbone, device).turning(split.turned), split.class_names)
    if not isinstance(model, AdaptedModel):
        raise AdaptError(f"{backbone} is a {model.backbone.kind}, which compares no images with texts: give a CLIP")
    with counting_bar("encoding", True) as bar:
        nearest = matched(model, items, descriptors, top, progress=bar)
    rows = [
        {"path": item.path.removeprefix(split.root).lstrip("/"), "text": text}
        for item, texts_of_item in zip(items, nearest, strict=True)
        for text in texts_of_item
    ]
    write_csv(out, rows)
    click.echo(f"{out}  {len(rows):,} pairs of {len(items):,} images; their root is {split.root}")


@command("filter", short_help="Keep the training items that surprise a model least.", group=data)
def filter_by_perplexity(
    source: str,
    folder: _Folder = None,
    *,
    root: common.Root = None,
    backbone: Annotated[
        str | None, "Native vision-language model that reads the answers (see `adapt backbones`)."
    ] = None,
    adapter: Annotated[Path | None, "Adapter of the model that reads the answers."] = None,
    keep: Annotated[float, Option("Share of training items kept.", kind=click.FloatRange(0, 1, min_open=True))],
    out: Annotated[Path, "JSONL file of conversations to write."],
    device: common.RunsOn = AUTO,
) -> None:
    """Write the training items of SOURCE whose answers a model finds least surprising, and all of val and test.

    SOURCE has conversations, questions or classes of images; the model is a native vision-language model. The file has
    a row for each conversation, with its perplexity, and is read by --data. Paths are relative to the root folder.

    \b
    Example:
      adapt data filter mine.json --backbone mini-vlm --keep 0.8 --out kept.jsonl
    """
    split = _to_list(source, _root(folder, root), out)
    from adapt.data.readers.chats_file import row_of
    from adapt.evaluation import perplexity
    from adapt.evaluation.inference import Inference

    perplexity.check_ranked(split)
    model = _reading_model(adapter, backbone, device, split.turned)
    with counting_bar("reading", True) as bar:
        values = perplexity.perplexities(model, split.train, Inference(cache=False, progress=bar))
    kept = perplexity.lowest(values, keep)
    parts = {part: getattr(split, part) for part in common.PARTS} | {"train": [split.train[row] for row in kept]}
    question = model.backbone.question
    rows = [row_of(item, part, split.root, question) for part, items in parts.items() for item in items]
    for row, place in zip(rows, kept):
        row["perplexity"] = values[place]
    write_text(out, "".join(f"{plain.dump(row)}\n" for row in rows))
    most = max(values[place] for place in kept)
    click.echo(
        f"{out}  {len(kept):,} of {len(values):,} training items, of perplexity up to {most:.3g}; the root of their "
        f"images is {split.root}"
    )


@command(short_help="Put passages from an index before questions.", group=data)
def retrieve(
    source: str,
    folder: _Folder = None,
    *,
    root: common.Root = None,
    index: Annotated[Path, "Index of texts, or of pairs with the passage as entity, made by `adapt index`."],
    k: Annotated[int, Option("Passages before a question.", min=1, max=100)] = 3,
    right: Annotated[
        float | None,
        Option("Noise in training: wrong passages, with the right one among them in this share.", min=0, max=1),
    ] = None,
    seed: Annotated[int, Option("Seed for the wrong passages and the order.", min=0)] = 0,
    out: Annotated[Path, "JSONL file of conversations to write."],
    device: common.RunsOn = AUTO,
) -> None:
    """Write the conversations or questions of SOURCE with the passages of an index nearest to their images (RoRA-VLM).

    They stand before the first question, which finds them if there is no image. With --right, a training conversation
    gets its right passage, the nearest that contains the answer, in this share among wrong ones, or else wrong ones
    alone. Val and test have the passages that `adapt chat --index` finds.

    \b
    Example:
      adapt data retrieve chats.jsonl --index known.safetensors --right 0.8 --out retrieved.jsonl
    """
    from adapt.retrieval.index import load_index
    from adapt.retrieval.passages import Retriever

    split = _to_list(source, _root(folder, root), out)
    with counting_bar("searching", True) as bar:
        rows = Retriever(load_index(index), device).rows(split, k, right, seed, bar)
    write_text(out, "".join(f"{plain.dump(row)}\n" for row in rows))
    drawn = sum(row["source"]["drawn"] for row in rows)
    click.echo(f"{out}  {len(rows):,} conversations, {drawn:,} of them with drawn passages; their root is {split.root}")


class _Made(TypedDict):
    """The options of commands whose rows a native vision-language model writes."""

    backbone: Annotated[str | None, "Native vision-language model that writes (see `adapt backbones`)."]
    adapter: Annotated[Path | None, "Adapter of the model that writes."]
    tokens: Annotated[int, Option("Most tokens of an answer.", min=1, default=128)]
    resume: Annotated[bool, "Keep the rows of an interrupted --out, and make the others."]
    device: Annotated[str, Option("Device to run on, such as cpu or cuda:1.", default=AUTO)]


@command(group=data)
def describe(
    photos: Path,
    *,
    prompt: Annotated[str | None, "What the model is asked for.  [default: Describe the image.]"] = None,
    labels: Annotated[bool, "Write the class of each image, too, and its part where the folder has parts."] = False,
    out: Annotated[Path, "JSONL file of captions to write."],
    **made: Unpack[_Made],
) -> None:
    """Write a caption of each image in the folder PHOTOS by a native vision-language model.

    Each row has the image, its caption, the model and the prompt. --data reads the file, with --root PHOTOS: as pairs
    of images and texts, or with --labels as images with classes, which the method gpt4image reads.

    \b
    Examples:
      adapt data describe photos/ --backbone mini-vlm --out captions.jsonl
      adapt data describe photos/ --labels --backbone mini-vlm --out described.jsonl
    """
    from adapt.labelling.describing import Describer

    known = _classes(photos) if labels else {}
    settings = {"known": known} | ({} if prompt is None else {"prompt": prompt})
    rows = _written(photos, out, Describer, settings, list(known), **made)
    click.echo(f"{out}  {len(rows):,} captions; their root is {photos}")


def _classes(photos: Path) -> dict[str, dict[str, str]]:
    """Return the class of each labelled image in a folder, and its part if the folder has parts, by its name there."""
    if not photos.is_dir():
        raise AdaptError(f"{photos} is no folder: --labels describes a folder with a folder of each class")
    split = load(os.path.abspath(photos))  # a folder, though a bundled data set may have its name
    split.check_classes()
    return {
        os.path.relpath(item.path, photos): {"label": item.answer} | ({} if split.ratios else {"split": part})
        for part in common.PARTS
        for item in getattr(split, part)
    }


@command(group=data)
def pairs(
    photos: Path,
    *,
    good: Annotated[str | None, "Prompt for the chosen answers, which asks for the image step by step."] = None,
    share: Annotated[float, Option("Share of rejected answers that are about a damaged image.", min=0, max=1)] = 0.5,
    seed: Annotated[int, Option("Seed for the prompts and the damage of each image.", min=0)] = 0,
    out: Annotated[Path, "JSONL file of preferences to write."],
    **made: Unpack[_Made],
) -> None:
    """Write preferences about the images in the folder PHOTOS, made by a native vision-language model itself (STIC).

    The chosen answer describes the image step by step, the rejected one is to a misleading prompt or about a damaged
    image. `adapt train lora/preferences --data` reads the file, with --root PHOTOS.

    \b
    Example:
      adapt data pairs photos/ --backbone mini-vlm --out pairs.jsonl
    """
    from adapt.labelling.describing import PairMaker

    settings = {"share": share, "seed": seed} | ({} if good is None else {"good": good})
    rows = _written(photos, out, PairMaker, settings, **made)
    words = [[len(str(row[key]).split()) for row in rows] for key in ("chosen", "rejected")]
    lengths = [f"{sum(own) / max(1, len(own)):.1f}" for own in words]
    click.echo(
        f"{out}  {len(rows):,} preferences, of {lengths[0]} words where chosen and {lengths[1]} where rejected; their "
        f"root is {photos}"
    )


def _written(
    photos: Path, out: Path, kind: type[RowMaker], settings: dict[str, Any], names: Sequence[str] = (),
    **made: Unpack[_Made],
) -> list[dict[str, object]]:  # fmt: skip
    """Write the rows that a maker of `kind` makes of the images `names` in a folder, by default all; return them."""
    from adapt.labelling.describing import write_rows

    if not (made["resume"] and out.exists()):
        check_free(out, "file")
    names = names or [os.path.relpath(path, photos) for path in images_in(str(photos))]
    if not names:
        raise AdaptError(f"{photos} has no image: give a folder of images")
    model = _reading_model(made["adapter"], made["backbone"], made["device"], turned=True)
    with counting_bar("writing", True) as bar:
        maker = kind(model, str(photos), tokens=made["tokens"], adapter=str(made["adapter"] or ""), **settings)
        return write_rows(out, names, maker, made["resume"], bar)


def _reading_model(adapter: Path | None, name: str | None, device: str, turned: bool) -> ChatModel:
    """Return a native model, with the adapter if given, which replaces `turned`. Raises AdaptError for other models."""
    from adapt.backbones.load import load_backbone
    from adapt.models.base import is_native
    from adapt.models.unadapted import unadapted

    if adapter is not None:
        model = common.load_adapter(adapter, name, device)
    elif name is not None:
        model = unadapted(load_backbone(name, device).turning(turned))
    else:
        raise AdaptError("no model is given: give --backbone, --adapter, or both")
    if not is_native(model):
        raise AdaptError(
            f"{model.backbone.describe()} is a {model.backbone.kind}, which reads no conversations: give a native "
            "vision-language model, such as mini-vlm"
        )
    return model


def _to_list(source: str, root: str | None, out: Path) -> Split:
    """Return data for a list in the new file `out`. Raises AdaptError if images are no files, so that it names none."""
    check_free(out, "file")
    split = load(source, root)
    if not Path(split.root).is_dir():
        raise AdaptError(
            f"the images of {shown(split.name)} are not files in a folder, so a list cannot contain their paths: give "
            "a data set of image files"
        )
    return split
