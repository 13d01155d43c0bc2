"""Loading of a backbone (a frozen CLIP or similar model) by a name or from a folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from adapt.backbones import families
from adapt.backbones.base import Backbone, outside_inference_mode
from adapt.devices import AUTO, chosen, described
from adapt.errors import AdaptError

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import DualEncoder
    from adapt.backbones.fusion import FusionEncoder
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
def load_backbone(spec: str, device: str | torch.device = ..., quantize: str | None = ...) -> Backbone: ...


def load_backbone(spec: str, device: str | torch.device = AUTO, quantize: str | None = None) -> Backbone:
    """Load the backbone that `spec` names, such as a hub repository; `adapt backbones` lists the forms of names.

    By default, `device` is the accelerator of this process if there is one (see `adapt.devices`). With `quantize`, nf4
    or int8, the linears in the backbone's blocks are quantised. Raises AdaptError for an unknown form, architecture,
    weight tag, folder, device or quantisation, and if bitsandbytes (the extra `quantize`) is needed and missing.
    """
    from adapt.backbones import quantize as quantized

    place = chosen(device)
    if quantize is not None:
        quantized.check_can(quantize)
    with outside_inference_mode():
        backbone = of_one_model(spec, place)
        if quantize is not None:
            quantized.quantize(backbone, quantize)
        if device == AUTO and place.type != "cpu":
            logger.info("on %s", described(place))
        return backbone.to(place)


def of_one_model(spec: str, device: torch.device) -> Backbone:
    """Return the backbone named `spec`, not quantised and not yet moved to `device`."""
    folder = Path(spec.removeprefix("hf:"))
    if (folder / COMPACT).is_file():
        raise AdaptError(
            f"{folder} is not a complete backbone: the blocks that its adapter skips were cut out. Load both "
            "with adapt.load(FOLDER), or give the full backbone"
        )
    family = families.of(spec)
    return family.load(spec, device) if family.claims(spec) else family.load_folder(Path(spec), spec)


def hollow(path: Path, name: str | None) -> Backbone:
    """Return the backbone that a folder's configuration describes, with empty weights (tensors on the meta device)."""
    import torch

    with torch.device("meta"):
        return families.of_folder(path).load_folder(path, name, tensors=False)
