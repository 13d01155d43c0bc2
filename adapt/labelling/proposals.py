"""The images that a person is asked about: unlabelled ones of a run and other sources, and doubtful ones in lists.

A proposed label is the likeliest class. Images are worth a label that many other, uncertain images resemble. Our
reading: facility location (Wei et al., Submodularity in Data Subset Selection and Active Learning, ICML 2015), with the
similarity exp(s c) of two images whose features have the cosine c, and a weight for each image that is to be
represented. Uncertainty alone, which is what most tools order by, is no better than chance with a few labels a class
(`python -m benchmarks labelling`).
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.common.progress import counting_bar
from adapt.common.shown import first_of
from adapt.data.bags import has_bags
from adapt.data.check import all_facts, copies_of
from adapt.data.item import Item
from adapt.data.readers.csv_file import read_paths
from adapt.data.readers.folder import IMAGE_SUFFIXES, images_in
from adapt.data.readers.lines import csv_rows
from adapt.data.split import PARTS, Split
from adapt.evaluation.inference import Inference
from adapt.methods.base.traits import needs_labels
from adapt.models.features import item_features
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted
from adapt.recipe import Recipe
from adapt.training.extending import check_listable
from adapt.training.run_recipe import decodable, listed_data

logger = logging.getLogger("adapt")
COMPARED = ("train_path", "other_path")  # columns of an image to compare a listed image with
_SHOWN = ("path", "class", "part", "other_class", "train_class", "other_part")  # columns that are shown otherwise


@dataclass(frozen=True)
class Proposal:
    """An image and the label that it may have: the proposed one, or the present one of a labelled image.

    `likely` are the likeliest classes with their probabilities, the likeliest first. `why` says why a listed image is
    doubtful, and `other` is the path of an image that it should be compared with, or "".
    """

    item: Item
    label: str
    likely: tuple[tuple[str, float], ...]
    why: str = ""
    other: str = ""

    @property
    def reviewed(self) -> bool:
        """Whether the image has a label already, which is to be kept, changed or dropped."""
        return bool(self.item.class_names)


@dataclass(frozen=True)
class Doubt:
    """Why an image is in a list of doubtful ones, and the path of an image to compare it with, or ""."""

    why: str
    other: str = ""


def doubts_in(source: Path, split: Split) -> dict[str, Doubt]:
    """Return the images of `split` that a list of doubtful images names, by path, in the list's order.

    Of images that contradict each other, both are doubtful. A warning says how many lines name no image of `split`.
    """
    part_of = {item.path: part for part in PARTS for item in getattr(split, part)}
    columns, rows = csv_rows(source)
    doubts: dict[str, Doubt] = {}
    for row in rows:
        if row["path"] in part_of:
            doubts[row["path"]] = _doubt(row, part_of[row["path"]])
        other = row.get("other_path", "")
        if "other_class" in columns and row["other_class"] != row["class"] and other in part_of:
            doubts.setdefault(other, Doubt(f"{part_of[other]} image; the other picture: {row['class']}", row["path"]))
    if unknown := sum(row["path"] not in part_of for row in rows):
        logger.warning("%s: %d of %d lines name no image of the run", source, unknown, len(rows))
    return doubts


def _doubt(row: Mapping[str, str], part: str) -> Doubt:
    other = next((column for column in COMPARED if row.get(column)), "")
    notes = [f"{part} image"]
    notes += [f"{name} {cell}" for name, cell in row.items() if cell and name not in (*_SHOWN, *COMPARED)]
    if other:
        other_class = row.get("train_class") or row.get("other_class", "")
        notes.append(f"the other picture: {row.get('other_part') or 'train'}, {other_class}")
    return Doubt("; ".join(notes), row[other] if other else "")


def _images_in(source: Path) -> list[str]:
    if source.suffix.lower() == ".csv" and source.is_file():
        return [path for path, *_ in read_paths(source)]
    if not source.is_dir():
        if not source.is_file():
            why = "; `recommend` and `data check` write a list only if they find something" * (source.suffix == ".csv")
            raise AdaptError(f"{source} does not exist; expected a folder of images, a .csv or an image{why}")
        return [str(source.absolute())]
    paths = images_in(str(source.absolute()))
    if not paths:
        raise AdaptError(f"the folder {source} contains no image files ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def of_run(recipe: Recipe, progress: bool) -> Split:
    """Return the data of a run, with its unlabelled images.

    Raises AdaptError for another task than classification, for items of several images, and if images are gone.
    """
    split = listed_data(recipe, unlabelled=True)
    check_listable(split)
    if has_bags(split.items()):
        raise AdaptError(f"{split.name} has items of several images, but only single images can be labelled")
    return decodable(replace(split, unseen=not needs_labels(recipe.new_method())), recipe, progress)


def gathered(split: Split, sources: Sequence[Path], progress: bool) -> tuple[Split, dict[str, Doubt]]:
    """Return `split` with the further images in `sources` as unlabelled ones, and the doubtful images, by path.

    Raises AdaptError if there is nothing to ask about.
    """
    files = [source for source in sources if source.is_file() and source.suffix.lower() == ".csv"]
    lists = [file for file in files if {"path", "class"} <= set(csv_rows(file)[0])]  # of `recommend`, `data check`
    doubts = {path: doubt for source in lists for path, doubt in doubts_in(source, split).items()}
    new = _further([source for source in sources if source not in lists], split, progress)
    split = replace(split, unlabelled=split.unlabelled + new)
    if not (doubts or split.unlabelled):
        raise AdaptError("there are no unlabelled images: give a folder, a .csv or files with further images")
    return split, doubts


def _further(sources: Sequence[Path], split: Split, progress: bool) -> tuple[Item, ...]:
    """Return the images in folders, lists and files that `split` does not have, as unlabelled items.

    Broken images and copies are left out, and logged. Raises AdaptError for a source without images.
    """
    known = [*split.items(), *split.unlabelled]
    paths = [path for source in sources for path in _images_in(source)]
    if nameless := [path for path in paths if path.encode(errors="ignore").decode() != path]:
        logger.warning("left out %d images whose names are not UTF-8: rename them", len(nameless))
    excluded = {*nameless, *(item.path for item in known)}
    new = [Item.of(path=path, turned=split.turned) for path in dict.fromkeys(paths) if path not in excluded]
    if not new:
        return ()
    with counting_bar("checking", progress) as bar:
        facts = all_facts([*new, *known], bar)
    if broken := [facts[item.path].problem for item in new if facts[item.path].problem]:
        logger.warning("left out %d images that cannot be read: %s", len(broken), first_of(broken, between="; "))
    whole = [item for item in new if not facts[item.path].problem]
    copies = copies_of(known, whole, facts)
    if copies:
        logger.warning("left out %d copies of images of the run, such as %r", len(copies), copies[0].path)
    left_out = set(copies)
    return tuple(item for item in whole if item not in left_out)


def present(items: Sequence[Item]) -> list[Item]:
    """Return the items whose files exist, of which archives are not looked into; a warning names one that is gone."""
    gone = {item.path for item in items if "!" not in item.path and not os.path.lexists(item.path)}
    if gone:
        logger.warning("left out %d images that are gone, such as %r", len(gone), min(gone))
    return [item for item in items if item.path not in gone]


LIKELY = 9  # classes that a proposal lists, one for each digit key
SHARPNESS = 2.0  # of the similarity, over the standard deviation of the cosines
CERTAIN = 0.75  # how much an image counts whose class is certain; one that is undecided counts as 1
MOST = 4096  # images that are compared with each other; of more, so many are drawn


def in_order(
    model: ImageModel, unlabelled: Sequence[Item], labelled: Sequence[Item], count: int, seed: int, progress: bool
) -> list[Proposal]:
    """Return proposals for up to `count` of the `unlabelled` images, the most useful ones first.

    Of more than `MOST` images, so many are drawn by `seed`, so that a round does not encode a large folder again.
    """
    if not unlabelled:
        return []
    if len(unlabelled) > MOST:
        unlabelled = random.Random(seed).sample(unlabelled, MOST)
    probabilities = _probabilities(model, unlabelled, progress)
    features, known = (_features(model, items) for items in (unlabelled, labelled))
    places = most_useful(features, known, probabilities, count)
    return _proposals(model, [unlabelled[place] for place in places], probabilities[places], {})


def as_listed(model: ImageModel, items: Sequence[Item], doubts: Mapping[str, Doubt], progress: bool) -> list[Proposal]:
    """Return proposals for doubtful `items`, in their order; `doubts` says by path why they are doubtful."""
    return _proposals(model, items, _probabilities(model, items, progress), doubts) if items else []


def _proposals(
    model: ImageModel, items: Sequence[Item], probabilities: Tensor, doubts: Mapping[str, Doubt]
) -> list[Proposal]:
    best, places = probabilities.topk(min(LIKELY, len(model.class_names)), -1)
    proposals = []
    for item, values, own in zip(items, best.tolist(), places.tolist(), strict=True):
        likely = tuple((model.class_names[place], value) for place, value in zip(own, values, strict=True))
        doubt = doubts.get(item.path, Doubt(""))
        proposals.append(Proposal(item, item.answer or likely[0][0], likely, doubt.why, doubt.other))
    return proposals


def _probabilities(model: ImageModel, items: Sequence[Item], progress: bool) -> Tensor:
    """Return the probabilities `(n, c)` of the classes for each item."""
    with counting_bar("encoding", progress) as bar:
        return Inference(progress=bar).all_logits(model, items).float().softmax(-1)


def _features(model: ImageModel, items: Sequence[Item]) -> Tensor:
    """Return the unadapted backbone's unit-length features `(n, e)`, which are cached and never change."""
    if not items:
        return torch.zeros(0, model.backbone.embed_dim)
    encoder = unadapted(model.backbone, model.class_names)
    assert isinstance(encoder, ImageModel)
    return item_features(encoder, items, workers=2)


