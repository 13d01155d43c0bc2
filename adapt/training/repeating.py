"""How an adapter was made, the same training once more, also without each fold, and what two adapters differ in."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from adapt import tasks
from adapt.backbones.base import outside_inference_mode
from adapt.backbones.load import load_backbone
from adapt.common import plain
from adapt.common.devices import described, threads
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.data.bags import has_bags
from adapt.data.item import items_id
from adapt.data.readers.lines import csv_rows
from adapt.data.split import Split, kept_together
from adapt.evaluation import stored
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.inference import Inference
from adapt.evaluation.scores import Scores, compared, difference
from adapt.evaluation.sets import of_members
from adapt.formats import tensor_file
from adapt.formats.adapter import Header, check_backbone, read_header, versions
from adapt.loading import load, located
from adapt.methods.base.traits import Grades, has_trait, needs_labels
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.sets import Score, Sets
from adapt.models.wrap import Model
from adapt.recipe import Recipe, build_recipe
from adapt.recipe.file import Override, read_file, set_key
from adapt.soups import average
from adapt.training.fit import fit_plan, pick_rows, seen_rows
from adapt.training.plan import calibrates_by_folds
from adapt.training.run import PICKS, SEEN, Run, environment
from adapt.training.run_recipe import decodable, listed_data, plan_recipe
from adapt.training.start import check_start

_Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Provenance:
    """How the adapter in `file` was made.

    `facts` are what its header, and environment.json of its run (`machine`), say by dotted key, such as
    `versions.torch`; `recipe.yaml: seed` is what that file of the run says instead of the header. `seen` and `picks`
    are the rows of the run's lists of images. All of the run are empty if it is not here.
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
    recipe, metrics, instead = dict(header.recipe or {}), dict(header.metrics or {}), JsonObject()
    if (run / "environment.json").is_file():
        machine = stored.read(run / "environment.json", dict[str, object], "environment of a run")
        kept = recipe and (run / "recipe.yaml").is_file()
        own = read_file(run / "recipe.yaml", str(run / "recipe.yaml")).settings if kept else recipe
        libraries = plain.within(machine, "versions", kind=dict) or {}
        for name, said, other in ("recipe.yaml", recipe, own), ("environment.json", dict(header.versions), libraries):
            instead |= {f"{name}: {key}": pair[1] for key, pair in unlike(_flat(said), _flat(other)).items()}
        if (run / SEEN).is_file() and (run / PICKS).is_file():  # none of texts
            seen, picks = csv_rows(run / SEEN)[1], csv_rows(run / PICKS)[1]
            if not all("path" in row for row in picks) or not all({"image", "part", "path"} <= {*row} for row in seen):
                raise AdaptError(f"{run / SEEN} or {PICKS} is damaged, or of an earlier version: delete {SEEN}")
    told = header.model_dump(exclude={"format", "method", "config", "versions", "recipe", "metrics"})
    told |= {"method": {"name": header.method} | header.config, "metrics": metrics}
    told["recipe"] = {key: value for key, value in recipe.items() if key not in ("method", "backbone", "seed")}
    made = _made_with(machine, header.versions, metrics.pop("device", None), metrics.pop("processes", 1))
    return Provenance(file, header, machine, _flat(told) | instead | made, seen, picks)


def _flat(values: Mapping[str, object]) -> JsonObject:
    return dict(plain.leaves(values))


