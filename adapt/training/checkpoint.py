"""Checkpoints for exact resuming: all that the next training step depends on, in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from adapt.common import plain
from adapt.common.devices import rng_states, set_rng_states
from adapt.common.disk import replacing
from adapt.common.errors import AdaptError
from adapt.common.shown import shown
from adapt.formats import tensor_file
from adapt.formats.loadable import load_tensors
from adapt.formats.tensor_file import check_finite
from adapt.methods.base import Method

T = TypeVar("T")
_WHAT = tensor_file.What("checkpoint", "start a new run with another --out")


class Position(BaseModel):
    """The progress of a training run, with `batch` finished batches of the current epoch and `step` finished steps."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: int = Field(default=0, ge=0)
    batch: int = Field(default=0, ge=0)
    step: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Trained:
    """The training state that a checkpoint stores and restores in place.

    `beside` contains tensors that the adapter does not need; the random state of `device` is also stored.
    """

    method: Method
    optimizer: Optimizer
    scaler: GradScaler
    beside: Mapping[str, Tensor]
    device: torch.device


def save(path: Path, trained: Trained, position: Position, recipe: str) -> None:
    """Replace the checkpoint at `path` atomically; `recipe` is the identifier of the recipe and the training images."""
    optimizer, scaler = trained.optimizer, trained.scaler
    tensors = {f"method.{name}": tensor for name, tensor in trained.method.state_dict().items()}
    tensors |= {f"beside.{name}": tensor for name, tensor in trained.beside.items()}
    numbers: dict[str, object] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers[f"optimizer.{index}.{key}"] = value
    tensors |= {f"rng.{name}": state for name, state in rng_states(trained.device).items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {
        "recipe": recipe,
        "position": plain.dump(position.model_dump()),
        "optimizer": plain.dump(numbers),
        "scaler": plain.dump(scaler.state_dict()),
    }
    with replacing(path) as temporary:
        tensor_file.write(tensors, temporary, metadata)


def load(path: Path, trained: Trained, recipe: str) -> Position:
    """Restore the trained tensors and the random state from a checkpoint, and return the position in the training run.

    Raises AdaptError if the checkpoint is missing or damaged, or belongs to another recipe.
    """
    if not path.is_file():
        raise AdaptError(f"there is no checkpoint at {path} to resume from: leave out --resume to start a new run")
    metadata = tensor_file.describe(path, _WHAT).metadata
    tensors = tensor_file.read(path, _WHAT)
    check_finite({name: x for name, x in tensors.items() if not name.startswith("beside.")}, str(path))
    if metadata.get("recipe") != recipe:
        raise AdaptError(f"{path} belongs to another recipe or other images: use the original ones, or another --out")
    load_tensors(trained.method, _under("method.", tensors), str(path))
    optimizer = trained.optimizer
    try:
        _fill(trained.beside, _under("beside.", tensors))
        numbers = plain.parse(metadata["optimizer"])
        state = _optimizer_state(optimizer, _under("optimizer.", tensors) | _under("optimizer.", numbers))
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        trained.scaler.load_state_dict(plain.parse(metadata["scaler"]))
        set_rng_states(_under("rng.", tensors), trained.device)
        return Position.model_validate(plain.parse(metadata["position"]))
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise AdaptError(
            f"{path} is damaged ({shown(error)}) and cannot be resumed: start a new run with another --out"
        ) from error


def _optimizer_state(optimizer: Optimizer, named: Mapping[str, object]) -> dict[int, dict[str, object]]:
    """Return the optimiser's state by parameter. Raises ValueError if an entry does not fit the parameter's shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, object]] = {}
    for name, value in named.items():
        index, key = name.split(".", 1)
        shape = value.shape if isinstance(value, Tensor) else ()
        if not 0 <= int(index) < len(parameters) or shape not in ((), parameters[int(index)].shape):
            raise ValueError(f"the optimiser state {name} does not match the name and shape of a parameter")
        state.setdefault(int(index), {})[key] = value
    return state


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy `values` into `tensors`. Raises ValueError if the names or shapes differ."""
    if tensors.keys() != values.keys() or any(tensors[name].shape != value.shape for name, value in values.items()):
        raise ValueError("the stored training tensors do not match the names and shapes of the tensors of this method")
    for name, value in values.items():
        tensors[name].copy_(value)


def finite(method: Method) -> bool:
    """Return whether all trained parameters of the method are finite."""
    return all(bool(parameter.isfinite().all()) for parameter in method.trains())


def _under(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
