"""How adapters were made, by their files and runs, and what two of them differ in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.data.readers.lines import csv_rows
from adapt.evaluation import stored
from adapt.evaluation.scores import Difference, Scores, difference
from adapt.formats.adapter import Header, read_header, read_tensors
from adapt.loading import located
from adapt.recipe.file import read_file
from adapt.training.run import PICKS, SEEN, folder_of_run

Unlike = dict[str, tuple[object, object]]  # what two trainings have differently, by dotted key; None where one has none
Rows = list[dict[str, str]]
KINDS = ("in both", "with another file", "only in the first", "only in the second", "with another label")  # of images
_ANSWERS = {  # of which the first and the second differ, by whether each is right
    (True, False): "right by the first alone",
    (False, True): "right by the second alone",
    (False, False): "wrong by both, in two ways",
    (True, True): "right by both, in other words",
}


@dataclass(frozen=True)
class Provenance:
    """How the adapter in `file` was made; `run` is the folder of its run, or None if that is not here.

    `machine` is the run's environment.json, `facts` are what is known by dotted key (`versions.torch`, `recipe.seed`),
    and `seen` and `picks` the rows of the run's lists of images.
    """

    file: Path
    header: Header
    run: Path | None
    machine: JsonObject
    facts: JsonObject
    seen: Rows
    picks: Rows

    def contradictions(self) -> Unlike:
        """Return what the header of the adapter says, and what its recipe or a file of its run says instead."""
        recipe, versions = dict(plain.leaves(self.header.recipe or {})), self.header.versions
        beside = {"environment.json": (versions, self.machine.get("versions", versions))}
        if recipe:
            beside["the header's recipe"] = {"seed": self.header.seed}, {"seed": recipe.get("seed")}
        if recipe and self.run is not None:
            own = read_file(self.run / "recipe.yaml", str(self.run / "recipe.yaml")).settings
            beside["recipe.yaml"] = recipe, dict(plain.leaves(own))
        return {f"{key} in {place}": pair for place, two in beside.items() for key, pair in unlike(*two).items()}


def provenance(adapter: str | Path) -> Provenance:
    """Return how `adapter`, a file, the folder of a run or a name on the hub, was made.

    Raises AdaptError if it is missing or damaged, or a folder in another layout.
    """
    file = located(adapter)
    if file.is_dir():
        raise AdaptError(f"{file} is neither an adapter nor the folder of a run: give the file of an adapter")
    header, run, machine, seen, picks = read_header(file), folder_of_run(file), JsonObject(), Rows(), Rows()
    if run is not None:
        machine = stored.read(run / "environment.json", dict[str, object], "environment of a run")
        if (run / SEEN).is_file():  # none of texts
            columns, seen = csv_rows(run / SEEN)
            picks = csv_rows(run / PICKS)[1]
            if not {"image", "part", "path"} <= {*columns}:
                raise AdaptError(f"{run / SEEN} is damaged: its columns are {', '.join(columns)}; delete the file")
    told = header.model_dump(
        include={"backbone", "quantization", "class_names", "preprocess", "answers", "seed", "sets"}
    )
    recipe = {key: value for key, value in (header.recipe or {}).items() if key not in ("method", "backbone", "seed")}
    metrics = dict(header.metrics or {})
    told |= {"method": {"name": header.method} | header.config, "recipe": recipe}
    made = made_with(machine, header.versions, metrics.pop("device", None), metrics.pop("processes", 1))
    facts = dict(plain.leaves(told)) | made | dict(plain.leaves({"metrics": metrics}))
    return Provenance(file, header, run, machine, facts, seen, picks)


def made_with(machine: JsonObject, versions: Mapping[str, str], device: object, processes: object) -> JsonObject:
    """Return a machine, as in a run's environment.json, and the versions of libraries, by dotted key."""
    known = {key: value for key, value in machine.items() if key not in ("versions", "text_memory", "accelerator")}
    told = {"versions": versions, "machine": {"device": device, "processes": processes, **known}}
    return dict(plain.leaves(told))


def unlike(first: Mapping[str, object], second: Mapping[str, object]) -> Unlike:
    """Return the keys whose values differ, with both values; None where there is none."""
    pairs = {key: (first.get(key), second.get(key)) for key in {**first, **second}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True)
