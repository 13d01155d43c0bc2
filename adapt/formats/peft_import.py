"""A LoRA adapter out of peft's layout, written by `peft_layout` or by peft itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt import plain
from adapt.backbones.base import Backbone
from adapt.backbones.quantize import KINDS
from adapt.devices import AUTO
from adapt.errors import AdaptError
from adapt.formats import tensor_file
from adapt.formats.adapter import check_reading, read_tensors
from adapt.formats.header import checked_reading
from adapt.formats.peft_layout import CONFIG, NOTED, OURS, PREFIX, TENSORS, module_names
from adapt.formats.rebuild import build_for, named_backbone, note_quantization
from adapt.methods.lora import LoRA, Place
from adapt.models.wrap import Model
from adapt.shown import brief

if TYPE_CHECKING:
    import torch

_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "base_model_name_or_path", "auto_mapping"}
# what says where the tensors sit, which their names say too, or how training began
_INERT = {
    "task_type", "peft_version", "revision", "inference_mode", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
    "ensure_weight_tying", "init_lora_weights",
}  # fmt: skip
_FROM_THE_WEIGHTS_AS_THEY_ARE = (True, False, None, "gaussian", "orthogonal", "eva")
# one tower alone, whose modules some releases of transformers name without it
_TOWERS = {
    "CLIPTextModel": "text_model.",
    "CLIPVisionModel": "vision_model.",
    "SiglipTextModel": "text_model.",
    "SiglipVisionModel": "vision_model.",
}


def load(
    folder: str | Path,
    backbone: Backbone | None = None,
    class_names: Sequence[str] | None = None,
    *,
    fast: bool | None = None,
    device: str | torch.device = AUTO,
) -> Model:
    """The model of a LoRA adapter in peft's layout.

    What `peft_layout` wrote tells backbone and class names; of peft's own folders the backbone is the one that they
    name, and class names are given. Their logits have the backbone's own scale, and the template is LoRA's default.

    Raises AdaptError for another peft method, or modules that are no projections of the backbone's towers.
    """
    folder = Path(folder)
    config, recorded = _read_config(folder), _recorded(folder / TENSORS)
    class_names = _classes(recorded) if class_names is None else class_names
    if class_names is None:
        raise AdaptError(f"{folder} is in peft's layout and records no class names: give them (--classes)")
    if backbone is None:
        backbone = _named_backbone(config, recorded, folder, device)
    reading = recorded.get("preprocess")
    backbone = backbone.turning(reading is not None and reading["turned"])
    if reading is not None:
        note_quantization(recorded["quantization"], backbone, folder)
        check_reading(reading, backbone, folder)
    tensors, adapted = _placed(read_tensors(folder / TENSORS), config, backbone, folder)
    kept = {key: recorded[key] for key in ("logit_scale", "template") if key in recorded}
    method = LoRA(**_settings(config, adapted, backbone), **kept)
    return build_for(method, backbone, class_names, tensors, str(folder), fast).eval()


def class_names_of(folder: Path) -> list[str]:
    """The class names that a folder in peft's layout records; none where peft itself wrote it."""
    return _classes(_recorded(folder / TENSORS)) or []


def _classes(recorded: dict[str, Any]) -> list[str] | None:
    return plain.within(recorded, "class_names", kind=list)


