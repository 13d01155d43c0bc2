"""The family of timm's models, named as timm names them, by hub repository, by weights, or given as folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family
from adapt.backbones.sources import OFFLINE, TIMM, errors_of_data, library_errors, reason
from adapt.common import hub
from adapt.common.errors import AdaptError, nearest
from adapt.common.shown import first_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adapt.backbones.base import Backbone

_WEIGHTS = ".safetensors"
_OWN = (
    f"give weights of your own as timm:NAME/FILE{_WEIGHTS}, for timm's model NAME, or as timm:FOLDER, which "
    "timm.models.save_for_hf(model, FOLDER, safe_serialization=True) writes"
)


class TimmModels(Family):
    name = "timm_models"
    prefix = "timm:"
    forms: ClassVar = {
        "timm:NAME_OR_FOLDER": "any image model of timm, e.g. timm:vit_small_patch14_dinov2.lvd142m, without its head",
        f"timm:NAME/FILE{_WEIGHTS}": "the same, with weights of your own",
    }
    reads_texts = False

    def meant(self, spec: str) -> str | None:
        import timm

        if spec.endswith(_WEIGHTS):
            return f"{self.prefix}NAME/{spec} (NAME is the model's in timm)"
        return self.prefix + spec if timm.is_model(spec) else None

    def load(self, spec: str, device: torch.device) -> Backbone:
        import timm
        import torch

        from adapt.backbones import timm_images

        rest, tensors = spec.removeprefix(self.prefix), device.type != "meta"
        name, _, file = rest.partition("/")
        try:
            if file.endswith(_WEIGHTS) and Path(file).is_file() and timm.is_model(name):
                return timm_images.build(_of_weights(name, file), spec)
            source = f"local-dir:{_folder(rest, tensors)}" if tensors or not timm.is_model(rest) else rest
            with torch.device("cpu" if tensors else "meta"):
                model = timm.create_model(source, pretrained=tensors, num_classes=0)
        except (*library_errors(), *errors_of_data()) as error:
            raise AdaptError(f"cannot load {spec!r} with timm: {reason(error)}. Fetch the model again") from error
        return timm_images.build(model, spec)


def _of_weights(name: str, file: str) -> nn.Module:
    """Return timm's model `name` with the weights in a file, but for those of a classifier."""
    import timm
    from safetensors.torch import load_file

    model: Any = timm.create_model(name, num_classes=0)
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    given = {key: value for key, value in load_file(file).items() if not key.startswith(heads)}
    own = model.state_dict()
    if wrong := [key for key in own.keys() | given.keys() if key not in own.keys() & given.keys()]:
        raise AdaptError(f"{file} has no weights of timm's {name}: not both have {first_of(sorted(wrong))}")
    model.load_state_dict(given)
    made: nn.Module = model
    return made


def _folder(name: str, tensors: bool) -> Path:
    """Return the folder of a timm model, fetched from the hub if it is not local; only safetensors are read."""
    needed = ["config.json", "model.safetensors"] if tensors else ["config.json"]
    import timm

    folder = Path(name)
    if not folder.is_dir():
        if folder.is_absolute() or folder.suffix in (_WEIGHTS, ".bin", ".pt", ".pth"):
            raise AdaptError(f"{name} is no folder of a timm model, nor a model and its weights: {_OWN}")
        if "/" not in name and not timm.is_model(name):
            raise AdaptError(f"timm has no model {name!r}; {nearest(name, timm.list_models(), 'timm.list_models()')}")
        try:
            folder = hub.snapshot(name if "/" in name else f"{TIMM}{name}", needed)
        except AdaptError as error:
            raise AdaptError(f"{error}, {_OWN}, {OFFLINE}") from error
    for file in needed:
        if not (folder / file).is_file():
            raise AdaptError(f"{name} has no {file}: {_OWN}")
    return folder
