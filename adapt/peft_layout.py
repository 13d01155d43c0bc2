"""LoRA in peft's own layout: a folder with adapter_config.json and adapter_model.safetensors.

The folder loads with plain `PeftModel.from_pretrained` on a transformers model, and on an open_clip model after
`adapt.split_attention(model)`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adapt.adapter import load_tensors, read_tensors, write_tensors
from adapt.backbones.base import Backbone
from adapt.errors import AdaptError
from adapt.files import replacing, write_text
from adapt.methods.lora import PROJECTIONS, LoRA
from adapt.model import AdaptedModel, wrap

_PREFIX = "base_model.model."
Site = tuple[str, int, str]


def export(model: AdaptedModel, folder: str | Path) -> Path:
    """Writes the LoRA adapter of `model` to `folder`. Raises AdaptError for another method or tuner."""
    method = model.method
    if not isinstance(method, LoRA) or not method.config.plain:
        raise AdaptError(
            f"only plain LoRA has peft's layout; this adapter is {method.name} {method.config.model_dump()}"
        )
    names = module_names(model.backbone)
    tensors = {}
    for site in method.sites:
        for letter, factor in zip("AB", method.pair(*site)):
            tensors[f"{_PREFIX}{names[site]}.lora_{letter}.weight"] = factor.detach().cpu().contiguous()
    folder = Path(folder)
    with replacing(folder / "adapter_model.safetensors") as temporary:
        write_tensors(tensors, temporary, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": model.backbone.name,
        "target_modules": [names[site] for site in method.sites],
        "r": method.config.rank,
        "lora_alpha": method.config.alpha,
        "lora_dropout": method.config.dropout,
        "use_rslora": True,
        "bias": "none",
        "inference_mode": True,
    }
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    return folder


def load(
    folder: str | Path, backbone: Backbone, class_names: Sequence[str], template: str = "a photo of a {}."
) -> AdaptedModel:
    """The model of a LoRA adapter in peft's layout; peft records neither backbone nor classes, so both are given.

    Raises AdaptError for another peft method, or modules that are no projections of the backbone's towers.
    """
    folder = Path(folder)
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise AdaptError(f"{folder} is not in peft's layout: it has no adapter_config.json")
    config = json.loads(path.read_text())
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise AdaptError(f"{folder} holds peft's {config.get('peft_type')}; only plain LoRA can be imported")
    sites = {name: site for site, name in module_names(backbone).items()}
    tensors = {}
    for key, tensor in read_tensors(folder / "adapter_model.safetensors").items():
        name, _, factor = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if name not in sites:
            raise AdaptError(f"{folder} adapts {name!r}, which is no projection of {backbone.describe()}")
        tensors[".".join(map(str, (*sites[name], factor, "weight")))] = tensor
    adapted = [
        sites[name] for name in sites if any(key.startswith(".".join(map(str, sites[name])) + ".") for key in tensors)
    ]
    with torch.random.fork_rng(devices=[]):
        model = wrap(backbone, LoRA(**_settings(config, adapted), template=template), class_names)
    load_tensors(model.method, tensors, str(folder))
    return model.eval()


def _settings(config: dict[str, Any], sites: list[Site]) -> dict[str, Any]:
    """The method's settings; its scaling is alpha / sqrt(rank), peft's plain one alpha / rank."""
    rank, alpha = config["r"], config["lora_alpha"]
    blocks = [block for _, block, _ in sites]
    return {
        "rank": rank,
        "alpha": alpha if config.get("use_rslora") else alpha / math.sqrt(rank),
        "dropout": config.get("lora_dropout", 0.0),
        "towers": tuple(tower for tower in ("text", "vision") if any(site[0] == tower for site in sites)),
        "projections": tuple(letter for letter in PROJECTIONS if any(site[2] == letter for site in sites)),
        "blocks": (min(blocks), max(blocks) + 1),
    }


def module_names(backbone: Backbone) -> dict[Site, str]:
    """The dotted name of every projection's linear, fused attention taken as split (`adapt.split_attention`)."""
    names = {id(module): name for name, module in backbone.model.named_modules()}
    found = {}
    for tower in backbone.towers.values():
        for index, block in enumerate(tower.blocks):
            for letter, projection in block.projections.items():
                name = names[id(projection.module)]
                found[(tower.name, index, letter)] = name if projection.rows is None else f"{name}.{letter}_proj"
    return found
