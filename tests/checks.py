"""Comparisons and small steps that many tests share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt import AdaptedModel
from adapt.data import Item, open_image
from adapt.engine import vision
from adapt.methods.base.step import total

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def counted_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each vision block that runs from now on appends its index."""
    blocks, run_block = list[int](), vision.run_block

    def counted(block: Any, index: int, *args: Any, **kwargs: Any) -> Tensor:
        blocks.append(index)
        return run_block(block, index, *args, **kwargs)

    monkeypatch.setattr(vision, "run_block", counted)
    return blocks


def released(library: ModuleType) -> tuple[int, int]:
    """The first two numbers of a library's version."""
    major, minor, *_ = library.__version__.split(".")
    return int(major), int(minor)


def relative(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    return float(((value - expected).norm() / expected.norm().clamp_min(1e-30)).detach())


def scaled(value: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of max(1, largest expected value)."""
    return float(((value - expected).abs().max() / expected.abs().max().clamp_min(1.0)).detach())


def flat(tensors: Iterable[Tensor | None]) -> Tensor:
    """All values in one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])  # type: ignore[union-attr]


def perturb(model: AdaptedModel, seed: int = 3, size: float = 0.05) -> AdaptedModel:
    """Moves every method parameter off its start, so that none is zero by construction."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=noise))
    return model


def loss_of(model: AdaptedModel, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def objective(model: Any, inputs: Any, labels: Tensor, **weights: float) -> tuple[Tensor, Tensor]:
    """The loss of a batch, with the weights of more terms, and which answers are right."""
    terms, right = model.losses(model.step(inputs, labels), weights)
    return total(terms), right


def gradient(model: AdaptedModel, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the loss in all method parameters, as one vector."""
    parameters = list(model.method.parameters())
    return flat(torch.autograd.grad(loss_of(model, images, labels), parameters))


def numbers(items: Iterable[Item], class_names: Sequence[str]) -> list[int]:
    """The number of each item's class, by the order of the names."""
    return [class_names.index(item.answer) for item in items]


@torch.inference_mode()
def by_hand(model: AdaptedModel, items: Sequence[Item]) -> float:
    """The share of `items` whose class the model calls right."""
    transform = model.backbone.transform(train=False)
    chosen = model.eval()(torch.stack([transform(open_image(item)) for item in items])).argmax(-1).tolist()
    return sum(model.class_names[number] == item.answer for number, item in zip(chosen, items)) / len(items)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that wrapping must leave alone: objects, values, flags, hooks and attributes of every module."""
    return _state(model) | {"tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()}}


def _state(model: nn.Module) -> dict[str, Any]:
    return {
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules()],
        "tensors": model.state_dict(),
        "storage": {name: tensor.data_ptr() for name, tensor in model.state_dict().items()},
        "flags": {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: [dict(getattr(module, kind)) for kind in HOOKS] for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = _state(model)
    expected, tensors = before["tensors"], after["tensors"]
    assert tensors.keys() == expected.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []
    assert after | {"tensors": None} == before | {"tensors": None}


class Fault(Exception):
    """What a test raises inside a model."""


@contextmanager
def failing(module: nn.Module) -> Iterator[list[None]]:
    """Inside, `module` computes and then raises Fault. Each of its calls adds to the list that is yielded."""
    calls: list[None] = []

    def fail(*_: Any) -> None:
        calls.append(None)
        raise Fault

    handle = module.register_forward_hook(fail)
    try:
        yield calls
    finally:
        handle.remove()


def flag(model: nn.Module) -> None:
    """Gives the model flags of its owner: some parameters trainable, some modules in training mode."""
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0


def known(bug: str) -> pytest.MarkDecorator:
    """A bug that is still to be mended; take the mark off with it."""
    return pytest.mark.xfail(strict=True, reason=bug)
