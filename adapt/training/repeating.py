"""A training that is repeated from what its adapter and its run record, and compared with the first one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from adapt import tasks
from adapt.backbones.base import outside_inference_mode
from adapt.common.devices import described
from adapt.common.errors import AdaptError
from adapt.data.item import items_id
from adapt.evaluation.evaluate import evaluate
from adapt.formats.adapter import check_backbone, read_header, versions
from adapt.loading import load, located
from adapt.models.dual_encoder import AdaptedModel
from adapt.recipe import Recipe, build_recipe
from adapt.recipe.file import Override, set_key
from adapt.training.fit import fit_plan, pick_rows, seen_rows
from adapt.training.plan import TrainingPlan
from adapt.training.provenance import Differences, Provenance, differences, made_with, provenance
from adapt.training.run import Run, environment
from adapt.training.run_recipe import backbone_of, build_for, decodable, listed_data, plan_of


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
    recipe = _recipe_of(first, changes)
    threads, memory = torch.get_num_threads(), first.machine.get("text_memory")
    try:
        torch.set_num_threads(int(first.machine.get("threads", threads)))
        with outside_inference_mode():
            try:
                split = listed_data(recipe)
            except AdaptError as error:
                raise AdaptError(f"{first.file} cannot be trained again: {error}; --data says where it is") from error
            backbone = backbone_of(recipe)
            split = decodable(split, recipe, progress)
            model = build_for(split, recipe, backbone)
            check_backbone(first.header, model.backbone, first.file)
            plan = plan_of(recipe, model, split)
            if isinstance(model, AdaptedModel) and isinstance(memory, int):
                model.text_memory = memory  # by which classes, and random numbers with them, are divided
            tell(differences(first, _here(first, plan)))
            with Run(out, recipe.to_yaml(), resume=False) as run:
                fit_plan(plan, run, (), progress)
        found = differences(first, provenance(out))
        if not found.tensors or not plan.test_set or not tasks.of(plan.test_set).scored:
            return found
        both = (load(each, model.backbone) for each in (first.file, out))
        return found.answered(*(evaluate(each, plan.test_set, cache=recipe.cache) for each in both))
    finally:
        torch.set_num_threads(threads)


def _recipe_of(first: Provenance, changes: Iterable[Override]) -> Recipe:
    """Return the recipe in the header with `changes`. Raises AdaptError if it cannot be repeated."""
    file, recorded = first.file, deepcopy(first.header.recipe)
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
    if recipe.start is not None:
        try:
            read_header(located(recipe.start))
        except AdaptError as error:
            raise AdaptError(f"{file} started from the adapter {recipe.start}: {error}; put it there again") from error
    return recipe


def _here(first: Provenance, plan: TrainingPlan) -> Provenance:
    """Return what is here, instead of what was there when the adapter `first` was trained."""
    facts = first.facts | made_with(environment(), versions(), described(plan.model.backbone.device), 1)
    sets = {"metrics.train_set": plan.train_id, "metrics.test_set": items_id(plan.test_set) if plan.test_set else None}
    facts |= {key: value for key, value in sets.items() if key in facts}
    return replace(first, facts=facts, seen=seen_rows(plan), picks=pick_rows(plan.train_set))
