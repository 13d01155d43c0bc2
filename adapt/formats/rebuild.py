"""A model around tensors that came out of a file, or go into one, on the backbone that the file names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapt.backbones.base import Backbone
from adapt.backbones.load import load_backbone
from adapt.devices import keeping_rng
from adapt.engine.allocation import at_most
from adapt.errors import AdaptError
from adapt.formats.adapter import check_fit, load_tensors
from adapt.formats.header import FORMAT
from adapt.methods.base import Method
from adapt.models.wrap import Model, assemble, build

if TYPE_CHECKING:
    from adapt.models.base import Adapted

logger = logging.getLogger("adapt")


def named_backbone(
    name: str, device: str | torch.device, quantization: str | None, reading: dict[str, Any]
) -> Backbone:
    """The backbone that a file names, in as many bits as there, and reading inputs as there."""
    backbone: Backbone = load_backbone(name, device, quantization)
    backbone.read_as(reading)
    return backbone


def note_quantization(recorded: str | None, backbone: Backbone, path: Path) -> None:
    """A word where the backbone is in other bits than the file's."""
    if backbone.quantization != recorded:
        trained, given = (each or "no quantisation" for each in (recorded, backbone.quantization))
        logger.warning(
            "%s was trained on a backbone of %s, this one has %s: results differ a little", path, trained, given
        )


def build_for(
    method: Method,
    backbone: Backbone,
    class_names: Sequence[str],
    tensors: dict[str, Tensor],
    source: str,
    fast: bool | None = None,
) -> Model:
    """The model of `method` with the tensors of the file `source`.

    Raises AdaptError where they do not fit each other, and before anything larger than the tensors is built.
    """
    names = _build_within(method, backbone, class_names, tensors, source)
    built = assemble(backbone, method, names, fast)
    load_tensors(method, tensors, source)
    return built


def check_loadable(model: Adapted[Any], tensors: dict[str, Tensor]) -> None:
    """Raises AdaptError unless `tensors` fit a method that is built from the settings of the model's, as they are."""
    kind, config = type(model.method), model.method.config.model_dump(mode="json")
    try:
        anew = kind(**kind.settings_of(config, FORMAT))
        _build_within(anew, model.backbone, model.class_names, tensors, "this model")
    except AdaptError as error:
        raise AdaptError(
            f"{kind.name} could not be loaded again from its settings: {error}. Allocate every tensor in build, by "
            "sizes in the settings; those that the data decides, prepare writes there (see Write a method)"
        ) from error


def _build_within(
    method: Method, backbone: Backbone, class_names: Sequence[str], tensors: dict[str, Tensor], source: str
) -> tuple[str, ...]:
    """Builds `method` as `build` does, in little more memory than `tensors` take, and checks that they fit it."""
    with keeping_rng(backbone.device):  # building draws initial values that the tensors replace
        try:
            with at_most(sum(tensor.numel() for tensor in tensors.values())):
                names = build(backbone, method, class_names)
        except AdaptError as error:
            raise AdaptError(f"{source}: {error}") from error
    check_fit(method, tensors, source)
    return names
