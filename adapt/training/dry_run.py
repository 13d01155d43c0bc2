"""A dry run of a recipe: its data, sizes and memory, before the weights of a native model are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from adapt.backbones.base import outside_inference_mode
from adapt.backbones.load import hollow
from adapt.backbones.native import NativeVLM
from adapt.backbones.quantize import weight_bytes
from adapt.backbones.sources import BUNDLED, bundled
from adapt.common.devices import chosen, free_bytes
from adapt.common.shown import readable_bytes, spread
from adapt.models.base import is_native
from adapt.training.batches import Shares
from adapt.training.loop import Length, precision_on
from adapt.training.processes import ALONE
from adapt.training.run_recipe import listed_data, plan_recipe
from adapt.training.step_memory import chat_bytes

if TYPE_CHECKING:
    from adapt.backbones.base import Backbone
    from adapt.models.native_vlm import ChatModel
    from adapt.recipe import Recipe
    from adapt.training.plan import TrainingPlan

_COPIES = {"sgd": 3, "adam": 4, "adamw": 4}  # of a trained number: itself, its gradient, and the optimiser's


def planned(recipe: Recipe) -> Iterator[str]:
    """Yield lines about the training that `recipe` describes, after all checks that need no image.

    The weights of a native vision-language model are not loaded, unless it is quantised or starts from an adapter;
    those of other backbones are. Raises the same errors as the training would before its first image.
    """
    split = listed_data(recipe)
    outlined = recipe.start is None and recipe.quantize is None  # checks of both read the weights
    with outside_inference_mode():
        plan = plan_recipe(recipe, split, outline(recipe.backbone) if outlined else None)
    model, backbone = plan.model, plan.model.backbone
    counted = sum(parameter.numel() for parameter in backbone.model.parameters())
    trained = sum(parameter.numel() for parameter in model.method.trains())
    parts = {"training": plan.train_set, "validation": plan.val_set, "test": split.test, "unlabelled": split.unlabelled}
    yield f"backbone   {backbone.describe()}, {counted / 1e6:,.1f} million parameters"
    yield f"method     {model.method.name}, {trained:,} trained parameters"
    listed = ", ".join(f"{len(items):,} {name}" for name, items in parts.items() if items)
    yield f"data       {listed} {split.noun}"
    if plan.chosen is not None:
        yield from _length(plan)
    if is_native(model) and plan.chosen is not None:
        yield from _memory(recipe, plan, model, trained)
    elif plan.chosen is not None:
        yield "memory     estimated and compared with what is free before the first step"


def outline(spec: str) -> NativeVLM | None:
    """Return the native vision-language model named `spec` without weights, or None for any other backbone."""
    from adapt.backbones import transformers_models

    name = spec.removeprefix("hf:")
    folder = bundled(spec) if spec in BUNDLED else Path(name)
    backbone: Backbone | None = None
    if folder.is_dir():
        backbone = hollow(folder, spec)
    elif spec.startswith("hf:") and "+" not in spec:
        with torch.device("meta"):
            backbone = transformers_models.load(name, spec, tensors=False)
    return backbone if isinstance(backbone, NativeVLM) else None


def _length(plan: TrainingPlan) -> Iterator[str]:
    settings, count = plan.settings, len(plan.train_set)
    length = Length.of(settings, len(Shares(count, settings, plan.seed, ALONE)))
    size = min(settings.batch_size, count) * settings.accumulate
    yield f"training   {length.epochs} epochs, {length.steps:,} steps on {size} {plan.train_set[0].task.noun} each"


def _memory(recipe: Recipe, plan: TrainingPlan, model: ChatModel, trained: int) -> Iterator[str]:
    """Yield the tokens of the conversations, and the memory of weights, optimiser and a step."""
    settings, backbone, device = plan.settings, model.backbone, chosen(recipe.device)
    precision = precision_on(device, recipe.train.precision if recipe.train else "auto", True)
    stored = backbone.dtype if backbone.device.type != "meta" else backbone.vlm.config.dtype or torch.float32
    if stored == torch.float16 and device.type == "cpu":  # where it is computed in fp32
        stored = torch.float32
    step = chat_bytes(model, plan.train_set, precision, stored)
    sizes = {
        "weights": _weights(backbone, stored),
        "trained parameters and optimiser": 4 * _COPIES[settings.optimizer] * trained,
        f"a step in {precision}": step.of(min(settings.batch_size, len(plan.train_set))),
    }
    yield f"tokens     {spread(model.lengths(plan.train_set))} in a conversation, up to {step.answered} of answers"
    yield "memory     " + ", ".join(f"{readable_bytes(size)} of {name}" for name, size in sizes.items())
    free = readable_bytes(free_bytes(device))
    yield f"in all     about {readable_bytes(sum(sizes.values()))}; {free} are free on {device}"


def _weights(backbone: NativeVLM, stored: torch.dtype) -> int:
    """Return the memory of a model's weights, of which an outline is to be loaded in the precision `stored`."""
    if backbone.device.type == "meta":
        return stored.itemsize * sum(parameter.numel() for parameter in backbone.model.parameters())
    return weight_bytes(backbone.model)
