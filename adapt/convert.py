"""Imports published checkpoints. The only place where pickles are read: weights only, by a narrow allow-list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt import methods
from adapt.adapter import load_tensors, read_safetensors
from adapt.backbones.base import Backbone
from adapt.errors import AdaptError
from adapt.model import wrap


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
    return state


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
    state = read_safetensors(path) if Path(path).suffix == ".safetensors" else read_dassl(path)
    try:
        tensors, told = cls.published(state)
    except KeyError as error:
        listed = ", ".join(sorted(state)[:5]) or "nothing"
        raise AdaptError(f"{path} is no {method} checkpoint: it has no tensor {error}, but {listed}") from None
    new = cls(**told | dict(settings or {}))
    with torch.random.fork_rng(devices=[]):
        model = wrap(backbone, new, class_names)
    load_tensors(new, {name: tensor.float() for name, tensor in tensors.items()}, str(path))
    return model.eval()
