"""Checks of a data set, one function each, for problems that stop training and for notes worth knowing.

A check reads the facts about all files (`Looked`) and yields findings. A finding is a line for people, and rows for a
list.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.common.progress import Progress
from adapt.common.shown import first_of
from adapt.data.bags import has_bags, is_bag, singles
from adapt.data.check import Facts, all_facts, unfit
from adapt.data.decoding.files import parted
from adapt.data.decoding.pictures import FORMATS
from adapt.data.item import Item
from adapt.data.readers import folder_of, load
from adapt.data.readers.passed_over import PassedOver, by_suffix, counted, passed_over
from adapt.data.split import PARTS, InconsistentError, Split


@dataclass(frozen=True)
class Looked:
    """A decoded data set for checks: facts about each file, and image-like files in the folder that are not used."""

    split: Split
    facts: dict[str, Facts]
    unfit: dict[str, str]
    """Reasons why a region or a mask does not fit its image, by its path."""
    passed_over: Sequence[PassedOver]
    inconsistent: Sequence[str]
    """Problems that prevent it from being a data set, as `adapt.data.split` words them."""

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
        listed = {key: {(item.path, item.label) for _, item in group} for key, group in groups.items()}
        return [
            group
            for key, group in groups.items()
            if len({path for path, _ in listed[key]}) > 1 or len(listed[key]) < len(group)
        ]


def read_leniently(
    source: str, root: str | os.PathLike[str] | None, columns: str | None = None
) -> tuple[Split, list[str]]:
    """Return the readable contents of a data set, and a list of the problems that make the data set inconsistent.

    Raises AdaptError if `source` is a list or a name that cannot be read. For an unreadable folder, and for a list of
    which no row can be used, the data set is empty.
    """
    try:
        return load(source, root, columns=columns), []
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
    facts, folder = all_facts(items, progress), folder_of(source)
    others = [] if folder is None else passed_over(folder, split)
    return Looked(split, facts, unfit(items, facts), others, inconsistent)


MEGAPIXELS = 24  # a larger image is reported: decoding takes longer than all later steps
_NAMED = 3
_VALUE = re.compile(r"""\[[^\]]*\]|\{[^}]*\}|'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|\d+""")
_PAGES = "animated or of several pages, of which the first counts"
_MISNAMED = "of another format than the name says, but readable"
_LARGE = f"of more than {MEGAPIXELS} megapixels, which are slow to decode in every epoch: smaller copies serve as well"
_FORMAT_OF = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}

ListRow = dict[str, str | int]


@dataclass(frozen=True)
class Finding:
    """A result of a data check, with a line of text for users and a table row for each affected file or class."""

    list: str
    """The list that its rows go to, which findings of several checks may share."""
    line: str
    rows: Sequence[ListRow]
    stops: bool = False
    """Whether it stops training."""


def found_in(looked: Looked) -> list[Finding]:
    """Run all checks on a data set and return their findings: first the problems that stop training, then the notes."""
    findings = [finding for check in CHECKS for finding in check(looked)]
    return sorted(findings, key=lambda finding: not finding.stops)


