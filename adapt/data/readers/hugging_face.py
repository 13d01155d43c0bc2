"""Data sets of the Hugging Face library `datasets`, read from its Arrow files without making copies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from adapt.common.errors import AdaptError, missing
from adapt.common.shown import one_line
from adapt.data.readers import parts
from adapt.data.readers.base import Reader
from adapt.data.readers.rows import listed, to_split
from adapt.data.split import Split

if TYPE_CHECKING:
    from datasets import Dataset, Features


def read_hugging_face(source: str | os.PathLike[str], ratios: Sequence[float] = parts.RATIOS, seed: int = 0) -> Split:
    """Return a Hugging Face data set, given a folder written by `save_to_disk` or the name of a data set on the hub.

    The library `datasets` downloads data sets from the hub. A data set must have one column of images and one column of
    class labels, and can have a text column `domain`. Class numbers are kept. `ratios` (train, val, test) and `seed`
    divide a data set that is not divided, or has only one part.

    Raises AdaptError if the library is missing or finds no such data set, or if the data set has other columns.
    """
    source = os.fspath(source)
    datasets = _parts(source)
    features = next(iter(datasets.values())).features
    image, label = (_only(features, kind, source) for kind in ("Image", "ClassLabel"))
    class_names: list[str] = features[label].names
    undivided = len(datasets) == 1
    rows = [
        listed(path, {"label": class_names[number]}, "" if undivided else part, domain)
        for part, dataset in datasets.items()
        for path, number, domain in _rows(dataset, image, label, f"data {source!r}, part {part}")
    ]
    root = os.path.abspath(source) if os.path.isdir(source) else ""
    return to_split(os.path.basename(source.rstrip("/")), root, rows, class_names, ratios, seed, turned=False)


def _parts(source: str) -> dict[str, Dataset]:
    """Return the data set `source` as {part: data set}, where the parts have adapt's names (train, val, test)."""
    try:
        import datasets
    except ImportError:
        raise missing("Hugging Face data", "the library datasets", "hf-data") from None
    try:
        loaded = datasets.load_from_disk(source) if os.path.isdir(source) else datasets.load_dataset(source)
    except (OSError, ValueError) as error:
        raise AdaptError(f"the library datasets cannot load {source!r}: {one_line(error)}") from error
    named = {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
    part_of = {name: parts.read(name, f"data {source!r}") for name in named}
    if len(set(part_of.values())) < len(named):
        raise AdaptError(f"data {source!r} has two splits for one part: {', '.join(named)}. Save one for each part")
    return {part_of[name]: dataset for name, dataset in named.items()}


def _only(features: Features, kind: str, source: str) -> str:
    """Return the name of the only column of type `kind`. Raises AdaptError if no column or several have this type."""
    columns = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(columns) != 1:
        raise AdaptError(
            f"data {source!r} has {len(columns)} columns of type {kind} among {', '.join(features)}; expected one. "
            "Cast or remove columns with the library datasets and save the result with save_to_disk"
        )
    return columns[0]


def _rows(dataset: Dataset, image: str, label: str, where: str) -> Iterator[tuple[str, int, str]]:
    """Yield (image path, label, domain) of each row of a data set.

    The path of an image that is stored inside an Arrow file is `TABLE.arrow!COLUMN/ROW`.
    """
    from pyarrow import compute

    if dataset._indices is not None:  # rows chosen or shuffled after they were written
        raise AdaptError(
            f"{where}: rows were selected or reordered after the files of the data set were written. Save the data set "
            "with save_to_disk and load the result"
        )
    content = dataset.data.column(image)
    outside = compute.struct_field(content, "path").filter(compute.struct_field(content, "bytes").is_null())
    paths = outside.to_pylist() if len(outside) else [f"{cell[0]}!{image}/{cell[1]}" for cell in _cells(dataset)]
    if len(paths) != len(dataset):
        raise AdaptError(
            f"{where}: some images are separate files, but other images are in tables. Save the data set with "
            "save_to_disk, and load the result"
        )
    domains = dataset["domain"] if "domain" in dataset.column_names else [""] * len(dataset)
    for row, (path, number, domain) in enumerate(zip(paths, dataset[label], domains, strict=True)):
        if number is None or number < 0:
            raise AdaptError(f"{where}: row {row} has no label. Remove all rows without labels")
        yield path, number, domain


def _cells(dataset: Dataset) -> Iterator[tuple[str, int]]:
    """Yield (path of the Arrow file, row number in this file) for each row of the data set."""
    import pyarrow

    for entry in dataset.cache_files:
        path = os.path.abspath(entry["filename"])
        count = pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all().num_rows
        yield from ((path, row) for row in range(count))


class HuggingFace(Reader):
    name = "hugging_face"
    takes = "hf:NAME"
    reads = staticmethod(read_hugging_face)
    prefix = "hf:"
