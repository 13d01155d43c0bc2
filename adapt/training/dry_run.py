"""A dry run of a recipe: its data, sizes and memory, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from adapt.backbones.base import DualEncoder, ImageEncoder, outside_inference_mode
from adapt.backbones.load import load_backbone
from adapt.backbones.quantize import weight_bytes
from adapt.backbones.vision_llm import VisionLLM
from adapt.common.devices import chosen, free_bytes
from adapt.common.shown import readable_bytes, spread
from adapt.engine.hooks import token_count
from adapt.models.base import Adapted, is_native
from adapt.training.batches import Shares
from adapt.training.loop import Length, precision_on
from adapt.training.processes import ALONE
from adapt.training.run_recipe import listed_data, plan_recipe
from adapt.training.step_memory import chat_bytes

if TYPE_CHECKING:
    from adapt.backbones.base import Backbone
    from adapt.recipe import Recipe
    from adapt.training.plan import TrainingPlan

_COPIES = {"sgd": 3, "adam": 4, "adamw": 4}  # of a trained number: itself, its gradient, and the optimiser's


def planned(recipe: Recipe) -> Iterator[str]:
    """Yield lines about the training that `recipe` describes, after all checks that need no image.

    The backbone is an outline, made from its configuration without weights, unless it is quantised or training starts
    from an adapter. Raises the same errors as the training would before its first image, but for those of weights.
    """
    split = listed_data(recipe)
    outlined = recipe.start is None and recipe.quantize is None  # checks of both read the weights
    with outside_inference_mode():
        plan = plan_recipe(recipe, split, load_backbone(recipe.backbone, "meta") if outlined else None)
    model, backbone, device = plan.model, plan.model.backbone, chosen(recipe.device)
    counted = sum(parameter.numel() for parameter in backbone.model.parameters())
    trained = sum(parameter.numel() for parameter in model.method.trains())
    parts = {"training": plan.train_set, "validation": plan.val_set, "test": split.test, "unlabelled": split.unlabelled}
    yield f"backbone   {backbone.describe()}, {counted / 1e6:,.1f} million parameters"
    yield f"method     {model.method.name}, {trained:,} trained parameters"
    listed = ", ".join(f"{len(items):,} {name}" for name, items in parts.items() if items)
    yield f"data       {listed} {split.noun}"
    if plan.chosen is not None:
        yield from _length(plan)
    sizes = {"weights": _weights(backbone, device)}
    if plan.chosen is not None:
        sizes["trained parameters and optimiser"] = 4 * _COPIES[plan.settings.optimizer] * trained
    if is_native(model) and plan.chosen is not None:
        precision = precision_on(device, recipe.train.precision if recipe.train else "auto", True)
        step = chat_bytes(model, plan.train_set, precision, _kept_as(backbone.dtype, device))
        sizes[f"a step in {precision}"] = step.of(min(plan.settings.batch_size, len(plan.train_set)))
        yield f"tokens     {spread(model.lengths(plan.train_set))} in a conversation, up to {step.answered} of answers"
    elif tokens := list(_tokens(model)):
        yield f"tokens     {', '.join(tokens)}"
    yield "memory     " + ", ".join(f"{readable_bytes(size)} of {name}" for name, size in sizes.items())
    later = "" if is_native(model) or plan.chosen is None else ", and a step, which is estimated before the first one"
    free = readable_bytes(free_bytes(device))
    yield f"in all     about {readable_bytes(sum(sizes.values()))}{later}; {free} are free on {device}"


def _length(plan: TrainingPlan) -> Iterator[str]:
    settings, count = plan.settings, len(plan.train_set)
    length = Length.of(settings, len(Shares(count, settings, plan.seed, ALONE)))
    size = min(settings.batch_size, count) * settings.accumulate
    yield f"training   {length.epochs} epochs, {length.steps:,} steps on {size} {plan.train_set[0].task.noun} each"


def _tokens(model: Adapted) -> Iterator[str]:
    """Yield how many tokens an image has, and the texts of classes, where the model has such."""
    backbone = model.backbone
    if isinstance(backbone, ImageEncoder) and "vision" in backbone.towers and "decoder" not in backbone.towers:
        yield f"{token_count(backbone)} of an image"
    elif isinstance(backbone, VisionLLM):
        yield f"{backbone.patch_shape()[0]} patches of an image"
    if isinstance(backbone, DualEncoder):
        prompts = [prompt for name in model.class_names for prompt in model.method.prompts(backbone.tokenizer, name)]
        if prompts:
            yield f"{spread([len(prompt.ids) for prompt in prompts])} of the text of a class"


def _kept_as(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the precision of weights on `device` that are stored as `dtype` (see `Backbone.to`)."""
    return torch.float32 if dtype == torch.float16 and device.type == "cpu" else dtype


def _weights(backbone: Backbone, device: torch.device) -> int:
    """Return the memory of a model's weights on `device`, to which an outline would be loaded."""
    if backbone.device.type != "meta":
        return weight_bytes(backbone.model)
    return sum(each.numel() * _kept_as(each.dtype, device).itemsize for each in backbone.model.parameters())