def most_useful(features: Tensor, labelled: Tensor, probabilities: Tensor, count: int) -> list[int]:
    """Return the places of up to `count` images, the most useful to label first.

    `features` `(n, e)` and `labelled` `(m, e)` are the unit-length features of unlabelled and labelled images, and
    `probabilities` `(n, c)` are the classes' for each unlabelled image. Each image in turn is the one that represents
    the others best, beside the labelled images and those before it.
    """
    weights = uncertainty(probabilities)
    cosines = features @ features.T
    sharpness = SHARPNESS / cosines.std().clamp_min(1e-6) if len(features) > 1 else torch.tensor(SHARPNESS)
    similar = (sharpness * (cosines - 1)).exp()
    represented = torch.zeros(len(features))
    if len(labelled):
        represented = (sharpness * ((features @ labelled.T).max(-1).values - 1)).exp()
    chosen: list[int] = []
    for _ in range(min(count, len(features))):
        gains = (similar - represented).clamp_min(0) @ weights
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        represented = torch.maximum(represented, similar[chosen[-1]])
    return chosen


def uncertainty(probabilities: Tensor) -> Tensor:
    """Return the weight `(n,)` of each image, from `CERTAIN` to 1 if the two likeliest classes are equally likely."""
    if probabilities.shape[-1] < 2:
        return torch.ones(len(probabilities))
    first, second = probabilities.topk(2, -1).values.T
    return 1 - (1 - CERTAIN) * (first - second)
