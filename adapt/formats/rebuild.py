"""Rebuilding of a model from the tensors of a file, on the backbone that the file names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapt import methods
from adapt.backbones.base import Backbone
from adapt.backbones.load import load_backbone
from adapt.formats.loadable import build_within, load_tensors
from adapt.methods.base import Method
from adapt.models.wrap import Model, assemble

logger = logging.getLogger("adapt")


def named_backbone(
    name: str, device: str | torch.device, quantization: str | None, reading: Mapping[str, object]
) -> Backbone:
    """Load the backbone `name` with the quantisation and the preprocessing that an adapter file records."""
    backbone: Backbone = load_backbone(name, device, quantization)
    backbone.read_as(dict(reading))
    return backbone


def note_quantization(recorded: str | None, backbone: Backbone, path: Path) -> None:
    """Warn if the quantisation of `backbone` differs from the quantisation that the adapter at `path` records."""
    if backbone.quantization != recorded:
        trained, given = (each or "no quantisation" for each in (recorded, backbone.quantization))
        logger.warning(
            "%s was trained on a backbone with %s, but the given backbone has %s: results will differ slightly",
            path,
            trained,
            given,
        )


def build_for(
    method: Method,
    backbone: Backbone,
    class_names: Sequence[str],
    tensors: dict[str, Tensor],
    source: str,
    fast: bool | None = None,
) -> Model:
    """Return an adapted model of `method` on `backbone`, with the trained `tensors` that were read from `source`.

    Raises AdaptError if the tensors do not fit the method, before any allocation much larger than the tensors.
    """
    names = build_within(method, backbone, class_names, tensors, source)
    model = assemble(backbone, method, names, fast)
    load_tensors(method, tensors, source)
    return model


def method_called(name: str) -> type[Method]:
    """Return the class of the method that an adapter names, which may be an average of others."""
    if name != "average":
        return methods.find(name)
    from adapt.models.average import AverageOfAdapters

    return AverageOfAdapters
