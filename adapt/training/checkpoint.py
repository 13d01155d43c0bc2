"""Exact resume: everything that the next step depends on, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.adapter import load_tensors, read_tensors, write_tensors
from adapt.errors import AdaptError
from adapt.files import replacing
from adapt.methods.base import Method


@dataclass
class Position:
    """How far training is. `batch` counts the current epoch's batches that are done, `step` all steps."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0


def save(path: Path, method: Method, optimizer: Optimizer, scaler: Any, position: Position, recipe: str) -> None:
    """Replaces the checkpoint at `path`, atomically. `recipe` identifies what was being trained."""
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    plain: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            (tensors if isinstance(value, Tensor) else plain)[f"optimizer.{index}.{key}"] = value
    tensors |= {f"rng.{name}": state for name, state in _rng_states().items()}
    metadata = {
        "recipe": recipe,
        "position": json.dumps(vars(position)),
        "optimizer": json.dumps(plain),
        "scaler": json.dumps(scaler.state_dict()),
    }
    with replacing(path) as temporary:
        write_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, metadata)


def load(path: Path, method: Method, optimizer: Optimizer, scaler: Any, recipe: str) -> Position:
    """Restores method, optimiser, scaler and random state; returns where training stood.

    Raises AdaptError where the checkpoint is missing, damaged, or of another recipe.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise AdaptError(f"there is no checkpoint at {path}: nothing to resume. Leave out --resume to start a new run")
    tensors = read_tensors(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if metadata["recipe"] != recipe:
        raise AdaptError(f"{path} is of another recipe or other images: resume with its own, or choose a new --out")
    load_tensors(method, _under("method.", tensors), str(path))
    state: dict[int, dict[str, Any]] = {}
    for name, value in [
        *_under("optimizer.", tensors).items(),
        *_under("optimizer.", json.loads(metadata["optimizer"])).items(),
    ]:
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    scaler.load_state_dict(json.loads(metadata["scaler"]))
    _restore_rng(_under("rng.", tensors))
    return Position(**json.loads(metadata["position"]))


def finite(method: nn.Module) -> bool:
    """Whether every trained value is a number."""
    return all(bool(parameter.isfinite().all()) for parameter in method.parameters())


def _under(prefix: str, named: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _rng_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_rng(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
