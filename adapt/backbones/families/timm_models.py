"""The family of timm's models, named as timm names them, by hub repository, or given as folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adapt.backbones.families.base import Family
from adapt.backbones.sources import TIMM, errors_of_data, library_errors, reason
from adapt.common import hub
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone


class TimmModels(Family):
    name = "timm_models"
    prefix = "timm:"
    forms: ClassVar = {
        "timm:NAME_OR_FOLDER": "any image model of timm, e.g. timm:vit_small_patch14_dinov2.lvd142m, without its head",
    }
    reads_texts = False

    def meant(self, spec: str) -> str | None:
        import timm

        return self.prefix + spec if timm.is_model(spec) else None

    def load(self, spec: str, device: torch.device) -> Backbone:
        import timm

        from adapt.backbones import timm_images

        folder = _folder(spec.removeprefix(self.prefix))
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
        except (*library_errors(), *errors_of_data()) as error:
            raise AdaptError(f"cannot load {spec!r} with timm: {reason(error)}. Fetch the model again") from error
        return timm_images.build(model, spec)


def _folder(name: str) -> Path:
    """Return the folder of a timm model, fetched from the hub if it is not local; only safetensors are read."""
    folder, own = Path(name), "expected a timm model with config.json and model.safetensors, in a folder as "
    own += "timm.models.save_for_hf(model, FOLDER, safe_serialization=True) writes it"
    if not folder.is_dir() and folder.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
        repository = name if "/" in name else f"{TIMM}{name}"
        folder = hub.snapshot(repository, ["config.json", "model.safetensors"])
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise AdaptError(f"{name} has no {file}; {own}")
    return folder
