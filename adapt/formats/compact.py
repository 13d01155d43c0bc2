"""Compact folders: an adapter with its backbone, without the blocks that the adapter skips.

A compact folder holds the library's configuration of the full model, all tensors outside the skipped blocks, and the
unchanged adapter. Of each left-out tensor it holds the one value that the fingerprint samples. Loading builds the model
without allocating its tensors, removes the blocks, and only then moves the model to a device.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from adapt.backbones import families, fingerprint
from adapt.backbones.base import Backbone, block_paths, cut_out
from adapt.backbones.load import COMPACT
from adapt.backbones.tower import Absent
from adapt.common.disk import new_folder, replacing, write_json
from adapt.common.errors import AdaptError
from adapt.common.validation import parsed
from adapt.formats import COMPACT_WEIGHTS, tensor_file
from adapt.formats.adapter import NAME, read_header
from adapt.methods.base.traits import skipped_blocks
from adapt.models.base import Adapted
from adapt.models.building import at_most

FORMAT = 1


class _Record(BaseModel, frozen=True, strict=True, allow_inf_nan=False):
    """The content of the file that records which blocks and tensors were removed from the backbone."""

    format: int
    skipped: tuple[str, ...]
    cut: dict[str, float]
    """For each tensor that was cut out, the value that a fingerprint samples."""
    halves: bool
    embed_dim: int | None


def export(model: Adapted, folder: str | Path) -> Path:
    """Write `model`, without the blocks that its adapter skips, to a new `folder` for `adapt.load(folder)`.

    Raises AdaptError if the adapter skips no block, or if the backbone is quantised, compact or of unknown format.
    """
    backbone, skipped = model.backbone, sorted(skipped_blocks(model.method))
    if not skipped:
        raise AdaptError(
            f"this {model.method.name} adapter skips no block, so its backbone cannot be made compact: use the adapter "
            "as it is (only das adapters skip blocks)"
        )
    if backbone.quantization is not None:
        raise AdaptError(
            f"{backbone.describe()} is quantised, and cannot be exported: load the backbone without quantize"
        )
    tensors, cut = _taken_apart(backbone, skipped)
    floats = [x for x in tensors.values() if x.is_floating_point()]
    halves = all(x.dtype == torch.float32 and torch.equal(x.half().float(), x) for x in floats)
    if halves:
        tensors = {name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}
    embed_dim = getattr(backbone, "embed_dim", None)
    record = _Record(format=FORMAT, skipped=tuple(skipped), cut=cut, halves=halves, embed_dim=embed_dim)
    with new_folder(folder) as new:
        # of a copy with one value per tensor, the library writes the configuration
        model_parts = [*backbone.model.parameters(), *backbone.model.buffers()]
        ones = {
            id(x): nn.Parameter(x.detach().new_ones(1)) if isinstance(x, nn.Parameter) else x.new_ones(1)
            for x in model_parts
        }
        backbone.export(new, copy.deepcopy(backbone.model, ones))
        for written in new.glob("*.safetensors*"):
            written.unlink()
        with replacing(new / COMPACT_WEIGHTS) as temporary:
            tensor_file.write(tensors, temporary, {})
        model.save(new / NAME)
        write_json(new / COMPACT, record.model_dump(mode="json"))
    return Path(folder)


def _taken_apart(backbone: Backbone, skipped: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the tensors outside the skipped blocks, and one sampled value of each parameter inside skipped blocks."""
    paths = block_paths(backbone, skipped).values()
    if any(isinstance(backbone.model.get_submodule(path), Absent) for path in paths):
        raise AdaptError("this model was loaded from a compact folder: copy the folder instead of exporting")
    inside = tuple(f"{path}." for path in paths)
    parameters = dict(backbone.model.named_parameters())
    cut = {name: float(fingerprint.sampled(name, x)) for name, x in parameters.items() if name.startswith(inside)}
    tensors = parameters | dict(backbone.model.named_buffers())
    return {name: x.detach().cpu().contiguous() for name, x in tensors.items() if name not in cut}, cut


def backbone_of(folder: Path) -> tuple[Backbone, frozenset[str]]:
    """Return the backbone of a compact folder, on the CPU, and the names of the blocks that were removed.

    Raises AdaptError if the folder is damaged, or is not a compact folder.
    """
    path = folder / COMPACT
    if not path.is_file():
        raise AdaptError(f"{folder} is damaged ({COMPACT} is missing): export the folder again")
    record = parsed(_Record, path, f"{path} is damaged (export the folder again)")
    if record.format > FORMAT:
        raise AdaptError(f"{folder} has compact format {record.format}, but this adapt reads {FORMAT}: upgrade adapt")
    name, tensors = read_header(folder / NAME).backbone, tensor_file.read(folder / COMPACT_WEIGHTS)
    with at_most(sum(x.numel() for x in tensors.values())):  # tensors without memory count too
        backbone = families.of_folder(folder).load_folder(folder, name, tensors=False)
    try:
        if record.halves:
            tensors = {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
        _fill(backbone, tensors, record.cut)
        of_full_model = fingerprint.of_model(backbone.model)
    except (KeyError, ValueError) as error:
        raise AdaptError(f"{folder} is damaged ({error}): export the folder again") from error
    cut_out(backbone, record.skipped)
    backbone.fingerprint = of_full_model
    if record.embed_dim is not None:
        vars(backbone)["embed_dim"] = record.embed_dim  # measuring it takes a pass through all blocks
    return backbone, frozenset(record.skipped)


def _fill(backbone: Backbone, tensors: dict[str, Tensor], cut: dict[str, float]) -> None:
    """Set the tensors of an empty model in such a way that its fingerprint equals the fingerprint of the full model.

    A tensor of a removed block repeats one sampled value, which takes no memory. Raises ValueError if a tensor is
    missing, unknown or of another shape.
    """
    known = dict(backbone.model.named_parameters()) | dict(backbone.model.named_buffers())
    if wrong := known.keys() ^ (tensors.keys() | cut.keys()):
        raise ValueError(f"tensor {min(wrong)} is {'missing' if min(wrong) in known else 'unknown'}")
    for name, empty in known.items():
        tensor = torch.tensor(cut[name]).expand(empty.shape) if name in cut else tensors[name]
        if tensor.shape != empty.shape:
            raise ValueError(f"tensor {name} has shape {tuple(tensor.shape)}; expected {tuple(empty.shape)}")
        path, _, leaf = name.rpartition(".")
        filled = nn.Parameter(tensor) if isinstance(empty, nn.Parameter) else tensor
        setattr(backbone.model.get_submodule(path), leaf, filled)
