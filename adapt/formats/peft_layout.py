"""LoRA and DoRA in peft's own layout: a folder with adapter_config.json and adapter_model.safetensors.

For a transformers model, `AutoPeftModel.from_pretrained(FOLDER)` loads the adapter with its backbone. For an open_clip
model, `PeftModel` loads the adapter after `adapt.split_attention(model)`. A fused layer such as `qkv`, which has a pair
of factors for each projection here, is one layer to peft: its one pair has their ranks together, and the same product.
`adapt.formats.peft_import` reads the layout.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor
from typing_extensions import TypeIs

from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.tower import Projection
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.common import plain
from adapt.common.disk import replacing, write_json, write_text
from adapt.common.errors import AdaptError
from adapt.formats import PEFT_CONFIG, adapter, tensor_file
from adapt.formats.adapter import Reading
from adapt.formats.model_card import WithPeft, model_card
from adapt.methods.base import Method
from adapt.methods.base.places import Place
from adapt.methods.lora import LoRA
from adapt.models.base import Adapted
from adapt.models.prediction import PLAIN

logger = logging.getLogger("adapt")

TENSORS = "adapter_model.safetensors"
FILES = (PEFT_CONFIG, TENSORS)
PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"  # of DoRA; its key has no `.weight`
_NAMES = ("lora_A", "lora_B", _MAGNITUDE)
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
    """Write a `model` with LoRA or DoRA, and a model card, to `folder`. Raises AdaptError for another method."""
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
    if model.backbone.towers_share or not (_has_layout(method) and model.answers == PLAIN):
        return None
    needed = _with_peft(model)
    return needed if needed.base is not None else None


def _with_peft(model: Adapted) -> WithPeft:
    backbone, config = model.backbone, model.method.config
    classifies = bool(model.class_names) and isinstance(backbone, DualEncoder) and _auto_mapping(model) is not None
    scale = config.logit_scale or getattr(backbone, "logit_scale", None)
    return WithPeft(_base(backbone) if classifies else None, config.template, scale)


def write(model: Adapted, folder: Path) -> None:
    """Write config and tensors in peft's layout to `folder`. Raises AdaptError if the method is not LoRA or DoRA."""
    method, backbone = model.method, model.backbone
    if not _has_layout(method):
        raise AdaptError(
            f"only LoRA and DoRA can be written in peft's layout, but this adapter is {method.name} with the settings "
            f"{method.config.model_dump()}: save an adapter file instead"
        )
    if isinstance(backbone, VisionEncoder):
        raise AdaptError(
            f"peft's layout has no place for the class vectors that this lora on {backbone.describe()} trained along: "
            "keep the adapter file"
        )
    backbone.check_towers_apart("peft's layout")
    note = Note(
        logit_scale=method.config.logit_scale,
        template=method.config.template,
        class_names=list(model.class_names),
        backbone=backbone.name,
        quantization=backbone.quantization,
        preprocess=TypeAdapter(Reading).validate_python(backbone.reading()),
    )
    tensors: dict[str, Tensor] = {}
    parts: dict[str, int] = {}  # projections of each layer
    state = method.state_dict()
    for layer, projections in layers(backbone).items():
        for name, tensor in _lora_of(projections, state).items():
            tensors[f"{PREFIX}{layer}.{name}{'' if name == _MAGNITUDE else '.weight'}"] = tensor
            parts[layer] = len(projections)
    with replacing(folder / TENSORS) as temporary:
        tensor_file.write(tensors, temporary, {"format": "pt", OURS: plain.dump(note.model_dump())})
    rank, alpha = method.config.rank, method.config.alpha * math.sqrt(method.config.rank)
    config = {
        "peft_type": "LORA",
        "task_type": None,  # with one AutoPeftModel refuses the folder; without, it takes the class from auto_mapping
        "auto_mapping": _auto_mapping(model),
        "base_model_name_or_path": _base(backbone),
        "target_modules": list(parts),
        "r": rank,
        "lora_alpha": alpha,  # over r, the scaling that everybody reads; llama.cpp and SGLang ignore use_rslora
        "rank_pattern": {layer: count * rank for layer, count in parts.items() if count > 1},
        "alpha_pattern": {layer: count * alpha for layer, count in parts.items() if count > 1},
        "lora_dropout": method.config.dropout,
        "use_rslora": False,
        "use_dora": bool(method.config.options.get("use_dora")),
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / PEFT_CONFIG, config)


def _has_layout(method: Method) -> TypeIs[LoRA]:
    """Return whether peft's `lora` alone, with or without DoRA, computes what the method does."""
    if not (isinstance(method, LoRA) and method.config.tuner == "lora"):
        return False
    return method.config.options.keys() <= {"use_dora", "init_lora_weights"}


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


def layers(backbone: Backbone) -> dict[str, dict[Place, Projection]]:
    """Return the projections in each linear layer that peft can adapt, by the layer's dotted name in the backbone.

    A layer has one projection, or several if it is fused, such as `qkv`. Fused attention of `nn.MultiheadAttention` has
    the layers into which `adapt.split_attention` splits it.
    """
    names = {id(module): name for name, module in backbone.model.named_modules()}
    found: dict[str, dict[Place, Projection]] = {}
    for tower in backbone.towers.values():
        for index, block in enumerate(tower.blocks):
            for letter, projection in block.projections.items():
                name = names[id(projection.module)]
                if projection.weight_name != "weight":
                    name = f"{name}.{letter}_proj"
                found.setdefault(name, {})[tower.name, index, letter] = projection
    return found


def _lora_of(projections: Mapping[Place, Projection], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a layer of n projections, as peft names them, from those of our LoRA, if there are some.

    In a fused layer, each projection has its part of the rank of A `(n r, in)` and B `(out, n r)`: B is zero outside
    this part and the projection's rows. A projection without LoRA is zero, and in DoRA has its weight's magnitude.
    """
    own: dict[Place, list[Tensor]] = {}  # A, B and, in DoRA, the magnitude
    for place in projections:
        found = (state.get(".".join(map(str, (*place, name, "weight")))) for name in _NAMES)
        if kept := [tensor.cpu() for tensor in found if tensor is not None]:
            own[place] = kept
    if len(projections) == 1 or not own:
        return dict(zip(_NAMES, next(iter(own.values()), ())))
    layer: Any = next(iter(projections.values())).module
    rank, width = next(iter(own.values()))[0].shape
    whole = [torch.zeros(rank * len(projections), width), torch.zeros(layer.out_features, rank * len(projections))]
    if len(next(iter(own.values()))) > len(whole):
        whole.append(layer.weight.detach().float().norm(dim=1).cpu())
    for index, (place, projection) in enumerate(projections.items()):
        part = slice(rank * index, rank * (index + 1))
        for tensor, entries, value in zip(whole, (part, (projection.rows, part), projection.rows), own.get(place, ())):
            tensor[entries] = value
    return dict(zip(_NAMES, whole))