def inconsistent(looked: Looked) -> Iterator[Finding]:
    """Yield one finding for each kind of inconsistency of a data set, such as rows whose images are not there.

    Problems of one kind differ in numbers and quoted values alone.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for problem in looked.inconsistent:
        kinds[_VALUE.sub("", problem)].append(problem)
    for first, *others in kinds.values():
        more = f" (and {len(others):,} more of this kind)" if others else ""
        yield Finding("inconsistent", first + more, [{"problem": each} for each in (first, *others)], stops=True)


def unreadable(looked: Looked) -> Iterator[Finding]:
    """Yield one finding for each library that is not installed but is needed to read some of the files.

    Then, one for each other file that cannot be decoded, and each region or mask that does not fit its image.
    """
    lacking = [(path, facts.lacks) for path, facts in sorted(looked.facts.items()) if facts.lacks]
    for lacks, paths in grouped((lacks, path) for path, lacks in lacking).items():
        rows: list[ListRow] = [{"path": path, "why": lacks} for path in paths]
        kind, _, advice = lacks.partition(" needs ")
        library, _, command = advice.partition(": ")
        line = f"{_files(rows)} {kind} and cannot be read here: install {library} ({command}): {_named(looked, rows)}"
        yield Finding("unreadable", line, rows, stops=True)
    broken = {path: facts.problem for path, facts in looked.facts.items() if facts.problem and not facts.lacks}
    for path, problem in (broken | looked.unfit).items():
        yield Finding("unreadable", problem, [{"path": path, "why": problem}], stops=True)


def classes(looked: Looked) -> Iterator[Finding]:
    """Yield findings if there are no training images, and for each class without any, or with unreadable ones alone.

    Then, if there is a single class, or number, so that there is nothing to learn, and if classes have a single
    training image, too few to hold any out for validation.
    """
    split, names = looked.split, looked.split.class_names
    if names and not split.train:
        line = "no training images: the data can be used for evaluation, not training (their folder is called train)"
        yield Finding("classes", line, [])
    listed, train = _by_class(split.items()), _by_class(split.train)
    for name in names:
        if not listed[name]:
            yield Finding("classes", f"class {name!r} has no image", [_counts(name, 0, 0)], stops=bool(split.train))
    each = _by_class(item for part, item in looked.of_parts if part == "train")
    read = _by_class(item for part, item, _ in looked.usable if part == "train")
    for name in names:
        if each[name] and not read[name]:
            line = f"class {name!r} has no training image that can be read, of {each[name]:,}"
            yield Finding("classes", line, [_counts(name, each[name], 0)], stops=True)
    if split.train and (line := split.task.nothing_to_learn(split.train, names)):
        yield Finding("classes", line, [_counts(name, count, "") for name, count in train.items()])
    if single := [name for name in names if train[name] == 1]:
        line = f"one training image each, too few to hold any back: {first_of(single)}"
        yield Finding("classes", line, [_counts(name, 1, "") for name in single])


def _counts(name: str, train: int, readable: int | str) -> ListRow:
    return {"class": name, "train": train, "readable": readable}


def skipped(looked: Looked) -> Iterator[Finding]:
    """Yield a finding that lists the files in the data set's folder that look like images but are not used."""
    if files := looked.passed_over:
        rows: list[ListRow] = [{"path": each.path, "why": each.why} for each in files]
        line = f"{counted(files)} passed over ({by_suffix(files)}): {_named(looked, rows)}"
        yield Finding("skipped", line, rows)


def contradictions(looked: Looked) -> Iterator[Finding]:
    """Yield a finding that lists copies of an image with different labels, within or across train, val and test."""
    rows = []
    for group in () if has_bags(looked.split.items()) else looked.alike:  # a bag may show other things too
        copies = [(part, item) for part, item in group if part != "unlabelled"]
        if len({item.label for _, item in copies}) > 1:
            part, first = copies[0]
            rows += [_pair(*copy, part, first) for copy in copies[1:] if copy[1].label != first.label]
    if rows:
        yield Finding("contradictions", f"the same picture with another label: {_pairs(looked, rows)}", rows)


def copies(looked: Looked) -> Iterator[Finding]:
    """Yield findings that list validation or test images that are copies of training images with the same label.

    Unlabelled images that are test images too, from which no method learns, are listed last.
    """
    rows: dict[str, list[ListRow]] = {"val": [], "test": [], "unlabelled": []}
    for group in looked.alike:
        for part, item in group:
            other_part = "test" if part == "unlabelled" else "train"
            others = [each for own, each in group if own == other_part]
            same = [each for each in others if part == "unlabelled" or each.label == item.label]
            if part != "train" and same:
                rows[part].append(_pair(part, item, other_part, same[0]))
    for part, own in rows.items():
        what = "test images too, and are left out" if part == "unlabelled" else "training images too"
        if own:
            yield Finding("copies", f"{part} images that are {what}: {_pairs(looked, own)}", own)


