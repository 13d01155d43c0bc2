"""The facts about a data set that its checks use: its items, their files, and other files in the folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from adapt.common.errors import AdaptError
from adapt.common.progress import Progress
from adapt.data.bags import is_bag, singles
from adapt.data.check import Facts, all_facts, unfit
from adapt.data.consistency import InconsistentError
from adapt.data.decoding.regions import parted
from adapt.data.item import Item
from adapt.data.readers import folder_of, load
from adapt.data.readers.passed_over import PassedOver, passed_over
from adapt.data.split import PARTS, Split


@dataclass(frozen=True)
class Looked:
    """A decoded data set for checks: facts about each file, and image-like files in the folder that are not used."""

    split: Split
    facts: dict[str, Facts]
    unfit: dict[str, str]
    """Reasons why a region or a mask does not fit its image, by its path."""
    passed_over: Sequence[PassedOver]
    inconsistent: Sequence[str]
    """Problems that prevent it from being a data set, as `adapt.data.consistency` words them."""

    @cached_property
    def of_parts(self) -> list[tuple[str, Item]]:
        """All image items as (part, item), where the part is one of `PARTS`; of a bag, each image by itself."""
        each = [(part, item) for part in PARTS for item in getattr(self.split, part) if item.paths]
        return [(part, one) for part, item in each for one in (singles([item]) if is_bag(item) else [item])]

    @cached_property
    def usable(self) -> list[tuple[str, Item, Facts]]:
        """All readable images, each as (part, item, facts about the file), where the part is one of `PARTS`."""
        known = [(part, item, self.facts[parted(item.path)[0]]) for part, item in self.of_parts]
        return [each for each in known if not each[2].problem and each[1].path not in self.unfit]

    @cached_property
    def alike(self) -> list[list[tuple[str, Item]]]:
        """Groups of two or more copies of an image, with the same pixels and question, across all parts.

        A copy is another file, or the same file with the same label once more.
        """
        groups: dict[tuple[object, ...], list[tuple[str, Item]]] = defaultdict(list)
        for part, item, facts in self.usable:
            key = facts.digest, parted(item.path)[1], item.paths[1:], item.text, *item.label.columns.values()
            groups[key].append((part, item))
        return [group for group in groups.values() if _has_copies([item for _, item in group])]

    def files(self, which: Callable[[str, Facts], bool]) -> list[tuple[str, Facts]]:
        """Return (path, facts) of the readable files for which `which(path, facts)` is true, sorted by path."""
        return [(path, facts) for path, facts in sorted(self.facts.items()) if not facts.problem and which(path, facts)]


def _has_copies(alike: Sequence[Item]) -> bool:
    """Return whether items of the same pixels are of several files, or list a file with the same label again."""
    files = {(item.path, item.label) for item in alike}
    return len({path for path, _ in files}) > 1 or len(files) < len(alike)


def read_leniently(source: str, root: str | os.PathLike[str] | None) -> tuple[Split, list[str]]:
    """Return the readable contents of a data set, and a list of the problems that make the data set inconsistent.

    Raises AdaptError if `source` is a list or a name that cannot be read. For an unreadable folder, and for a list of
    which no row can be used, the data set is empty.
    """
    try:
        return load(source, root), []
    except InconsistentError as error:
        split, problems = error.split, list(dict.fromkeys(error.problems))
    except AdaptError as error:
        if folder_of(source) is None:
            raise
        split, problems = None, [str(error)]
    if split is None:
        folder = folder_of(source) or ""
        try:
            split = Split(os.path.basename(folder or source), (), (), (), (), root=folder)
        except InconsistentError as error:  # it has no classes
            split = error.split
    assert split is not None
    return split, problems


def look(source: str, split: Split, inconsistent: Sequence[str] = (), progress: Progress | None = None) -> Looked:
    """Return facts about every decoded file of `split`, and images in the folder `source` that are not in `split`."""
    items = [*split.items(), *split.unlabelled]
    facts = all_facts(items, progress)
    return Looked(split, facts, unfit(items, facts), passed_over(source, split), inconsistent)