def _made_with(machine: JsonObject, libraries: Mapping[str, str], device: object, processes: object) -> JsonObject:
    """Return the facts of a machine, as in a run's environment.json, and of the versions of libraries."""
    known = {key: value for key, value in machine.items() if key not in ("versions", "text_memory", "accelerator")}
    return _flat({"machine": {"device": device, "processes": processes, **known}, "versions": libraries})


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
    two norms. `answers` are those of both to the same images, if they were asked.
    """

    facts: dict[str, tuple[object, object]]
    images: dict[str, list[str]]
    equal_tensors: int
    tensors: dict[str, float | str]
    blocks: dict[str, float]
    answers: tuple[Scores, Scores] | None = None

    def to_dict(self) -> JsonObject:
        """Return the differences as plain data, for JSON."""
        own = self.answers and compared(*self.answers, difference(*self.answers))
        return asdict(replace(self, answers=None)) | {"answers": own}


def differences(first: Provenance, second: Provenance) -> Differences:
    """Return what two adapters differ in; of their machines, what both runs know.

    Raises AdaptError if one is damaged.
    """
    facts = unlike(first.facts, second.facts)
    return Differences(
        {key: pair for key, pair in facts.items() if not (key.startswith("machine.") and None in pair)},
        _image_changes(first, second) if first.seen and second.seen else {},
        *tensor_changes(*(tensor_file.read(each.file) for each in (first, second))),
    )


def _image_changes(first: Provenance, second: Provenance) -> dict[str, list[str]]:
    """Return the paths of images by what became of them.

    An image is known by the hash of its file, wherever it is, and one that has changed by its place in its data.
    """
    found, roots, labels = dict[str, list[str]](), list[str](), list[dict[str, tuple[str, ...]]]()
    for each in (first, second):
        known = {row["path"]: row["image"] for row in each.seen}
        roots.append(os.path.commonpath([os.path.dirname(path) for path in known if path] or ["."]))
        labels.append(
            {known.get(row["path"], ""): tuple(v for k, v in row.items() if k != "path") for row in each.picks}
        )
    for part in ("train", "val", "unlabelled"):
        one, other = (
            {row["image"]: row["path"] for row in each.seen if row["part"] == part} for each in (first, second)
        )
        gone, new = (
            {path.removeprefix(root): path for image, path in a.items() if image not in b}
            for a, b, root in ((one, other, roots[0]), (other, one, roots[1]))
        )
        found[f"{part} images in both"] = [path for image, path in one.items() if image in other]
        found[f"{part} images whose file has changed"] = sorted(path for place, path in gone.items() if place in new)
        found[f"{part} images only in the first"] = [path for place, path in gone.items() if place not in new]
        found[f"{part} images only in the second"] = [path for place, path in new.items() if place not in gone]
        found[f"{part} images with another label"] = [
            path for image, path in one.items() if image in other and labels[0].get(image) != labels[1].get(image)
        ]
    return {kind: own for kind, own in found.items() if own}


def tensor_changes(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[int, dict[str, float | str], dict[str, float]]:
    """Return the fields of `Differences` about tensors. A block's name is that of its tensors up to a first number."""
    same, found, squares = 0, dict[str, float | str](), defaultdict[str, Tensor](lambda: torch.zeros(3).double())
    for name in sorted({*first, *second}):
        if name not in first or name not in second:
            found[name] = f"only in the {'first' if name in first else 'second'}"
        elif (first[name].shape, first[name].dtype) != (second[name].shape, second[name].dtype):
            found[name] = "of another shape or type"
        else:
            one, other = (each[name].contiguous().flatten() for each in (first, second))
            apart = one.double() - other.double()
            if torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
                same += 1
            else:
                found[name] = float(apart.abs().max())
            steps = name.split(".")
            block = ".".join(steps[: next((at for at, step in enumerate(steps, 1) if step.isdecimal()), None)])
            squares[block] += torch.stack([each.double().square().sum() for each in (apart, one, other)])
    blocks = {block: float((sums[0] / (sums[1:].max() or 1.0)).sqrt()) for block, sums in squares.items()}
    order = sorted(found, key=lambda name: -size if isinstance(size := found[name], float) else 1.0)
    return same, {name: found[name] for name in order}, dict(sorted(blocks.items(), key=lambda pair: -pair[1]))


def repeat(
    first: Provenance,
    out: Path,
    changes: Iterable[Override] = (),
    *,
    progress: bool = True,
    tell: Callable[[Differences], None] = lambda beforehand: None,
) -> Differences:
    """Train again in the new folder `out` as `first` was trained, and return what the new adapter differs in.

    The recipe and the seed are those of the header, and the number of threads and the memory for texts those of the
    run, which is only read. `changes` to the recipe say where data, backbone and device are now. `tell` gets the
    differences that are known before the training. If tensors differ, both adapters answer the test images.

    Raises AdaptError if the adapter does not say how it was trained, if the data, the backbone or the adapter that it
    started from is not here, and the errors of training.
    """
    file, (recipe, split) = first.file, _recorded(first, changes)
    with threads(max(1, plain.within(first.machine, "threads", kind=int) or torch.get_num_threads())):
        with outside_inference_mode():
            plan = plan_recipe(recipe, decodable(split, recipe, progress))
            model = plan.model
            check_backbone(first.header, model.backbone, file)
            if model.class_names != first.header.class_names:
                raise AdaptError(f"{file} has other classes than {recipe.data.source}: give the data of its training")
            if isinstance(model, AdaptedModel):  # by which classes, and random numbers with them, are divided
                model.text_memory = plain.within(first.machine, "text_memory", kind=int) or model.text_memory
            sets = {"train_set": plan.train_id, "test_set": items_id(plan.test_set) if plan.test_set else None}
            # what is here in place of what was there, and what is followed in place of what the run's files say
            header = _flat((first.header.recipe or {}) | first.header.versions)
            here = first.facts | {key: header.get(key.partition(": ")[2]) for key in first.facts if ": " in key}
            here |= {f"metrics.{key}": sets[key] for key in sets if f"metrics.{key}" in here} | {"seed": recipe.seed}
            here |= _made_with(environment(), versions(), described(model.backbone.device), 1)
            seen, picks = seen_rows(plan), pick_rows(plan.train_set)
            tell(differences(first, replace(first, facts=here, seen=seen, picks=picks)))
            with Run(out, recipe.to_yaml(), resume=False) as run:
                fit_plan(plan, run, (), progress)
        found = differences(first, provenance(out))
        if not (found.tensors and plan.test_set and tasks.of(plan.test_set).scored):
            return found
        both = (load(each, model.backbone) for each in (file, out))
        one, other = (evaluate(each, plan.test_set, cache=recipe.cache) for each in both)
        return replace(found, answers=(one, other))


