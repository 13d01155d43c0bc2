"""Loading of a backbone (a frozen CLIP or similar model) by a name or from a folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from adapt.backbones import families
from adapt.backbones.base import Backbone, outside_inference_mode
from adapt.common.devices import AUTO, chosen, described
from adapt.common.errors import AdaptError, unpanicked

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import DualEncoder
    from adapt.backbones.fusion import FusionEncoder
    from adapt.backbones.native import NativeVLM
    from adapt.backbones.vision_llm import VisionLLM

logger = logging.getLogger("adapt")

COMPACT = "compact.json"  # in folders that lack blocks, see adapt/formats/compact.py


@overload
def load_backbone(
    spec: Literal["mini-clip", "mini-clip-half"], device: str | torch.device = ..., quantize: str | None = ...
) -> DualEncoder: ...


@overload
def load_backbone(
    spec: Literal["mini-vilt"], device: str | torch.device = ..., quantize: str | None = ...
) -> FusionEncoder: ...


@overload
def load_backbone(
    spec: Literal["mini-clip+mini-lm"], device: str | torch.device = ..., quantize: str | None = ...
) -> VisionLLM: ...


@overload
def load_backbone(
    spec: Literal["mini-vlm"], device: str | torch.device = ..., quantize: str | None = ...
) -> NativeVLM: ...


@overload
def load_backbone(spec: str, device: str | torch.device = ..., quantize: str | None = ...) -> Backbone: ...


def load_backbone(spec: str, device: str | torch.device = AUTO, quantize: str | None = None) -> Backbone:
    """Load the backbone named `spec`, such as mini-clip or hf:NAME; `adapt backbones` lists all forms of names.

    By default, `device` is the accelerator of this process if there is one (see `adapt.common.devices`). On the device
    meta, the backbone is an outline: it is made from its configuration, and no weights are read. If `quantize` is nf4
    or int8, the linear layers in the backbone's blocks are quantised. Raises AdaptError for an unknown form of name,
    architecture, weight tag, folder, device or quantisation, and if quantisation needs bitsandbytes (the extra
    `quantize`) but the library is not installed.
    """
    place = chosen(device)
    if quantize is not None:
        from adapt.backbones import quantize as quantized

        quantized.check_can(quantize)
    with outside_inference_mode():
        backbone = of_one_model(spec, place)
        if quantize is not None:
            quantized.quantize(backbone, quantize)
        if device == AUTO and place.type != "cpu":
            logger.info("on %s", described(place))
        return backbone.to(place)


def of_one_model(spec: str, device: torch.device) -> Backbone:
    """Load and return the unquantised backbone named `spec`, which the caller then moves to `device`."""
    folder = Path(spec.removeprefix("hf:"))
    if (folder / COMPACT).is_file():
        raise AdaptError(
            f"{folder} is not a complete backbone, because the blocks that its adapter skips were removed. Load "
            "adapter and backbone together with adapt.load(FOLDER), or give the full backbone"
        )
    family = families.of(spec)
    with unpanicked(f"{spec} cannot be loaded, as its tokenizer fails"):
        if family.claims(spec):
            return family.load(spec, device)
        return family.load_folder(Path(spec), spec, device.type != "meta")
