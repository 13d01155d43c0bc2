"""Import of published checkpoints. Only this module reads pickles: weights only, with a narrow allow-list."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt import methods
from adapt.backbones.base import Backbone
from adapt.common.errors import AdaptError
from adapt.formats import tensor_file
from adapt.formats.rebuild import build_for
from adapt.methods.base.traits import ReadsPublished, unpublished
from adapt.models.wrap import Model


class _Inert:
    """A placeholder for the optimiser and schedulers that Dassl pickles, whose state is read but never used."""


# what Dassl pickles beside tensors: an optimiser, schedulers, counters; each has an inert replacement
_ALLOWED = {
    "collections.defaultdict": lambda *factory: {},  # torch's reader cannot fill another dict
    "dassl.optim.lr_scheduler.ConstantWarmupScheduler": _Inert,
    "torch.optim.lr_scheduler.CosineAnnealingLR": _Inert,
    "torch.optim.sgd.SGD": _Inert,
}


def read_dassl(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a pickle, in `state_dict` (Dassl's `model.pth.tar-50`) or at the top (`mm_projector.bin`).

    Raises AdaptError if the file is missing, if it refers to anything outside the allow-list, or if it has no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise AdaptError(f"there is no checkpoint at {path}")
    _refuse_packed(path)
    try:
        allowed: list[Any] = [*((replacement, name) for name, replacement in _ALLOWED.items()), dict]
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = _REASON.search(str(error))
        reason = found[1] if found else f"it cannot be read as a checkpoint ({type(error).__name__})"
        raise AdaptError(f"{path} is refused: {reason}; only tensors and Dassl's own records are read") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise AdaptError(
            f"{path} is not a published checkpoint: expected tensors under 'state_dict', or a dictionary of tensors"
        )
    _check_stored(state, path)
    return state


def _refuse_packed(path: Path) -> None:
    """Raise AdaptError for a compressed zip file, which torch never writes but would unpack to any size."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(member.file_size for member in file.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise AdaptError(f"{path} is a damaged zip file ({error}); fetch it again") from error
    if size > path.stat().st_size:
        raise AdaptError(f"{path} is compressed ({size:,} bytes when unpacked); expected an uncompressed checkpoint")


def _check_stored(state: dict[str, Tensor], path: Path) -> None:
    """Raise AdaptError if a tensor is not a dense CPU tensor, or is larger than the file (an expanded view)."""
    held = path.stat().st_size
    for name, tensor in state.items():
        if not isinstance(name, str) or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise AdaptError(f"tensor {name!r} of {path} is not a dense CPU tensor, and cannot be imported")
        if tensor.numel() * tensor.element_size() > held:
            raise AdaptError(
                f"tensor {name!r} of {path} has shape {tuple(tensor.shape)}, too large for the file's {held:,} bytes"
            )
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if total > 2 * held:  # models may hold a tensor under two names
        raise AdaptError(f"{path} is refused: its tensors need {total:,} bytes, but the file has only {held:,}")


# the reason in a message of torch's reader; the rest is advice to run the file's code
_REASON = re.compile(r"((?:Unsupported|Trying to load) .*?)(?:\. |\.?$)", re.MULTILINE)


def import_published(
    path: str | Path,
    method: str,
    backbone: Backbone,
    class_names: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
) -> Model:
    """Load a published checkpoint of `method` as an adapted model, ignoring its copies of CLIP and token buffers.

    `settings` are method settings that the file does not record, such as CoOp's `class_position`. A vision LLM needs no
    class names. Raises AdaptError like `read_dassl`, and if tensors do not fit the method, backbone or classes.
    """
    cls, given = methods.find(method), dict(settings or {})
    if not issubclass(cls, ReadsPublished):
        unpublished(cls, {}, given)
    state = tensor_file.read(Path(path)) if Path(path).suffix == ".safetensors" else read_dassl(path)
    try:
        tensors, recorded = cls.published(state, given)
    except KeyError as error:
        listed = ", ".join(sorted(state)[:5]) or "nothing"
        raise AdaptError(
            f"{path} is not a checkpoint of {method}: it has no tensor {error}, but has {listed}"
        ) from None
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        raise AdaptError(f"{path} is not a checkpoint of {method}: its tensors have wrong shapes ({error})") from error
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    return build_for(cls(**recorded | given), backbone, class_names, floats, str(path)).eval()
