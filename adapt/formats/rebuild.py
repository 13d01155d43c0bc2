"""Rebuilding of a model from the tensors of a file, on the backbone that the file names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapt.backbones.base import Backbone
from adapt.backbones.load import load_backbone
from adapt.formats.loadable import build_within, load_tensors
from adapt.methods.base import Method
from adapt.models.wrap import Model, assemble

logger = logging.getLogger("adapt")


def named_backbone(
    name: str, device: str | torch.device, quantization: str | None, reading: Mapping[str, object]
) -> Backbone:
    """Load the backbone that a file names, with the quantisation and the preprocessing that the file records."""
    backbone: Backbone = load_backbone(name, device, quantization)
    backbone.read_as(dict(reading))
    return backbone


def note_quantization(recorded: str | None, backbone: Backbone, path: Path) -> None:
    """Warn if the quantisation of `backbone` differs from the quantisation that the file at `path` records."""
    if backbone.quantization != recorded:
        trained, given = (each or "no quantisation" for each in (recorded, backbone.quantization))
        logger.warning(
            "%s was trained on a backbone with %s, this one has %s: results differ a little", path, trained, given
        )


def build_for(
    method: Method,
    backbone: Backbone,
    class_names: Sequence[str],
    tensors: dict[str, Tensor],
    source: str,
    fast: bool | None = None,
) -> Model:
    """Build an adapted model of `method`, and load `tensors`, which come from `source`, into it.

    Raises AdaptError if the tensors do not fit, before anything much larger than the tensors is allocated.
    """
    names = build_within(method, backbone, class_names, tensors, source)
    model = assemble(backbone, method, names, fast)
    load_tensors(method, tensors, source)
    return model
