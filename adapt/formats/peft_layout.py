"""LoRA in peft's own layout: a folder with adapter_config.json and adapter_model.safetensors.

On a transformers model `AutoPeftModel.from_pretrained(FOLDER)` loads it with its backbone, and `PeftModel` on an
open_clip model after `adapt.split_attention(model)`. See `adapt.formats.peft_import` for the way back.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt import plain
from adapt.backbones.base import Backbone, DualEncoder
from adapt.disk import replacing, write_text
from adapt.errors import AdaptError
from adapt.formats import adapter, tensor_file
from adapt.formats.model_card import WithPeft, model_card
from adapt.methods.lora import LoRA, Place
from adapt.models.answers import PLAIN

if TYPE_CHECKING:
    from adapt.models.base import Adapted

logger = logging.getLogger("adapt")

CONFIG, TENSORS = FILES = ("adapter_config.json", "adapter_model.safetensors")
PREFIX = "base_model.model."
OURS = "adapt"  # the key of our own in the header of the tensors
NOTED = ("logit_scale", "template", "class_names", "backbone", "quantization", "preprocess")  # what it holds


def export(model: Adapted, folder: str | Path) -> Path:
    """Writes the LoRA adapter of `model` to `folder`, with a model card. AdaptError for another method or tuner."""
    method, folder = model.method, Path(folder)
    if not is_plain(method):
        raise AdaptError(
            f"only plain LoRA has peft's layout; this adapter is {method.name} {method.config.model_dump()}"
        )
    if model.answers != PLAIN:
        logger.warning(
            "peft's layout holds what the towers learned: temperature, blend and bias of answers stay behind"
        )
    write(model, folder)
    header, family = adapter.header_of(model), model.backbone.family
    card = model_card(header, family, address=str(folder), place=str(folder), peft=_with_peft(model))
    write_text(folder / "README.md", card)
    return folder


def is_plain(method: Any) -> bool:
    """Whether a method is nothing but what peft's LoraConfig says."""
    return isinstance(method, LoRA) and method.config.plain


def carried(model: Adapted) -> WithPeft | None:
    """What plain peft needs to answer as `model` does with nothing of adapt's; None where it cannot."""
    if not is_plain(model.method) or model.answers != PLAIN:
        return None
    found = _with_peft(model)
    return found if found.base is not None else None


def _with_peft(model: Adapted) -> WithPeft:
    backbone, config = model.backbone, model.method.config
    classifies = bool(model.class_names) and isinstance(backbone, DualEncoder) and _auto_mapping(model) is not None
    scale = config.logit_scale or getattr(backbone, "logit_scale", None)
    return WithPeft(_base(backbone) if classifies else None, config.template, scale)


def write(model: Adapted, folder: Path) -> None:
    """Writes the two files of peft's layout to `folder`."""
    method: Any = model.method
    names = module_names(model.backbone)
    tensors = {}
    for site in method.sites:
        for letter, factor in zip("AB", method.pair(*site)):
            tensors[f"{PREFIX}{names[site]}.lora_{letter}.weight"] = factor.detach().cpu().contiguous()
    with replacing(folder / TENSORS) as temporary:
        tensor_file.write(tensors, temporary, {"format": "pt", OURS: plain.dump(_beside(model))})
    config = {
        "peft_type": "LORA",
        "task_type": None,  # with one, AutoPeftModel refuses the folder, and takes the class from auto_mapping without
        "auto_mapping": _auto_mapping(model),
        "base_model_name_or_path": _base(model.backbone),
        "target_modules": [names[site] for site in method.sites],
        "r": method.config.rank,
        "lora_alpha": method.config.alpha,
        "lora_dropout": method.config.dropout,
        "use_rslora": True,
        "bias": "none",
        "inference_mode": True,
    }
    write_text(folder / CONFIG, plain.dump(config, indent=2) + "\n")


def _auto_mapping(model: Adapted) -> dict[str, str] | None:
    """Where `AutoPeftModel` finds the backbone's class; None for one that is not transformers' own."""
    kind = type(model.backbone.model)
    if not kind.__module__.startswith("transformers.") or model.backbone.name is None:
        return None
    return {"base_model_class": kind.__name__, "parent_library": kind.__module__}


def _base(backbone: Backbone) -> str | None:
    """What the backbone's library loads it by: a name on the hub, or a folder wherever the reader stands."""
    name = None if backbone.name is None else backbone.name.removeprefix("hf:")
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def _beside(model: Adapted) -> dict[str, Any]:
    """What the model has and peft's layout has no word for."""
    config = model.method.config
    return {
        "logit_scale": config.logit_scale,
        "template": config.template,
        "class_names": list(model.class_names),
        "backbone": model.backbone.name,
        "quantization": model.backbone.quantization,
        "preprocess": model.backbone.reading(),
    }


def module_names(backbone: Backbone) -> dict[Place, str]:
    """The dotted name of every projection's linear, fused attention taken as split (`adapt.split_attention`)."""
    names = {id(module): name for name, module in backbone.model.named_modules()}
    found = {}
    for tower in backbone.towers.values():
        for index, block in enumerate(tower.blocks):
            for letter, projection in block.projections.items():
                name = names[id(projection.module)]
                found[(tower.name, index, letter)] = name if projection.rows is None else f"{name}.{letter}_proj"
    return found
