"""LoRA in peft's own layout, written and read: a folder with adapter_config.json and adapter_model.safetensors.

For a transformers model, `AutoPeftModel.from_pretrained(FOLDER)` loads the adapter with its backbone. For an open_clip
model, `PeftModel` loads the adapter after `adapt.split_attention(model)`. Folders that peft itself wrote are read too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from torch import Tensor

from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.common import plain
from adapt.common.devices import AUTO
from adapt.common.disk import replacing, write_json, write_text
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.shown import brief
from adapt.common.validation import explain
from adapt.formats import PEFT_CONFIG, adapter, tensor_file
from adapt.formats.adapter import Reading, check_reading, read_tensors
from adapt.formats.model_card import WithPeft, model_card
from adapt.formats.rebuild import build_for, named_backbone, note_quantization
from adapt.methods.lora import LoRA, Place
from adapt.models.prediction import PLAIN
from adapt.models.wrap import Model

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

    A folder written by `export` records the backbone and class names. A folder written by peft itself records only
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
    """Return the note that `write` stores in the header of the tensors, or None if peft itself wrote the file."""
    if not path.is_file() and (path.parent / "adapter_model.bin").is_file():
        raise AdaptError(
            f"{path.parent} has a pickle, adapter_model.bin, which is not read: save safetensors with peft"
        )
    noted = tensor_file.describe(path).metadata.get(OURS)
    if noted is None:
        return None
    try:
        return Note.model_validate_json(plain.dump(plain.parse(noted)))
    except ValidationError as error:
        reason = explain(Note, error, "it is incomplete")
    except ValueError as error:
        reason = str(error)
    raise AdaptError(f"{path} is damaged ({reason}): the key {OURS} of its header has no valid settings")


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
