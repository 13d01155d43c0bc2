"""Compact folders: an adapter with its backbone, out of which the blocks that it skips were cut.

The folder holds the library's configuration of the whole model, every tensor but those of the skipped blocks, the
adapter as it was, and what a fingerprint reads of the missing tensors. Loading builds the model without memory for
its tensors, cuts the blocks out and only then moves it to a device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from adapt import plain
from adapt.backbones import fingerprint
from adapt.backbones.absent import Absent, block_paths, cut_out
from adapt.backbones.base import Backbone
from adapt.backbones.load import COMPACT, hollow
from adapt.disk import new_folder, replacing, write_text
from adapt.engine.allocation import at_most
from adapt.errors import AdaptError
from adapt.formats import tensor_file
from adapt.formats.adapter import NAME
from adapt.formats.header import read_header
from adapt.methods.base.traits import skipped_blocks
from adapt.models.base import Adapted
from adapt.validation import explain

TENSORS = "backbone.safetensors"
FORMAT = 1


class _Record(BaseModel):
    """What the folder says of how it was cut."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    format: int
    skipped: tuple[str, ...]
    cut: dict[str, float]
    """Of each tensor that was cut out, the entry that a fingerprint reads."""
    halves: bool
    embed_dim: int | None


def export(model: Adapted, folder: str | Path) -> Path:
    """Writes `model` to `folder`, which must not exist; it loads as `adapt.load(folder)`.

    Raises AdaptError where no block is skipped, the backbone is quantised or compact, or its format is not known.
    """
    backbone, skipped = model.backbone, sorted(skipped_blocks(model.method))
    if not skipped:
        raise AdaptError(
            f"this {model.method.name} skips no block, so nothing can be cut out of its backbone: keep the adapter as "
            "it is; das adapters skip blocks"
        )
    if backbone.quantization is not None:
        raise AdaptError(f"{backbone.describe()} is quantised: give it without quantize to export an adapter with it")
    kept, cut = _taken_apart(backbone, skipped)
    halves = _exact_in_half(kept.values())
    if halves:
        kept = {name: x.half() if x.is_floating_point() else x for name, x in kept.items()}
    embed_dim = getattr(backbone, "embed_dim", None)
    record = _Record(format=FORMAT, skipped=tuple(skipped), cut=cut, halves=halves, embed_dim=embed_dim)
    with new_folder(folder) as whole:
        backbone.export(whole, _outline(backbone.model))
        for written in whole.glob("*.safetensors*"):
            written.unlink()
        with replacing(whole / TENSORS) as temporary:
            tensor_file.write(kept, temporary, {})
        model.save(whole / NAME)
        write_text(whole / COMPACT, plain.dump(record.model_dump(mode="json"), indent=2) + "\n")
    return Path(folder)


def _taken_apart(backbone: Backbone, skipped: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors of all but the skipped blocks, and of each parameter of those the entry that a fingerprint reads."""
    paths = block_paths(backbone, skipped).values()
    if any(isinstance(backbone.model.get_submodule(path), Absent) for path in paths):
        raise AdaptError("this model was loaded from a compact folder already: copy that folder")
    inside = tuple(f"{path}." for path in paths)
    parameters = dict(backbone.model.named_parameters())
    cut = {name: float(fingerprint.sampled(name, x)) for name, x in parameters.items() if name.startswith(inside)}
    tensors = parameters | dict(backbone.model.named_buffers())
    return {name: x.detach().cpu().contiguous() for name, x in tensors.items() if name not in cut}, cut


def _exact_in_half(tensors: Iterable[Tensor]) -> bool:
    """Whether half precision loses nothing of float32 values, as where they were published so."""
    floats = [x for x in tensors if x.is_floating_point()]
    return all(x.dtype == torch.float32 and torch.equal(x.half().float(), x) for x in floats)


def _outline(model: nn.Module) -> nn.Module:
    """A copy of `model` with one value in each tensor: what the library writes beside the tensors is the same."""
    ones = {id(parameter): nn.Parameter(parameter.detach().new_ones(1)) for parameter in model.parameters()}
    return copy.deepcopy(model, ones | {id(buffer): buffer.new_ones(1) for buffer in model.buffers()})


def backbone_of(folder: Path) -> tuple[Backbone, frozenset[str]]:
    """The backbone of a compact folder, on the CPU, and the names of the blocks that were cut out of it.

    Raises AdaptError where the folder is none, or damaged.
    """
    record = _record(folder)
    name, kept = read_header(folder / NAME).backbone, tensor_file.read(folder / TENSORS)
    with at_most(sum(x.numel() for x in kept.values())):  # also of tensors without memory, in number
        backbone = hollow(folder, name)
    try:
        if record.halves:
            kept = {name: x.float() if x.is_floating_point() else x for name, x in kept.items()}
        _fill(backbone, kept, record.cut)
        whole = fingerprint.of_model(backbone.model)
    except (KeyError, ValueError) as error:
        raise AdaptError(f"{folder} is damaged: {error}. Export it again") from error
    cut_out(backbone, record.skipped)
    backbone.fingerprint = whole
    if record.embed_dim is not None:
        vars(backbone)["embed_dim"] = record.embed_dim  # reading it takes a pass through all blocks
    return backbone, frozenset(record.skipped)


def _record(folder: Path) -> _Record:
    path = folder / COMPACT
    if not path.is_file():
        raise AdaptError(f"{folder} is damaged: {COMPACT} is missing. Export the folder again")
    try:
        record = _Record.model_validate_json(plain.dump(plain.parse(path.read_bytes())))
    except ValidationError as error:
        raise AdaptError(f"{explain(_Record, error, f'{path} is damaged')}: export the folder again") from None
    except ValueError as error:
        raise AdaptError(f"{path} is damaged ({error}): export the folder again") from error
    if record.format > FORMAT:
        raise AdaptError(f"{folder} has compact format {record.format}, this adapt reads {FORMAT}: upgrade adapt")
    return record


def _fill(backbone: Backbone, tensors: dict[str, Tensor], cut: dict[str, float]) -> None:
    """Gives a hollow model its tensors, and those of the cut blocks one value each that takes no memory.

    The fingerprint then reads what it read of the whole model.
    """
    known = dict(backbone.model.named_parameters()) | dict(backbone.model.named_buffers())
    if wrong := known.keys() ^ (tensors.keys() | cut.keys()):
        raise ValueError(f"{min(wrong)} is {'missing' if min(wrong) in known else 'unknown'}")
    for name, empty in known.items():
        tensor = torch.tensor(cut[name]).expand(empty.shape) if name in cut else tensors[name]
        if tensor.shape != empty.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(empty.shape)}")
        path, _, leaf = name.rpartition(".")
        filled = nn.Parameter(tensor) if isinstance(empty, nn.Parameter) else tensor
        setattr(backbone.model.get_submodule(path), leaf, filled)
