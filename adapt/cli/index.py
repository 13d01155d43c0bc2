"""`adapt index` and `adapt search`"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from adapt.cli import options as common
from adapt.cli.options import Option, command
from adapt.common import plain
from adapt.common.devices import AUTO
from adapt.common.disk import check_free
from adapt.common.errors import AdaptError, about
from adapt.common.progress import counting_bar
from adapt.common.shown import brief, readable_bytes, shown
from adapt.data.decoding.files import check_form, parted
from adapt.data.readers.csv_file import read_pairs
from adapt.data.readers.folder import IMAGE_SUFFIXES, images_in
from adapt.data.readers.lines import numbered_lines
from adapt.data.readers.texts_file import read_texts

if TYPE_CHECKING:
    from adapt.models.image_model import ImageModel
    from adapt.retrieval.index import Index

_Adapter = Annotated[Path | None, "Adapter to encode with.  [default: the backbone by itself]"]
_Root = Annotated[Path | None, "Folder of the images in a .csv of pairs.  [default: the .csv's own]"]


@command()
def index(
    source: Path,
    *,
    out: Annotated[Path, ".safetensors file to write."],
    backbone: Annotated[
        str | None, "Backbone to encode with (see `adapt backbones`).  [default: the adapter's, or the recipes']"
    ] = None,
    of_pairs: Annotated[
        bool, Option("Read SOURCE as a .csv with path,text[,entity], an entry per line.", "--pairs")
    ] = False,
    dim: Annotated[
        int | None,
        Option("Keep only the first values of each feature; meant for an adapter of mrl.  [default: all]", min=1),
    ] = None,
    root: _Root = None,
    adapter: _Adapter = None,
    device: common.RunsOn = AUTO,
) -> None:
    """Build an index of the texts or images in SOURCE, for `adapt search` and for `adapt predict --vocabulary-free`.

    SOURCE is a .txt with one text per line, a .csv with a column text, or a folder of images, searched at any depth.

    \b
    Examples:
      adapt index captions.txt --out captions.safetensors
      adapt index photos/ --backbone mini-clip --out photos.safetensors
      adapt index records.csv --pairs --adapter runs/records --out records.safetensors
      adapt index photos/ --adapter runs/mrl-pairs --dim 64 --out small.safetensors
    """
    check_free(out, "file")
    if root is not None and not of_pairs:
        raise AdaptError("--root is the folder of the images for --pairs: leave --root out, or add --pairs")
    if adapter is None:
        backbone = common.say_backbone(backbone, str(source))
    pairs = read_pairs(source, root) if of_pairs else []
    images, texts = ([], []) if of_pairs else _entries(source)
    from adapt.retrieval.index import index_images, index_pairs, index_texts

    model = _model(backbone, adapter, device)
    places = [(f"line {line}", text) for line, text in texts]
    _check_lengths(model, source, places or [(path, item.text) for item, path in pairs])
    with counting_bar("encoding", True) as bar:
        if of_pairs:
            built = index_pairs(model, [item for item, _ in pairs], bar)
            built = replace(built, entries=tuple(item.unit or path for item, path in pairs))
        else:
            entries = images or [text for _, text in texts]
            built = (index_images if images else index_texts)(model, entries, bar)
    if dim is not None:
        built = built.shortened(dim)
    built.save(out)
    click.echo(f"{out}  {len(built):,} {built.header.kind}, {readable_bytes(out.stat().st_size)}")


@command()
def search(
    index: Path,
    queries: tuple[str, ...],
    *,
    top_k: Annotated[int, Option("Entries to show per query.", min=1)] = 5,
    backbone: Annotated[str | None, "Backbone, if the index does not name it."] = None,
    adapter: _Adapter = None,
    text: Annotated[str | None, 'Words that change each query image, such as "at night".'] = None,
    share: Annotated[
        float | None,
        Option(
            "With --text: share of the way from the image to the text.  [default: 0.5]  With an adapter of xbt: from "
            "the query of the index's own backbone to the adapter's.",
            "--slerp",
            min=0,
            max=1,
        ),
    ] = None,
    root: _Root = None,
    device: common.RunsOn = AUTO,
    as_json: common.AsJson = False,
) -> None:
    """Find the texts, images or pairs in INDEX whose features are nearest to QUERIES, which are texts or image files.

    The search is exact. For an index of pairs, a query may also be a .csv with the columns path and text. Each row is
    then a separate query, named by the path.

    With an adapter of the method xbt, queries can be encoded by a newer backbone than the backbone of INDEX.

    With --text, a query is an image as the text changes it: its feature lies on the arc between both, or an adapter of
    pseudo_word makes it. The image itself is not shown as an answer.

    \b
    Examples:
      adapt search photos.safetensors "a red car" photo.png
      adapt search photos.safetensors car.png --text "a car at night"
      adapt search photos.safetensors car.png --text "is red" --adapter runs/pseudo_word
      adapt search old.safetensors "a red car" --adapter runs/xbt
      adapt search records.safetensors new.csv --adapter runs/records
    """
    others = [query for query in queries if not _names_an_image(query)]
    if text is not None and others:
        other = brief(others[0])
        raise AdaptError(f"--text changes images, but the query {other} is none: give image files, or no --text")
    of_pairs = any(map(_lists_pairs, queries))
    if root is not None and not of_pairs:
        raise AdaptError("--root is the image folder of a .csv of pairs, but no query is a .csv: leave --root out")
    from adapt.retrieval.index import changed, load_index, prepared, slerp

    stored = load_index(index)
    model = _model(backbone or (None if adapter else stored.header.backbone), adapter, device)
    stored.check(model)
    if of_pairs and stored.header.kind != "pairs":
        raise AdaptError(
            f"{index} is an index of {stored.header.kind}, but a query is a .csv of pairs: give an index made by "
            "`adapt index --pairs`, or give texts or images as queries"
        )
    old = None if share is None or text is not None else _older(stored, model, device)
    for query in queries:
        if text is not None:
            names, features = [query], changed(model, next(prepared(model, [query])), text, share)
        else:
            encoded = _encoded(model, query, root)
            names, features = [*encoded.entries], encoded.features
            if old is not None and share is not None:
                features = slerp(_encoded(old, query, root).features, features, share)
        count = top_k if text is None else top_k + 1
        for name, *nearest in zip(names, *stored.nearest(features, count), strict=True):
            cosines, places = (each.tolist() for each in nearest)
            found = list(zip([stored.entries[place] for place in places], cosines, strict=True))
            if text is not None:
                own = os.path.abspath(parted(query)[0])
                found = [each for each in found if os.path.abspath(each[0]) != own][:top_k]
            if as_json:
                entries = [{"entry": entry, "cosine": cosine} for entry, cosine in found]
                click.echo(plain.dump({"query": name, "found": entries}))
            else:
                lines = [f"  {cosine:6.3f}  {shown(entry)}" for entry, cosine in found]
                click.echo("\n".join([shown(name), *lines]))


def _entries(source: Path) -> tuple[list[str], list[tuple[int, str]]]:
    """Return the image paths, or the texts with their lines, of `source`, which are to be indexed."""
    if source.is_dir():
        images = images_in(str(source))
        if not images:
            raise AdaptError(f"the folder {source} contains no image files ({', '.join(IMAGE_SUFFIXES)})")
        return images, []
    if source.suffix not in (".csv", ".txt"):
        raise AdaptError(f"{source} cannot be indexed; expected a folder of images, or a .txt or .csv file of texts")
    return [], (read_texts if source.suffix == ".csv" else numbered_lines)(source)


def _check_lengths(model: ImageModel, source: str | Path, texts: Sequence[tuple[str, str]]) -> None:
    """Raise AdaptError if one of the `texts`, each with its place in `source`, is too long for the text tower."""
    from adapt.models.dual_encoder import AdaptedModel

    prompt_of = model.prompt_of if isinstance(model, AdaptedModel) else str
    for place, text in texts:
        with about(f"{source} {place}"):
            prompt_of(text)


def _model(backbone: str | None, adapter: Path | None, device: str) -> ImageModel:
    """Return the model for encoding: the backbone with the adapter, or the unadapted backbone if none is given."""
    from adapt.backbones.base import ImageEncoder
    from adapt.loading import load
    from adapt.models.image_model import ImageModel
    from adapt.models.unadapted import unadapted

    loaded = common.given_backbone(backbone, device)
    model = None if adapter is None else load(adapter, loaded, device=device)
    of = loaded if model is None else model.backbone
    if of is None:
        raise AdaptError("no backbone is given for encoding: give --backbone, such as mini-clip, or --adapter")
    if not isinstance(of, ImageEncoder):
        raise AdaptError(f"{of.describe()} does not encode images by themselves: use a CLIP or a vision encoder")
    if model is None:  # and no adapter says otherwise: photographs are turned upright
        model = unadapted(of.turning(True), ("object",))
    assert isinstance(model, ImageModel)  # as of every encoder of images
    return model.eval()


def _encoded(model: ImageModel, query: str, root: Path | None) -> Index:
    """Encode a query (a text, an image file or a .csv of pairs), and return the features as an `Index`."""
    from adapt.retrieval.index import index_images, index_pairs, index_texts

    if not query.strip():
        raise AdaptError("a query is empty: give a text or an image file")
    if _lists_pairs(query):
        pairs = read_pairs(query, root)
        _check_lengths(model, query, [(path, item.text) for item, path in pairs])
        return replace(index_pairs(model, [item for item, _ in pairs]), entries=tuple(path for _, path in pairs))
    if os.sep in query and os.path.isdir(query):
        raise AdaptError(f"the query {query!r} is a folder: give a text, or image files such as those in it")
    return (index_images if _names_an_image(query) else index_texts)(model, [query])


def _names_an_image(query: str) -> bool:
    path, box = parted(query)
    if box is None:
        check_form(query)
    return path.lower().endswith(IMAGE_SUFFIXES)


def _lists_pairs(query: str) -> bool:
    return query.lower().endswith(".csv")


def _older(index: Index, model: ImageModel, device: str) -> ImageModel:
    """Return the index's own backbone, between whose queries and those of `model` --slerp interpolates."""
    from adapt.methods.base.space import space_of

    if space_of(model.method) is None:
        raise AdaptError(
            "--slerp interpolates between the features of two backbones, but only one backbone is given: give an "
            "--adapter of the method xbt, or leave --slerp out"
        )
    old = _model(index.header.backbone, None, device)
    index.check(old)
    return old