class Differences:
    """What two adapters differ in.

    `images` are paths by part (train, val, unlabelled) and by kind (`KINDS`); none if a run is not here, or learned
    from texts. `tensors` has the largest difference of each that has other bits, and `blocks` the norm of each block's
    difference over the larger of its two norms, both in descending order. `only_first` and `only_second` are tensors
    that the other lacks, or has in another shape. `answered` adds `answers` and `flips`.
    """

    unlike: Unlike
    images: dict[str, dict[str, list[str]]]
    equal_tensors: int
    tensors: dict[str, float]
    blocks: dict[str, float]
    only_first: list[str]
    only_second: list[str]
    answers: Difference | None = None
    flips: Rows = field(default_factory=list)

    def answered(self, first: Scores, second: Scores) -> Differences:
        """Return the differences with those of two models' answers to the same images, if these are right or wrong."""
        apart = difference(first, second)
        rows = zip(first.paths, first.actual, first.predicted, second.predicted, first.right, second.right)
        flips = [
            {"path": path, "class": actual, "first": one, "second": other, "kind": _ANSWERS[*right]}
            for path, actual, one, other, *right in rows if one != other and apart.alone is not None
        ]  # fmt: skip
        return replace(
            self, answers=apart, flips=sorted(flips, key=lambda row: [*_ANSWERS.values()].index(row["kind"]))
        )

    def to_dict(self) -> JsonObject:
        """Return the differences as plain data, for JSON."""
        return asdict(self) | {"answers": None if self.answers is None else self.answers._asdict()}


def differences(first: Provenance, second: Provenance) -> Differences:
    """Return what two adapters differ in. Raises AdaptError if one is damaged.

    Of their machines, that is what both runs know.
    """
    found = unlike(first.facts, second.facts)
    return Differences(
        {key: pair for key, pair in found.items() if not (key.startswith("machine.") and None in pair)},
        _image_changes(first, second) if first.seen and second.seen else {},
        *_tensor_changes(read_tensors(first.file), read_tensors(second.file)),
    )


def _image_changes(first: Provenance, second: Provenance) -> dict[str, dict[str, list[str]]]:
    """Return the paths of images by part and kind; files are known by their hashes, wherever they are."""
    seen = defaultdict[str, tuple[dict[str, str], dict[str, str]]](lambda: ({}, {}))  # path by hash, of both
    labels = defaultdict[str, tuple[set[str], set[str]]](lambda: (set(), set()))  # by hash
    for place, each in enumerate((first, second)):
        hashes = {row["path"]: row["image"] for row in each.seen}
        for row in each.seen:
            seen[row["part"]][place][row["image"]] = row["path"]
        for row in each.picks:
            label = [row[key] if key == "class" else f"{key} {row[key]}" for key in row if key not in ("path", "item")]
            labels[hashes.get(row["path"], "")][place].add(", ".join(label))
    changes = {}
    for part, (one, other) in seen.items():
        gone, new = ([path for image, path in a.items() if image not in b] for a, b in ((one, other), (other, one)))
        both = {image: path for image, path in one.items() if image in other}
        pairs = {path: labels[image] for image, path in both.items() if part == "train"}
        relabelled = [f"{path}: {', '.join(a)}, then {', '.join(b)}" for path, (a, b) in pairs.items() if a != b]
        changed = {*gone} & {*new}
        alone = ([path for path in paths if path not in changed] for paths in (gone, new))
        changes[part] = dict(zip(KINDS, ([*both.values()], sorted(changed), *alone, relabelled), strict=True))
    changes.pop("start", None)
    return changes


def _tensor_changes(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[int, dict[str, float], dict[str, float], list[str], list[str]]:
    """Return the fields of `Differences` about tensors. A block's name is that of its tensors up to a first number."""
    largest, squares, both = dict[str, float](), defaultdict[str, Tensor](lambda: torch.zeros(3).double()), set[str]()
    for name in sorted(first.keys() & second.keys()):
        one, other = first[name], second[name]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            continue
        both.add(name)
        bits, others = (each.contiguous().flatten().view(torch.uint8) for each in (one, other))
        apart = (one.double() - other.double()).flatten()
        if not torch.equal(bits, others):
            largest[name] = float(apart.abs().max())
        steps = name.split(".")
        number = next((place for place, step in enumerate(steps, 1) if step.isdecimal()), len(steps))
        squares[".".join(steps[:number])] += torch.stack([each.double().square().sum() for each in (apart, one, other)])
    blocks = {block: float((sums[0] / (sums[1:].max() or 1.0)).sqrt()) for block, sums in squares.items()}
    return (
        len(both) - len(largest),
        dict(sorted(largest.items(), key=lambda pair: -pair[1])),
        dict(sorted(blocks.items(), key=lambda pair: -pair[1])),
        sorted(first.keys() - both),
        sorted(second.keys() - both),
    )
