"""LoRA in peft's own layout: a folder with adapter_config.json and adapter_model.safetensors.

The folder loads with plain `PeftModel.from_pretrained` on a transformers model, and on an open_clip model after
`adapt.split_attention(model)`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapt import plain
from adapt.backbones.base import Backbone
from adapt.disk import replacing, write_text
from adapt.errors import AdaptError
from adapt.formats import tensor_file
from adapt.formats.adapter import read_tensors
from adapt.loading import build_for
from adapt.methods.lora import PROJECTIONS, LoRA, Place
from adapt.models.answers import PLAIN
from adapt.models.classifier import AdaptedModel

logger = logging.getLogger("adapt")

_PREFIX = "base_model.model."
_UNKNOWN_HERE = ("use_dora", "alpha_pattern", "rank_pattern", "lora_bias", "fan_in_fan_out")  # change the arithmetic


_OURS = "adapt"  # the key of our own in the header of the tensors


def export(model: AdaptedModel, folder: str | Path) -> Path:
    """Writes the LoRA adapter of `model` to `folder`. Raises AdaptError for another method or tuner."""
    method = model.method
    if not isinstance(method, LoRA) or not method.config.plain:
        raise AdaptError(
            f"only plain LoRA has peft's layout; this adapter is {method.name} {method.config.model_dump()}"
        )
    if model.answers != PLAIN:
        logger.warning("peft's layout holds what the towers learned: temperature and blend of answers stay behind")
    names = module_names(model.backbone)
    tensors = {}
    for site in method.sites:
        for letter, factor in zip("AB", method.pair(*site)):
            tensors[f"{_PREFIX}{names[site]}.lora_{letter}.weight"] = factor.detach().cpu().contiguous()
    folder = Path(folder)
    with replacing(folder / "adapter_model.safetensors") as temporary:
        tensor_file.write(tensors, temporary, {"format": "pt", _OURS: plain.dump(_beside(method))})
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
    write_text(folder / "adapter_config.json", plain.dump(config, indent=2) + "\n")
    return folder


def _beside(method: LoRA) -> dict[str, Any]:
    """What the method has and peft's layout has no word for."""
    return {"logit_scale": method.config.logit_scale, "template": method.config.template}


def load(folder: str | Path, backbone: Backbone, class_names: Sequence[str]) -> AdaptedModel:
    """The model of a LoRA adapter in peft's layout; peft records neither backbone nor classes, so both are given.

    Where `export` did not write the folder, logits have the backbone's own scale and the template is LoRA's default.

    Raises AdaptError for another peft method, or modules that are no projections of the backbone's towers.
    """
    folder = Path(folder)
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise AdaptError(f"{folder} is not in peft's layout: it has no adapter_config.json")
    config = _read_config(path)
    if config.get("peft_type") != "LORA" or any(config.get(key) for key in _UNKNOWN_HERE):
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
    if not adapted:
        raise AdaptError(f"{folder} holds no LoRA tensors")
    method = LoRA(**_settings(config, adapted, backbone), **_recorded(folder / "adapter_model.safetensors"))
    model: AdaptedModel = build_for(method, backbone, class_names, tensors, str(folder))
    return model.eval()


def _recorded(path: Path) -> dict[str, Any]:
    """What `export` noted beside the tensors."""
    noted = tensor_file.describe(path).metadata.get(_OURS)
    if noted is None:
        return {"logit_scale": None}
    try:
        found = plain.parse(noted)
        return {key: found[key] for key in ("logit_scale", "template")}
    except (KeyError, TypeError, ValueError) as error:
        raise AdaptError(f"{path} is damaged ({error!r}): its header's {_OURS} holds no settings") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = plain.parse(path.read_bytes())
        return config | {"r": int(config["r"]), "lora_alpha": float(config["lora_alpha"])}
    except (KeyError, TypeError, ValueError) as error:
        raise AdaptError(f"{path} is damaged ({error!r}): expected peft's settings of a LoRA") from error


def _settings(config: dict[str, Any], sites: list[Place], backbone: Backbone) -> dict[str, Any]:
    """The method's settings; its scaling is alpha / sqrt(rank), peft's plain one alpha / rank."""
    rank, alpha = config["r"], config["lora_alpha"]
    return {
        "rank": rank,
        "alpha": alpha if config.get("use_rslora") else alpha / math.sqrt(rank),
        "dropout": config.get("lora_dropout", 0.0),
        "towers": tuple(tower for tower in ("text", "vision") if any(site[0] == tower for site in sites)),
        "projections": tuple(letter for letter in PROJECTIONS if any(site[2] == letter for site in sites)),
        "blocks": _blocks(sites, backbone),
    }


def _blocks(sites: list[Place], backbone: Backbone) -> tuple[int, int] | None:
    """The range of blocks; None where every tower is adapted whole, whatever its depth."""
    adapted = {name: {block for tower, block, _ in sites if tower == name} for name in {site[0] for site in sites}}
    if all(len(blocks) == len(backbone.tower(name).blocks) for name, blocks in adapted.items()):
        return None
    ranges = {(min(blocks), max(blocks) + 1) for blocks in adapted.values()}
    if len(ranges) > 1:
        raise AdaptError(
            f"the towers are adapted in different blocks, {sorted(ranges)}; only one range can be imported"
        )
    return ranges.pop()


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