def _read_config(folder: Path) -> dict[str, Any]:
    """peft's settings. AdaptError where there are none, or where they are not those of a plain LoRA."""
    path = folder / CONFIG
    if not path.is_file():
        raise AdaptError(f"{folder} is not in peft's layout: it has no {CONFIG}")
    try:
        config = plain.parse(path.read_bytes())
        if config.get("peft_type") != "LORA":
            raise AdaptError(f"{folder} holds peft's {config.get('peft_type')}; only plain LoRA can be imported")
        found: dict[str, Any] = config | {"r": int(config["r"]), "lora_alpha": float(config["lora_alpha"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdaptError(f"{path} is damaged ({error!r}): expected peft's settings of a LoRA") from error
    _check_plain(found, folder)
    return found


def _check_plain(config: dict[str, Any], folder: Path) -> None:
    """AdaptError for a setting that changes what the tensors mean, as any may that is not known here."""
    for key in sorted(config.keys() - _READ - _INERT):
        if config[key] and config[key] != "none":
            raise AdaptError(
                f"{folder} is a LoRA with {key} = {brief(config[key])}; only plain LoRA can be imported, without it"
            )
    start = config.get("init_lora_weights")
    if start not in _FROM_THE_WEIGHTS_AS_THEY_ARE:
        raise AdaptError(
            f"{folder} began from weights that init_lora_weights = {brief(start)} had changed: save it by peft with "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )


def _recorded(path: Path) -> dict[str, Any]:
    """What `peft_layout` noted beside the tensors: scale, template, class names, the backbone and how it was used.

    Of peft's own folders nothing but that their logits have the backbone's scale.
    """
    if not path.is_file() and (path.parent / "adapter_model.bin").is_file():
        raise AdaptError(f"{path.parent} holds a pickle, adapter_model.bin, which is not read: save it again with peft")
    noted = tensor_file.describe(path).metadata.get(OURS)
    if noted is None:
        return {"logit_scale": None}
    try:
        found = plain.parse(noted)
        if found["quantization"] not in (None, *KINDS):
            raise ValueError(f"quantization is {brief(found['quantization'])}")
        checked_reading(found["preprocess"])
        return {key: found[key] for key in NOTED}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdaptError(f"{path} is damaged ({error!r}): its header's {OURS} holds no settings") from error


def _named_backbone(
    config: dict[str, Any], recorded: dict[str, Any], folder: Path, device: str | torch.device
) -> Backbone:
    base = config.get("base_model_name_or_path")
    name = recorded.get("backbone") or (f"hf:{base}" if base else None)
    if not isinstance(name, str) or config.get("revision") not in (None, "main"):
        named = "no backbone" if not isinstance(name, str) else f"revision {config['revision']!r} of {name}"
        raise AdaptError(f"{folder} names {named}: give the backbone (--backbone)")
    return named_backbone(name, device, recorded.get("quantization"), recorded.get("preprocess", {}))


def _placed(
    tensors: dict[str, Any], config: dict[str, Any], backbone: Backbone, folder: Path
) -> tuple[dict[str, Any], list[Place]]:
    """The tensors under the method's names, and the projections that they adapt."""
    sites = {name: site for site, name in module_names(backbone).items()}
    tower = _TOWERS.get(plain.within(config, "auto_mapping", "base_model_class", kind=str) or "", "")
    placed, adapted = {}, set()
    for key, tensor in tensors.items():
        name, _, factor = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        site = sites.get(name) or sites.get(f"{tower}{name}")
        if site is None:
            raise AdaptError(f"{folder} adapts {name!r}, which is no projection of {backbone.describe()}")
        placed[".".join(map(str, (*site, factor, "weight")))] = tensor
        adapted.add(site)
    if not adapted:
        raise AdaptError(f"{folder} holds no LoRA tensors")
    return placed, [site for site in sites.values() if site in adapted]


def _settings(config: dict[str, Any], sites: list[Place], backbone: Backbone) -> dict[str, Any]:
    """The method's settings; its scaling is alpha / sqrt(rank), peft's plain one alpha / rank."""
    rank, alpha = config["r"], config["lora_alpha"]
    return {
        "rank": rank,
        "alpha": alpha if config.get("use_rslora") else alpha / math.sqrt(rank),
        "dropout": config.get("lora_dropout", 0.0),
        "towers": tuple(dict.fromkeys(tower for tower, _, _ in sites)),
        "projections": tuple(dict.fromkeys(letter for _, _, letter in sites)),
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
