"""The adapter file: a safetensors file of the method's tensors; its header holds what must be checked on loading."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.version import __version__
from adapt.formats import header, tensor_file
from adapt.formats.header import Header, Reading

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.backbones.base import Backbone
    from adapt.models.base import Adapted

# the libraries that a result depends on, including those that decode and resize images
_LIBRARIES = (
    "torch", "torchvision", "pillow", "open_clip_torch", "transformers", "peft", "timm", "safetensors", "bitsandbytes",
)  # fmt: skip


NAME = "adapter.safetensors"  # in the folder of a run, and in a repository of the hub


def save(model: Adapted, path: str | Path) -> Path:
    """Write the adapter of `model` to `path` atomically, and return the path.

    Raises AdaptError if a value is not finite, or if the method could not be rebuilt from its settings.
    """
    from adapt.common.disk import replacing
    from adapt.formats.loadable import check_loadable

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.method.state_dict().items()}
    tensor_file.check_finite(tensors, "the model")
    check_loadable(model, tensors)
    metadata = header_of(model).metadata()
    with replacing(path) as temporary:
        tensor_file.write(tensors, temporary, metadata)
    return Path(path)


def header_of(model: Adapted) -> Header:
    """Return the header for the adapter file of `model`."""
    from adapt.models.answers import PLAIN

    backbone = model.backbone
    return header.make(
        method=model.method.name,
        config=model.method.config.model_dump(mode="json"),
        class_names=model.class_names,
        backbone=backbone.name,
        quantization=backbone.quantization,
        fingerprint=asdict(backbone.fingerprint),
        preprocess=backbone.reading(),
        logit_scale=_scale_of(model),
        versions=versions(),
        answers=None if model.answers == PLAIN else asdict(model.answers),
        **model.metadata,
    )


def _scale_of(model: Adapted) -> float | None:
    """Return the logit scale of the method or else of the backbone; None if the logits are not cosine similarities."""
    scale: float | None = model.method.logit_scale or getattr(model.backbone, "logit_scale", None)
    return scale


def check_scale(described: Header, model: Adapted, path: str | Path) -> None:
    """Raise AdaptError if the logit scale recorded in a header differs from the logit scale of `model`."""
    own, recorded = _scale_of(model), described.logit_scale
    if recorded is not None and (own is None or not isclose(recorded, own, rel_tol=1e-3)):
        raise AdaptError(
            f"{path} records the logit scale {recorded:g}, but {model.method.name} here has "
            f"{'none' if own is None else f'{own:g}'}. The file was changed by hand: fetch or train the adapter again"
        )


def versions() -> dict[str, str]:
    """Return a dict with the installed versions of adapt and of the libraries on which results depend."""
    installed = {"adapt": __version__}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):  # bitsandbytes is an extra
            installed[name] = version(name)
    return installed


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter file. Raises AdaptError if the file is damaged or a value is not finite."""
    tensors = tensor_file.read(Path(path))
    tensor_file.check_finite(tensors, str(path))
    return tensors


def check_backbone(described: Header, backbone: Backbone, path: str | Path) -> None:
    """Raise AdaptError if `backbone` has other weights or preprocessing than the backbone used in training."""
    from adapt.backbones.fingerprint import Fingerprint

    known = described.fingerprint  # a newer adapt may have written more
    recorded = Fingerprint(known["structure"], known["values"], known["configuration"])
    if difference := recorded.difference(backbone.fingerprint):
        raise AdaptError(
            f"{path} was trained on {described.backbone or 'another backbone'} ({recorded.short()}), not on "
            f"{backbone.describe()} ({backbone.fingerprint.short()}): {difference}. Give the backbone used in training"
        )
    check_reading(described.preprocess, backbone, path)


def check_reading(recorded: Reading, backbone: Backbone, path: str | Path) -> None:
    """Raise AdaptError if the preprocessing of `backbone` differs from `recorded`, except in rotation by EXIF."""
    own = plain.parse(plain.dump(backbone.turning(recorded["turned"]).reading()))
    if recorded != own:
        raise AdaptError(
            f"{path} was trained with the preprocessing {recorded}, but {backbone.describe()} has the preprocessing "
            f"{backbone.reading()}: give the backbone with the preprocessing (and prompt) used in training"
        )
