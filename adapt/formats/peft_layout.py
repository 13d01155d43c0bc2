"""LoRA in peft's own layout: a folder with adapter_config.json and adapter_model.safetensors.

For a transformers model, `AutoPeftModel.from_pretrained(FOLDER)` loads the adapter with its backbone. For an open_clip
model, `PeftModel` loads the adapter after `adapt.split_attention(model)`. `adapt.formats.peft_import` reads the layout.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, TypeAdapter

from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.common import plain
from adapt.common.disk import replacing, write_json, write_text
from adapt.common.errors import AdaptError
from adapt.formats import PEFT_CONFIG, adapter, tensor_file
from adapt.formats.adapter import Reading
from adapt.formats.model_card import WithPeft, model_card
from adapt.methods.lora import LoRA, Place
from adapt.models.prediction import PLAIN

if TYPE_CHECKING:
    from adapt.models.base import Adapted

logger = logging.getLogger("adapt")

TENSORS = "adapter_model.safetensors"
FILES = (PEFT_CONFIG, TENSORS)
PREFIX = "base_model.model."
OURS = "adapt"  # the key of our note in the header of the tensors


class Note(BaseModel):
    """The properties of an adapted model that peft's config cannot express, stored in the header of the tensor file."""

    logit_scale: float | None
    template: str
    class_names: list[str]
    backbone: str | None
    quantization: str | None = Field(pattern="^(nf4|int8)$")
    preprocess: Reading


def export(model: Adapted, folder: str | Path) -> Path:
    """Write a plain LoRA `model` and a model card to `folder` in peft's layout. Raises AdaptError for other methods."""
    folder = Path(folder)
    write(model, folder)
    if model.answers != PLAIN:
        logger.warning(
            "peft's layout stores only the LoRA tensors: the temperature, the zero-shot blend and the logit bias of "
            "this model are not exported"
        )
    header, kind = adapter.header_of(model), model.backbone.kind
    card = model_card(header, kind, address=str(folder), place=str(folder), peft=_with_peft(model))
    write_text(folder / "README.md", card)
    return folder


def carried(model: Adapted) -> WithPeft | None:
    """Return the backbone name and settings with which peft alone reproduces `model`; None if that is impossible."""
    method = model.method
    if model.backbone.towers_share or not (isinstance(method, LoRA) and method.config.plain and model.answers == PLAIN):
        return None
    needed = _with_peft(model)
    return needed if needed.base is not None else None


def _with_peft(model: Adapted) -> WithPeft:
    backbone, config = model.backbone, model.method.config
    classifies = bool(model.class_names) and isinstance(backbone, DualEncoder) and _auto_mapping(model) is not None
    scale = config.logit_scale or getattr(backbone, "logit_scale", None)
    return WithPeft(_base(backbone) if classifies else None, config.template, scale)


def write(model: Adapted, folder: Path) -> None:
    """Write config and tensors in peft's layout to `folder`. Raises AdaptError if the method is not plain LoRA."""
    method = model.method
    if not (isinstance(method, LoRA) and method.config.plain):
        raise AdaptError(
            f"only plain LoRA can be written in peft's layout, but this adapter is {method.name} with the settings "
            f"{method.config.model_dump()}: save an adapter file instead"
        )
    if isinstance(model.backbone, VisionEncoder):
        raise AdaptError(
            f"peft's layout has no place for the class vectors that this lora on {model.backbone.describe()} trained "
            "along: keep the adapter file"
        )
    model.backbone.check_towers_apart("peft's layout")
    names = module_names(model.backbone)
    for tower, block, letter in method.sites:
        fused = model.backbone.tower(tower).blocks[block].projections[letter].rows is not None
        if fused and model.backbone.kind == "native VLM":  # a CLIP's are split by `adapt.split_attention`
            raise AdaptError(
                f"{tower}.{block}.{letter} is a part of a fused layer, which peft cannot adapt by itself: leave "
                f"{letter} or the {tower} tower out of the adapter"
            )
    note = Note(
        logit_scale=method.config.logit_scale,
        template=method.config.template,
        class_names=list(model.class_names),
        backbone=model.backbone.name,
        quantization=model.backbone.quantization,
        preprocess=TypeAdapter(Reading).validate_python(model.backbone.reading()),
    )
    tensors = {}
    for site in method.sites:
        for letter, factor in zip("AB", method.pair(*site)):
            tensors[f"{PREFIX}{names[site]}.lora_{letter}.weight"] = factor.detach().cpu().contiguous()
    with replacing(folder / TENSORS) as temporary:
        tensor_file.write(tensors, temporary, {"format": "pt", OURS: plain.dump(note.model_dump())})
    config = {
        "peft_type": "LORA",
        "task_type": None,  # with one AutoPeftModel refuses the folder; without, it takes the class from auto_mapping
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
    write_json(folder / PEFT_CONFIG, config)


def _auto_mapping(model: Adapted) -> dict[str, str] | None:
    """Return peft's `auto_mapping`, which names the model class; None if `AutoPeftModel` cannot load the backbone."""
    kind = type(model.backbone.model)
    if not kind.__module__.startswith("transformers.") or model.backbone.name is None:
        return None
    return {"base_model_class": kind.__name__, "parent_library": kind.__module__}


def _base(backbone: Backbone) -> str | None:
    """Return the hub name or the absolute folder path of the backbone for transformers; None if unnamed."""
    name = None if backbone.name is None else backbone.name.removeprefix("hf:")
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def module_names(backbone: Backbone) -> dict[Place, str]:
    """Return every projection's dotted name in the backbone after `adapt.split_attention` has split fused attention."""
    names = {id(module): name for name, module in backbone.model.named_modules()}
    by_site = {}
    for tower in backbone.towers.values():
        for index, block in enumerate(tower.blocks):
            for letter, projection in block.projections.items():
                name = names[id(projection.module)]
                by_site[(tower.name, index, letter)] = name if projection.rows is None else f"{name}.{letter}_proj"
    return by_site
