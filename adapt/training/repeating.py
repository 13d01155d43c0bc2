"""A training that is repeated from what its adapter and its run record, and compared with the first one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from adapt import tasks
from adapt.backbones.base import outside_inference_mode
from adapt.common import plain
from adapt.common.devices import described
from adapt.common.errors import AdaptError
from adapt.data.item import items_id
from adapt.evaluation.evaluate import evaluate
from adapt.formats.adapter import check_backbone, versions
from adapt.loading import load
from adapt.models.dual_encoder import AdaptedModel
from adapt.recipe import build_recipe
from adapt.recipe.file import Override, set_key
from adapt.training.fit import fit_plan, pick_rows, seen_rows
from adapt.training.plan import TrainingPlan
from adapt.training.provenance import Differences, Provenance, differences, made_with, provenance
from adapt.training.run import Run, environment
from adapt.training.run_recipe import backbone_of, build_for, decodable, listed_data, plan_of
from adapt.training.start import check_start


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
    file, recorded, threads = first.file, deepcopy(first.header.recipe), torch.get_num_threads()
    if recorded is None:
        raise AdaptError(
            f"{file} has no recipe in its header, as after adapt.fit or adapt convert: make it again in the same way, "
            "and compare the two by `adapt diff`"
        )
    if "soup" in recorded:
        raise AdaptError(f"{file} is a soup of several adapters: repeat each of them, and then `adapt soup`")
    for change in changes:
        set_key(recorded, change)
    recipe = build_recipe(recorded, f"the recipe in {file}")
    try:
        split = listed_data(recipe)
        if recipe.start is not None:
            check_start(recipe.start, recipe.new_method(), recipe.train is not None, split.class_names)
    except AdaptError as error:
        hint = "if the data is elsewhere now, give --data"
        raise AdaptError(f"{file} cannot be trained again: {error}; {hint}") from error
    try:
        torch.set_num_threads(int(first.machine.get("threads", threads)))
        with outside_inference_mode():
            backbone = backbone_of(recipe)
            split = decodable(split, recipe, progress)
            model = build_for(split, recipe, backbone)
            check_backbone(first.header, model.backbone, file)
            plan = plan_of(recipe, model, split)
            if isinstance(model, AdaptedModel):  # by which classes, and random numbers with them, are divided
                model.text_memory = int(first.machine.get("text_memory", model.text_memory))
            tell(differences(first, _here(first, plan)))
            with Run(out, recipe.to_yaml(), resume=False) as run:
                fit_plan(plan, run, (), progress)
        found = differences(first, provenance(out))
        if not (found.tensors and plan.test_set and tasks.of(plan.test_set).scored):
            return found
        both = (load(each, model.backbone) for each in (file, out))
        return found.answered(*(evaluate(each, plan.test_set, cache=recipe.cache) for each in both))
    finally:
        torch.set_num_threads(threads)


def _here(first: Provenance, plan: TrainingPlan) -> Provenance:
    """Return what is here, instead of what was there when the adapter `first` was trained."""
    facts = first.facts | made_with(environment(), versions(), described(plan.model.backbone.device), 1)
    sets = {"metrics.train_set": plan.train_id, "metrics.test_set": items_id(plan.test_set) if plan.test_set else None}
    header = dict(plain.leaves((first.header.recipe or {}) | first.header.versions))  # which are followed
    facts |= {key: header.get(key.partition(": ")[2]) for key in facts if ": " in key}
    facts |= {key: value for key, value in sets.items() if key in facts} | {"seed": (first.header.recipe or {})["seed"]}
    return replace(first, facts=facts, seen=seen_rows(plan), picks=pick_rows(plan.train_set))