def leaks(looked: Looked) -> Iterator[Finding]:
    """Yield a finding that lists items that are `kept_together` with an earlier part's, but are no copies of them."""
    others = {(item.path, item.label) for _, item, _ in looked.usable}
    others -= {(item.path, item.label) for group in looked.alike for _, item in group}
    if rows := [_pair(*each) for each in looked.split.leaks() if (each[1].path, each[1].label) in others]:
        what = f"val or test {looked.split.noun} with an image, or of a group, of an earlier part"
        yield Finding("copies", f"{len(rows):,} {what}: {_pairs(looked, rows)}", rows)


def duplicates(looked: Looked) -> Iterator[Finding]:
    """Yield a finding that lists copies of an image with the same label within train, val or test."""
    rows = []
    for group in looked.alike:
        first: dict[tuple[str, object], Item] = {}
        for part, item in group:
            other = first.setdefault((part, item.label), item)
            rows += [_pair(part, item, part, other)] if other is not item else []
    if rows:
        yield Finding("duplicates", f"the same picture twice in one part: {_pairs(looked, rows)}", rows)


def unusual(looked: Looked) -> Iterator[Finding]:
    """Yield one finding for each unusual property of readable files, such as the orientation of a rotated camera."""
    turned = "turned upright by EXIF (data.exif=stored takes them as they are stored)"
    if not looked.split.turned:
        turned = "stored sideways or mirrored by EXIF, and taken as stored, as published (data.exif=turned turns them)"
    found: dict[tuple[str, str], list[ListRow]] = {}
    for path, facts in sorted(looked.facts.items()):
        if facts.problem:
            continue
        (width, height), in_mode = facts.size, f"{facts.format} in mode {facts.mode}"
        named = _FORMAT_OF.get(os.path.splitext(path)[1].lower(), facts.format)
        for key, applies, why in (
            (("turned", turned), facts.held != 1, f"EXIF orientation {facts.held}"),
            (("unusual", "of 16 bits a channel, of which the upper 8 are read"), facts.wide, in_mode),
            (("unusual", "in CMYK, converted to RGB without a colour profile"), facts.mode == "CMYK", in_mode),
            (("unusual", _PAGES), facts.frames > 1, f"{facts.frames:,} pictures in one file"),
            (("misnamed", _MISNAMED), named != facts.format, f"it is {facts.format}"),
            (("unusual", _LARGE), width * height > MEGAPIXELS * 10**6, f"{width:,} x {height:,} pixels"),
        ):
            rows = found.setdefault(key, [])  # of all, to be in this order
            if applies:
                rows.append({"path": path, "why": why})
    for (name, what), rows in found.items():
        if rows:
            yield Finding(name, f"{_files(rows)} {what}: {_named(looked, rows)}", rows)


CHECKS: tuple[Callable[[Looked], Iterator[Finding]], ...] = (
    inconsistent,
    unreadable,
    classes,
    skipped,
    contradictions,
    copies,
    leaks,
    duplicates,
    unusual,
)


def _files(files: Sequence[object]) -> str:
    return "1 file is" if len(files) == 1 else f"{len(files):,} files are"


def _named(looked: Looked, rows: Sequence[ListRow]) -> str:
    return first_of([_short(looked, str(row["path"])) for row in rows], _NAMED)


def _pairs(looked: Looked, rows: Sequence[ListRow]) -> str:
    """Return text that names each copy with its original in brackets, and adds both labels where the labels differ."""

    def of(row: ListRow, key: str) -> str:
        path = _short(looked, str(row[f"{key}path"]))
        return path if row["class"] == row["other_class"] else f"{path}, {row[f'{key}part']} {row[f'{key}class']!r}"

    return first_of([f"{of(row, '')} ({of(row, 'other_')})" for row in rows], _NAMED)


def _short(looked: Looked, path: str) -> str:
    """Return `path` relative to the root folder of the data set."""
    inside = os.path.join(looked.split.root, "") if looked.split.root else ""
    return path.removeprefix(inside)


def _pair(part: str, item: Item, other_part: str, other: Item) -> ListRow:
    return {
        "path": item.path, "part": part, "class": item.label.words,
        "other_path": other.path, "other_part": other_part, "other_class": other.label.words,
    }  # fmt: skip


def _by_class(items: Iterable[Item]) -> Counter[str]:
    return Counter(name for item in items for name in item.class_names)
