"""Load a LoRA adapter in peft's layout, written by `peft_layout` or by peft itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapt.backbones.base import Backbone
from adapt.common import plain
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.shown import brief
from adapt.common.validation import parsed
from adapt.formats import PEFT_CONFIG, tensor_file
from adapt.formats.adapter import check_reading, read_tensors
from adapt.formats.peft_layout import OURS, PREFIX, TENSORS, Note, module_names
from adapt.formats.rebuild import build_for, named_backbone, note_quantization
from adapt.methods.lora import LoRA, Place
from adapt.models.wrap import Model

_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "base_model_name_or_path", "auto_mapping"}
# settings that repeat what the names of the tensors say, or that only concern the start of training
_INERT = {
    "task_type", "peft_version", "revision", "inference_mode", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
    "ensure_weight_tying", "init_lora_weights",
}  # fmt: skip
_FROM_THE_WEIGHTS_AS_THEY_ARE = (True, False, None, "gaussian", "orthogonal", "eva")
# models of a single tower, which some releases of transformers leave out of their module names
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
    """Load a LoRA adapter from a folder in peft's layout as an adapted model.

    A folder written by `peft_layout` records the backbone and class names. A folder written by peft itself records only
    the backbone, so `class_names` must be given. The logit scale is then the backbone's, the template LoRA's default.

    Raises AdaptError if the adapter is not a plain LoRA, or adapts modules other than the projections of towers.
    """
    folder = Path(folder)
    config: JsonObject = _read_config(folder)
    note = _read_note(folder / TENSORS)
    class_names = note.class_names if class_names is None and note else class_names
    if backbone is None:
        base = config.get("base_model_name_or_path")
        name = (note and note.backbone) or (f"hf:{base}" if base else None)
        if not isinstance(name, str) or config.get("revision") not in (None, "main"):
            named = "no backbone" if not isinstance(name, str) else f"revision {config['revision']!r} of {name}"
            raise AdaptError(f"{folder} names {named}: give the backbone (--backbone)")
        backbone = named_backbone(name, device, note.quantization if note else None, note.preprocess if note else {})
    if class_names is None and backbone.kind not in ("vision LLM", "native VLM"):
        raise AdaptError(f"{folder} is in peft's layout but records no class names: give class names (--classes)")
    backbone = backbone.turning(note is not None and note.preprocess["turned"])
    if note is not None:
        note_quantization(note.quantization, backbone, folder)
        check_reading(note.preprocess, backbone, folder)
    tensors, adapted = _placed(read_tensors(folder / TENSORS), config, backbone, folder)
    rank, alpha = config["r"], config["lora_alpha"]
    method = LoRA(
        rank=rank,
        alpha=alpha if config.get("use_rslora") else alpha / math.sqrt(rank),  # peft usually divides by the rank
        dropout=config.get("lora_dropout", 0.0),
        towers=tuple(dict.fromkeys(tower for tower, _, _ in adapted)),
        projections=tuple(dict.fromkeys(letter for _, _, letter in adapted)),
        blocks=_blocks(adapted, backbone),
        **(note.model_dump(include={"logit_scale", "template"}) if note else {"logit_scale": None}),
    )
    return build_for(method, backbone, class_names or (), tensors, str(folder), fast).eval()


def class_names_of(folder: Path) -> list[str]:
    """Return the class names recorded in a folder in peft's layout; an empty list if peft itself wrote the folder."""
    note = _read_note(folder / TENSORS)
    return note.class_names if note else []


def _read_config(folder: Path) -> dict[str, object]:
    """Return peft's adapter_config.json. Raises AdaptError if the file is missing or does not describe a plain LoRA."""
    path = folder / PEFT_CONFIG
    if not path.is_file():
        raise AdaptError(f"{folder} is not in peft's layout: it has no {PEFT_CONFIG}")
    try:
        config = plain.parse(path.read_bytes())
        if config.get("peft_type") != "LORA":
            raise AdaptError(f"{folder} has peft's method {config.get('peft_type')}; only plain LoRA can be imported")
        config |= {"r": int(config["r"]), "lora_alpha": float(config["lora_alpha"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdaptError(f"{path} is damaged ({error!r}): expected peft's settings of a LoRA") from error
    for key in sorted(config.keys() - _READ - _INERT):  # they may change the meaning of the tensors
        if config[key] and config[key] != "none":
            raise AdaptError(
                f"{folder} is a LoRA with {key} = {brief(config[key])}; only plain LoRA can be imported, without {key}"
            )
    start = config.get("init_lora_weights")
    if start not in _FROM_THE_WEIGHTS_AS_THEY_ARE:
        raise AdaptError(
            f"{folder} was trained from weights that init_lora_weights = {brief(start)} had changed: save the adapter "
            "with peft's path_initial_model_for_weight_conversion, which converts it to a plain LoRA"
        )
    return dict(config)


def _read_note(path: Path) -> Note | None:
    """Return the note that `peft_layout` stores in the header of the tensors, or None if peft itself wrote the file."""
    if not path.is_file() and (path.parent / "adapter_model.bin").is_file():
        raise AdaptError(
            f"{path.parent} has a pickle, adapter_model.bin, which is not read: save safetensors with peft"
        )
    noted = tensor_file.describe(path).metadata.get(OURS)
    where = f"{path} is damaged (fetch or export it again): the key {OURS} of its header has no valid settings"
    return None if noted is None else parsed(Note, noted, where)


def _placed(
    tensors: dict[str, Tensor], config: dict[str, object], backbone: Backbone, folder: Path
) -> tuple[dict[str, Tensor], list[Place]]:
    """Return the tensors, renamed as in adapt's LoRA, and the projections that the tensors adapt."""
    sites = {name: site for site, name in module_names(backbone).items()}
    tower = _TOWERS.get(plain.within(config, "auto_mapping", "base_model_class", kind=str) or "", "")
    placed, adapted = {}, set()
    for key, tensor in tensors.items():
        name, _, factor = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        site = sites.get(name) or sites.get(f"{tower}{name}")
        if site is None:
            raise AdaptError(f"{folder} adapts {name!r}, which is not a projection of {backbone.describe()}")
        placed[".".join(map(str, (*site, factor, "weight")))] = tensor
        adapted.add(site)
    if not adapted:
        raise AdaptError(f"{folder} contains no LoRA tensors")
    return placed, [site for site in sites.values() if site in adapted]


def _blocks(sites: list[Place], backbone: Backbone) -> tuple[int, int] | None:
    """Return the range (first, last + 1) of adapted blocks, or None if all blocks of the towers are adapted."""
    adapted = {name: {block for tower, block, _ in sites if tower == name} for name in {site[0] for site in sites}}
    if all(len(blocks) == len(backbone.tower(name).blocks) for name, blocks in adapted.items()):
        return None
    ranges = {(min(blocks), max(blocks) + 1) for blocks in adapted.values()}
    if len(ranges) > 1:
        raise AdaptError(
            f"the towers are adapted in different blocks, {sorted(ranges)}; expected one range for all towers"
        )
    return ranges.pop()