def _recorded(first: Provenance, changes: Iterable[Override]) -> tuple[Recipe, Split]:
    """Return the recipe of an adapter's header with `changes`, and its data, no image of which is opened."""
    file, recorded = first.file, deepcopy(first.header.recipe)
    if recorded is None or not {"soup", "average"}.isdisjoint(recorded):
        joined = "is a soup or an average of several adapters"
        how = "has no recipe in its header, as after adapt.fit or adapt convert" if recorded is None else joined
        raise AdaptError(f"{file} {how}: make it, or its parts, again in the same way, and compare by `adapt diff`")
    for change in changes:
        set_key(recorded, change)
    recipe = build_recipe(recorded, f"the recipe in {file}")
    try:
        split = listed_data(recipe)
        if recipe.start is not None:
            check_start(recipe.start, recipe.new_method(), recipe.train is not None, split.class_names)
    except AdaptError as error:
        hint = "give --data if the data is elsewhere now" + f", and put {recipe.start} back" * bool(recipe.start)
        raise AdaptError(f"{file} cannot be trained again: {error}; {hint}") from error
    return recipe, split


def crossed(
    first: Provenance, folds: int, score: Score = "lac", changes: Iterable[Override] = (), progress: bool = True
) -> tuple[Model, Sets]:
    """Return the average, and its crossed sets (CV+), of models trained like `first`, each without one of the `folds`.

    Folds of the training images are random, and keep groups together. Each model has its own choice of settings and
    temperature. Raises AdaptError in the cases of `repeat`, for a method that is no closed form or starts from an
    adapter, for other answers than one class an image, and if a fold has all images of a class.
    """
    recipe, split = _recorded(first, changes)
    recipe, method = recipe.model_copy(update={"watch": False}), recipe.new_method()
    trained = recipe.train or recipe.start or not (calibrates_by_folds(method) and needs_labels(method))
    if trained or has_trait(method, Grades) or has_bags(split.train) or not tasks.of(split.train).one_class:
        raise AdaptError(
            f"{first.file} can have no sets without images held back: these are for methods that compute a classifier "
            "of single images, one class each, from labels in closed form, and start from no adapter. Calibrate this "
            f"{method.name} on images that it has not learned from, and leave folds out"
        )
    backbone = load_backbone(recipe.backbone, recipe.device, recipe.quantize)
    split, models = decodable(split, recipe, progress), list[Any]()
    groups = kept_together(split.train)
    names = list(dict.fromkeys(groups))
    if not 2 <= folds <= len(names):
        raise AdaptError(f"folds is {folds}; expected 2 to {len(names):,}, one for each image or group of images")
    Random(recipe.seed).shuffle(names)
    number = {name: place % folds for place, name in enumerate(names)}
    left_out = [number[group] for group in groups]
    check_backbone(first.header, plan_recipe(recipe, split, backbone).model.backbone, first.file)
    for fold in range(folds):
        try:
            part = replace(split, train=tuple(item for item, own in zip(split.train, left_out) if own != fold), test=())
            plan = plan_recipe(recipe, part, backbone)
            fit_plan(plan, None, (), progress)
        except AdaptError as error:
            raise AdaptError(f"a random one of {folds} folds cannot be left out: {error}; or try more folds") from error
        models.append(plan.model)
    made = average(models)
    made.metadata = {"recipe": {"average": {"folds": folds, "of": first.header.recipe}}, "seed": recipe.seed}
    answers = of_members(made, split.train, Inference(cache=recipe.cache))[left_out, range(len(left_out))]
    labels, told = tasks.of(split.train).numbers(split.train, made.class_names), items_id(split.train)
    return made, Sets.of(answers, labels, groups, score, False, made.settings_id, told, folds=left_out)
