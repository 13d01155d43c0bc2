"""The adapter file: one safetensors file with the method's tensors and, in its header, all that loading must check."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt import plain
from adapt.errors import AdaptError
from adapt.formats import header, tensor_file
from adapt.formats.header import Header

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.backbones.base import Backbone
    from adapt.models.base import Adapted

# those whose arithmetic a result depends on, decoding and resizing of images included
_LIBRARIES = (
    "torch", "torchvision", "pillow", "open_clip_torch", "transformers", "peft", "timm", "safetensors", "bitsandbytes",
)  # fmt: skip


NAME = "adapter.safetensors"  # in the folder of a run, and in a repository of the hub


def save(model: Adapted, path: str | Path) -> Path:
    """Writes `model`'s adapter to `path`, atomically.

    Raises AdaptError for values that are not finite, and for a method that its settings would not build as it is now.
    """
    from adapt.disk import replacing
    from adapt.formats.loadable import check_loadable

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.method.state_dict().items()}
    tensor_file.check_finite(tensors, "the model")
    check_loadable(model, tensors)
    metadata = header_of(model).metadata()
    with replacing(path) as temporary:
        tensor_file.write(tensors, temporary, metadata)
    return Path(path)


def header_of(model: Adapted) -> Header:
    """What the file of `model` says of itself."""
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
    """What cosines are multiplied by; None where answers are no cosines."""
    scale: float | None = model.method.logit_scale or getattr(model.backbone, "logit_scale", None)
    return scale


def check_scale(described: Header, model: Adapted, path: str | Path) -> None:
    """Raises AdaptError where the header has another scale of logits than `model`, which computes with its own."""
    own, recorded = _scale_of(model), described.logit_scale
    if recorded is not None and (own is None or not isclose(recorded, own, rel_tol=1e-3)):
        raise AdaptError(
            f"{path} says that its logits are cosines x {recorded:g}, and those of {model.method.name} here are "
            f"{'none' if own is None else f'x {own:g}'}: it was changed by hand; fetch or train the adapter again"
        )


def versions() -> dict[str, str]:
    """The versions of adapt and of the libraries whose arithmetic it uses, as far as they are installed."""
    import adapt

    found = {"adapt": adapt.__version__}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):  # bitsandbytes is an extra
            found[name] = version(name)
    return found


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an adapter. Raises AdaptError where the file is damaged, or a value is not finite."""
    tensors = tensor_file.read(Path(path))
    tensor_file.check_finite(tensors, str(path))
    return tensors


def check_backbone(described: Header, backbone: Backbone, path: str | Path) -> None:
    """Raises AdaptError unless `backbone` is the model that the adapter was trained on."""
    from adapt.backbones.fingerprint import Fingerprint

    known = described.fingerprint  # a newer adapt may have written more
    recorded = Fingerprint(known["structure"], tuple(known["values"]), known["configuration"])
    if difference := recorded.difference(backbone.fingerprint):
        raise AdaptError(
            f"{path} was trained on {described.backbone or 'another backbone'} ({recorded.short()}), not on "
            f"{backbone.describe()} ({backbone.fingerprint.short()}): {difference}. Give the one it was trained on"
        )
    check_reading(described.preprocess, backbone, path)


def check_reading(recorded: dict[str, Any], backbone: Backbone, path: str | Path) -> None:
    """Raises AdaptError unless `backbone` prepares inputs as it was recorded, turned upright or not."""
    own = plain.parse(plain.dump(backbone.turning(recorded["turned"]).reading()))
    if recorded != own:
        raise AdaptError(
            f"{path} was trained on inputs prepared by {recorded}, {backbone.describe()} prepares them by "
            f"{backbone.reading()}: give the backbone with the preprocessing (and prompt) it was trained with"
        )
