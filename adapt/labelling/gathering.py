"""Gathering the images to ask about: those of a run, further photographs, and doubtful images of the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.common.progress import counting_bar
from adapt.common.shown import first_of
from adapt.data.bags import has_bags
from adapt.data.check import all_facts, copies_of
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.labelling.proposals import Doubt, doubts_in, is_of_doubts, unlabelled_in
from adapt.methods.base.traits import needs_labels
from adapt.recipe import Recipe
from adapt.training.relisted import check_listable
from adapt.training.run_recipe import decodable, listed_data

logger = logging.getLogger("adapt")


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
    lists = [source for source in sources if is_of_doubts(source)]
    doubts = {path: doubt for source in lists for path, doubt in doubts_in(source, split).items()}
    new = _further([source for source in sources if source not in lists], split, progress)
    split = replace(split, unlabelled=split.unlabelled + new)
    if not (doubts or split.unlabelled):
        raise AdaptError("there are no unlabelled images: give a folder, a .csv or files with further images")
    return split, doubts


def _further(sources: Sequence[Path], split: Split, progress: bool) -> tuple[Item, ...]:
    """Return the images in `sources` that `split` does not have, without broken ones, which are logged."""
    new = unlabelled_in(sources, split)
    if not new:
        return ()
    known = [*split.items(), *split.unlabelled]
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
