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
from adapt.training.run import PICKS, SEEN

_Rows = list[dict[str, str]]
_ANSWERS = {  # of two models that differ, by whether each is right
    (True, False): "right by the first alone",
    (False, True): "right by the second alone",
    (False, False): "wrong by both, in two ways",
    (True, True): "right by both, in other words",
}


@dataclass(frozen=True)
class Provenance:
    """How the adapter in `file` was made.

    `facts` are what its header, and environment.json of its run (`machine`), say by dotted key, such as
    `versions.torch`; `recipe.yaml: seed` is what that file of the run says instead. `seen` and `picks` are the rows of
    the run's lists of images. All of the run are empty if it is not here.
    """

    file: Path
    header: Header
    machine: JsonObject
    facts: JsonObject
    seen: _Rows
    picks: _Rows


def provenance(adapter: str | Path) -> Provenance:
    """Return how `adapter`, a file, the folder of a run or a name on the hub, was made.

    Raises AdaptError if it is missing or damaged, or a folder in another layout.
    """
    file = located(adapter)
    if file.is_dir():
        raise AdaptError(f"{file} is neither an adapter nor the folder of a run: give the file of an adapter")
    header, run, machine, seen, picks = read_header(file), file.parent, JsonObject(), _Rows(), _Rows()
    metrics, recipe, said = dict(header.metrics or {}), dict(header.recipe or {}), JsonObject()
    if (run / "metrics.json").is_file():
        machine = stored.read(run / "environment.json", dict[str, object], "environment of a run")
        own = read_file(run / "recipe.yaml", str(run / "recipe.yaml")).settings if recipe else {}
        versions = machine.get("versions", {}) | {key: machine[key] for key in ("resumed_in",) if key in machine}
        said = _instead("recipe.yaml", recipe, own) | _instead("environment.json", header.versions, versions)
        if (run / SEEN).is_file():  # none of texts
            seen, picks = csv_rows(run / SEEN)[1], csv_rows(run / PICKS)[1]
            if not all({"image", "part", "path"} <= row.keys() for row in seen):
                raise AdaptError(f"{run / SEEN} is damaged, or of an earlier version: delete the file")
    told = header.model_dump(
        include={"backbone", "quantization", "class_names", "preprocess", "answers", "seed", "sets"}
    )
    told |= {"method": {"name": header.method} | header.config}
    made = made_with(machine, header.versions, metrics.pop("device", None), metrics.pop("processes", 1))
    for key in ("method", "backbone", "seed"):  # which the header has as they were used
        recipe.pop(key, None)
    facts = dict(plain.leaves(told | {"recipe": recipe})) | said | made | dict(plain.leaves({"metrics": metrics}))
    return Provenance(file, header, machine, facts, seen, picks)


def _instead(file: str, header: Mapping[str, object], other: Mapping[str, object]) -> JsonObject:
    """Return what a file of a run says instead of the header, by keys that begin with the name of the file."""
    own = dict(plain.leaves(other))
    return {f"{file}: {key}": own.get(key) for key in unlike(dict(plain.leaves(header)), own)}


def made_with(machine: JsonObject, versions: Mapping[str, str], device: object, processes: object) -> JsonObject:
    """Return a machine, as in a run's environment.json, and the versions of libraries, by dotted key."""
    known = {key: value for key, value in machine.items() if key not in ("versions", "text_memory", "accelerator")}
    told = {"versions": versions, "machine": {"device": device, "processes": processes, **known}}
    return dict(plain.leaves(told))


