"""Imports published checkpoints. The only place where pickles are read: weights only, by a narrow allow-list."""

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
from adapt.errors import AdaptError
from adapt.formats import tensor_file
from adapt.formats.rebuild import build_for
from adapt.methods.base.traits import ReadsPublished, unpublished


class _Inert:
    """Stands for the training objects inside Dassl's checkpoints: their state is taken in and never used."""


def _plain_dict(*factory: Any) -> dict[Any, Any]:
    """Stands for `collections.defaultdict`, which torch's reader does not fill."""
    return {}


# what Dassl pickles beside tensors: an optimiser, schedulers, counters. Each is replaced by something inert
_ALLOWED = {
    "collections.defaultdict": _plain_dict,
    "dassl.optim.lr_scheduler.ConstantWarmupScheduler": _Inert,
    "torch.optim.lr_scheduler.CosineAnnealingLR": _Inert,
    "torch.optim.sgd.SGD": _Inert,
}


def read_dassl(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a pickle: those under `state_dict` (Dassl's `model.pth.tar-50`), or all (`mm_projector.bin`).

    Raises AdaptError for a missing file, one that names anything outside the allow-list, or one without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise AdaptError(f"there is no checkpoint at {path}")
    _refuse_packed(path)
    try:
        allowed: list[Any] = [(replacement, name) for name, replacement in _ALLOWED.items()]
        with torch.serialization.safe_globals([*allowed, dict]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AdaptError(
            f"{path} is refused: {_reason(error)} Only tensors and Dassl's own records are read"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise AdaptError(f"{path} is no published checkpoint: it has no tensors under 'state_dict', nor tensors alone")
    _check_stored(state, path)
    return state


def _refuse_packed(path: Path) -> None:
    """AdaptError for a zip whose members are larger than itself: torch writes them as they are, and reads any."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(member.file_size for member in file.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise AdaptError(f"{path} is a damaged zip file ({error}); fetch it again") from error
    if size > path.stat().st_size:
        raise AdaptError(f"{path} is refused: unpacked it is {size:,} bytes. Published checkpoints are not packed")


def _check_stored(state: dict[str, Tensor], path: Path) -> None:
    """AdaptError for tensors that are more than the file holds, as expanded ones are, or no plain ones."""
    held = path.stat().st_size
    for name, tensor in state.items():
        if not isinstance(name, str) or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise AdaptError(f"tensor {name!r} of {path} is no plain tensor of numbers: it cannot be imported")
        if tensor.numel() * tensor.element_size() > held:
            raise AdaptError(
                f"tensor {name!r} of {path} has shape {tuple(tensor.shape)}, more than the file's {held:,} bytes hold"
            )
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if total > 2 * held:  # models may hold a tensor under two names
        raise AdaptError(f"{path} is refused: its tensors are {total:,} bytes, and the file is {held:,}")


# a sentence of torch's reader; what stands around it is advice to run the file's code
_REASON = re.compile(r"((?:Unsupported|Trying to load) .*?)(?:\. |\.?$)", re.MULTILINE)


def _reason(error: Exception) -> str:
    """The reader's own reason, without torch's advice to run the file's code."""
    found = _REASON.search(str(error))
    return f"{found[1]}." if found else f"it cannot be read as a checkpoint ({type(error).__name__})."


def import_published(
    path: str | Path,
    method: str,
    backbone: Backbone,
    class_names: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """A published checkpoint of `method` as an adapted model. What it holds of CLIP and of token buffers is left out.

    `settings` are those that the file does not tell, such as CoOp's `class_position`. A vision LLM has no class names.
    Raises AdaptError as `read_dassl` does, and where the tensors do not fit the method, the backbone or the classes.
    """
    cls = methods.find(method)
    if not issubclass(cls, ReadsPublished):
        raise unpublished(cls)
    state = tensor_file.read(Path(path)) if Path(path).suffix == ".safetensors" else read_dassl(path)
    try:
        tensors, told = cls.published(state, dict(settings or {}))
    except KeyError as error:
        listed = ", ".join(sorted(state)[:5]) or "nothing"
        raise AdaptError(f"{path} is no {method} checkpoint: it has no tensor {error}, but {listed}") from None
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        raise AdaptError(f"{path} is no {method} checkpoint: its tensors are of other shapes ({error})") from error
    new = cls(**told | dict(settings or {}))
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    return build_for(new, backbone, class_names, floats, str(path)).eval()
