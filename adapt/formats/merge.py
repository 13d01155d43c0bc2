"""Merge changed weights into a copy of the backbone: a standalone checkpoint in the backbone's own format."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.locks import alone
from adapt.common.disk import new_folder
from adapt.common.errors import AdaptError
from adapt.methods.base.traits import Merges
from adapt.models.base import Adapted

_MERGED = ("dual encoder", "native VLM")


def merged_model(model: Adapted) -> nn.Module:
    """Return a copy of the backbone's model with the changed weights, and with the temperature in the logit scale.

    Raises AdaptError if the method changes more than weights of a dual encoder or a native vision-language model, if
    predictions are blended with zero-shot predictions, if the adapter is multi-label, or if two towers share their
    weights.
    """
    if not isinstance(model.method, Merges):  # the method itself: other parts of a composition would be lost
        raise AdaptError(
            f"{model.method.name} cannot be merged; expected a method that changes only weights, such as lora or "
            "clip_svd, without other methods"
        )
    backbone = model.backbone
    if backbone.kind not in _MERGED:
        raise AdaptError(
            f"only a CLIP, a SigLIP or a native VLM can be merged, but {backbone.describe()} is a {backbone.kind}"
        )
    backbone.check_towers_apart("merged weights")
    if model.answers.blend < 1:
        raise AdaptError(
            f"{1 - model.answers.blend:.0%} of this adapter's predictions are zero-shot, which merged weights cannot "
            "include: load the adapter with adapt, or train without blend"
        )
    if model.answers.several:
        raise AdaptError(
            "this adapter may predict several classes for an image, which the backbone's own format cannot record: "
            "load the adapter with adapt instead of merging"
        )
    with alone(backbone.model):
        copied = copy.deepcopy(backbone.model)
    modules = dict(copied.named_modules())
    names = {id(module): name for name, module in backbone.model.named_modules()}
    with torch.no_grad():
        if isinstance(backbone, DualEncoder):
            whole: Any = modules[""]  # without the scale and the temperature, probabilities would differ
            if model.method.logit_scale is not None:
                whole.logit_scale.fill_(math.log(model.method.logit_scale))
            whole.logit_scale.sub_(math.log(model.answers.temperature))
            if getattr(whole, "logit_bias", None) is not None:
                whole.logit_bias.div_(model.answers.temperature)
        elif model.answers.temperature != 1:
            raise AdaptError(
                f"this adapter divides logits by the temperature {model.answers.temperature:g}, which merged weights "
                "cannot include: train it without calibrate, or load the adapter with adapt"
            )
        for (tower, block, letter), weight in model.method.merged().items():
            projection = backbone.tower(tower).blocks[block].projections[letter]
            target = getattr(modules[names[id(projection.module)]], projection.weight_name)
            merged = (target if projection.rows is None else target[projection.rows]).copy_(weight)
            if not merged.isfinite().all():
                raise AdaptError(
                    f"merged weights of {letter} in block {block} of the {tower} tower are not finite, as the "
                    f"adapter's values are too large for {merged.dtype}: train again at a lower learning rate, or do "
                    "not merge"
                )
    return copied


def merge(model: Adapted, folder: str | Path) -> Path:
    """Write the merged model as a checkpoint to the new `folder`, which `adapt.load_backbone(folder)` reads."""
    with new_folder(folder) as new:
        model.backbone.export(new, merged_model(model))
    return Path(folder)
