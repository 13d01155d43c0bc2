"""Load a LoRA or DoRA adapter in peft's layout, written by `peft_layout` or by peft itself."""

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
from adapt.formats.peft_layout import OURS, PREFIX, TENSORS, Note, layers
from adapt.formats.rebuild import build_for, named_backbone, note_quantization
from adapt.methods.lora import LoRA, Place
from adapt.models.wrap import Model

_READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "base_model_name_or_path", "auto_mapping",
}  # fmt: skip
_OF_FUSED = {"rank_pattern", "alpha_pattern"}  # read in folders of ours, which have them for fused layers alone
# settings that repeat what the names of the tensors say, or that only concern the start of training
_INERT = {
    "task_type", "peft_version", "revision", "inference_mode", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
    "ensure_weight_tying", "init_lora_weights",
}  # fmt: skip
_FROM_THE_WEIGHTS_AS_THEY_ARE = (True, False, None, "gaussian", "orthogonal", "eva")
_OF_RANK = {"lora_A": 0, "lora_B": 1}  # their axes
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
    """Load a LoRA or DoRA adapter from a folder in peft's layout as an adapted model.

    A folder written by `peft_layout` records the backbone and class names. A folder written by peft itself records only
    the backbone, so `class_names` must be given. The logit scale is then the backbone's, the template LoRA's default.

    Raises AdaptError if the adapter is another kind of LoRA, or adapts modules other than the projections of towers.
    """
    folder = Path(folder)
    config, note = _read_config(folder)
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
    towers = tuple(dict.fromkeys(tower for tower, _, _ in adapted))
    every = {place for projections in layers(backbone).values() for place in projections if place[0] in towers}
    rank, alpha = config["r"], config["lora_alpha"]
    if not config.get("use_rslora"):  # peft usually divides by the rank
        alpha = float(f"{alpha / math.sqrt(rank):.15g}")  # as it was before it was multiplied by the root
    method = LoRA(
        rank=rank,
        alpha=alpha,
        options={"use_dora": True} if config.get("use_dora") else {},
        dropout=config.get("lora_dropout", 0.0),
        towers=towers,
        projections="all" if set(adapted) == every else tuple(dict.fromkeys(letter for _, _, letter in adapted)),
        blocks=_blocks(adapted, backbone),
        **(note.model_dump(include={"logit_scale", "template"}) if note else {"logit_scale": None}),
    )
    return build_for(method, backbone, class_names or (), tensors, str(folder), fast).eval()


def class_names_of(folder: Path) -> list[str]:
    """Return the class names recorded in a folder in peft's layout; an empty list if peft itself wrote the folder."""
    note = _read_note(folder / TENSORS)
    return note.class_names if note else []


def _read_config(folder: Path) -> tuple[JsonObject, Note | None]:
    """Return peft's adapter_config.json and the note. Raises AdaptError if it is missing, or of another kind."""
    path = folder / PEFT_CONFIG
    if not path.is_file():
        raise AdaptError(f"{folder} is not in peft's layout: it has no {PEFT_CONFIG}")
    try:
        config = plain.parse(path.read_bytes())
        if config.get("peft_type") != "LORA":
            raise AdaptError(f"{folder} has peft's method {config.get('peft_type')}; only LoRA can be imported")
        config |= {"r": int(config["r"]), "lora_alpha": float(config["lora_alpha"])}
        if config["r"] < 1:
            raise ValueError(f"r is {config['r']}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdaptError(f"{path} is damaged ({error!r}): expected peft's settings of a LoRA") from error
    note = _read_note(folder / TENSORS)
    known = _READ | _INERT | (_OF_FUSED if note else set())
    for key in sorted(config.keys() - known):  # they may change the meaning of the tensors
        if config[key] and config[key] != "none":
            raise AdaptError(
                f"{folder} is a LoRA with {key} = {brief(config[key])}; only LoRA without {key} can be imported"
            )
    start = config.get("init_lora_weights")
    if start not in _FROM_THE_WEIGHTS_AS_THEY_ARE:
        raise AdaptError(
            f"{folder} was trained from weights that init_lora_weights = {brief(start)} had changed: save the adapter "
            "with peft's path_initial_model_for_weight_conversion, which converts it to a plain LoRA"
        )
    return dict(config), note


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
    tensors: dict[str, Tensor], config: JsonObject, backbone: Backbone, folder: Path
) -> tuple[dict[str, Tensor], list[Place]]:
    """Return the tensors, renamed as in adapt's LoRA, and the projections that the tensors adapt.

    One pair of a fused layer becomes a pair of each projection, with the same A unless each has a part of the rank.
    """
    found, rank = layers(backbone), int(config["r"])
    tower = _TOWERS.get(plain.within(config, "auto_mapping", "base_model_class", kind=str) or "", "")
    placed: dict[str, Tensor] = {}
    adapted, idle = set(), set()
    for key in sorted(tensors):  # lora_A before lora_B
        name, _, factor = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        projections = found.get(name) or found.get(f"{tower}{name}")
        if projections is None:
            raise AdaptError(f"{folder} adapts {name!r}, which is not a projection of {backbone.describe()}")
        for index, (place, projection) in enumerate(projections.items()):
            tensor = tensors[key]
            if len(projections) > 1:
                axis = _OF_RANK.get(factor)
                if tensor.ndim != (1 if axis is None else 2):
                    raise AdaptError(f"{folder} is damaged: {key} has the shape {tuple(tensor.shape)}; fetch it again")
                tensor = tensor if factor == "lora_A" else tensor[projection.rows]
                if axis is not None and tensor.shape[axis] == rank * len(projections):
                    tensor = tensor.narrow(axis, rank * index, rank)
                if factor == "lora_A" and not tensor.any():
                    idle.add(place)
            if place not in idle:
                placed[".".join(map(str, (*place, factor, "weight")))] = tensor
                adapted.add(place)
    if not adapted:
        raise AdaptError(f"{folder} contains no LoRA tensors")
    return placed, [place for projections in found.values() for place in projections if place in adapted]


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