def unlike(first: Mapping[str, object], second: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return the keys whose values differ, with both values; None where there is none."""
    pairs = {key: (first.get(key), second.get(key)) for key in {**first, **second}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True)
class Differences:
    """What two adapters differ in.

    `facts` are the values of both by dotted key, or None. `images` are the paths of images by what became of them; none
    if a run is not here, or learned from texts. `tensors` says of each tensor with other bits how large its largest
    difference is, or which adapter alone has it. `blocks` is the norm of each block's difference over the larger of its
    two norms. `answered` adds `answers` and `flips`.
    """

    facts: dict[str, tuple[object, object]]
    images: dict[str, list[str]]
    equal_tensors: int
    tensors: dict[str, float | str]
    blocks: dict[str, float]
    answers: Difference | None = None
    flips: _Rows = field(default_factory=list)

    def answered(self, first: Scores, second: Scores) -> Differences:
        """Return the differences with those of two models' answers to the same images, if these are right or wrong."""
        apart, rows = difference(first, second), zip(first.paths, first.actual, first.predicted, second.predicted)
        flips = [
            {"path": path, "class": actual, "first": one, "second": other, "kind": _ANSWERS[right]}
            for (path, actual, one, other), right in zip(rows, zip(first.right, second.right), strict=True)
            if one != other and apart.alone is not None
        ]
        kinds = [*_ANSWERS.values()]
        return replace(self, answers=apart, flips=sorted(flips, key=lambda row: kinds.index(row["kind"])))

    def to_dict(self) -> JsonObject:
        """Return the differences as plain data, for JSON."""
        return asdict(self) | {"answers": None if self.answers is None else self.answers._asdict()}


def differences(first: Provenance, second: Provenance) -> Differences:
    """Return what two adapters differ in; of their machines, what both runs know.

    Raises AdaptError if one is damaged.
    """
    facts = unlike(first.facts, second.facts)
    return Differences(
        {key: pair for key, pair in facts.items() if not (key.startswith("machine.") and None in pair)},
        _image_changes(first, second) if first.seen and second.seen else {},
        *_tensor_changes(read_tensors(first.file), read_tensors(second.file)),
    )


def _image_changes(first: Provenance, second: Provenance) -> dict[str, list[str]]:
    """Return the paths of images by what became of them; files are known by their hashes, wherever they are."""
    changes = {}
    for part in ("train", "val", "unlabelled"):
        one, other = (
            {row["image"]: row["path"] for row in each.seen if row["part"] == part} for each in (first, second)
        )
        gone, new = ([path for image, path in a.items() if image not in b] for a, b in ((one, other), (other, one)))
        changes[f"{part} images in both"] = [path for image, path in one.items() if image in other]
        changes[f"{part} images whose file has changed"] = changed = sorted({*gone} & {*new})
        changes[f"{part} images only in the first"] = [path for path in gone if path not in changed]
        changes[f"{part} images only in the second"] = [path for path in new if path not in changed]
    paths, rows = {row["path"] for row in second.picks}, {tuple(row.values()) for row in second.picks}
    relabelled = [row["path"] for row in first.picks if row["path"] in paths and tuple(row.values()) not in rows]
    return {kind: found for kind, found in {**changes, "train images with another label": relabelled}.items() if found}


def _tensor_changes(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[int, dict[str, float | str], dict[str, float]]:
    """Return the fields of `Differences` about tensors. A block's name is that of its tensors up to a first number."""
    found, squares = dict[str, float](), defaultdict[str, Tensor](lambda: torch.zeros(3).double())
    both = {name for name in first.keys() & second.keys() if _kind(first[name]) == _kind(second[name])}
    for name in both:
        one, other = (each[name].contiguous().flatten() for each in (first, second))
        apart = one.double() - other.double()
        if not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
            found[name] = float(apart.abs().max())
        steps = name.split(".")
        number = next((place for place, step in enumerate(steps, 1) if step.isdecimal()), len(steps))
        squares[".".join(steps[:number])] += torch.stack([each.double().square().sum() for each in (apart, one, other)])
    blocks = {block: float((sums[0] / (sums[1:].max() or 1.0)).sqrt()) for block, sums in squares.items()}
    lone = {name: f"only in the {which}" for which, each in (("first", first), ("second", second)) for name in each}
    return (
        len(both) - len(found),
        _ranked(found) | {name: lone[name] for name in lone if name not in both},
        _ranked(blocks),
    )


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _ranked(values: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda pair: (-pair[1], pair[0])))
