"""Every method learns and answers on a device that is not the CPU, and moves back: a stand-in finds what stays behind.

No tensor of the CPU takes part in what is computed there: see `stand_in_device`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_in_device
import tiny_backbones
import tiny_fusion
import tiny_llms
import torch
from cases import ALL, NAMES, TRAINED_BY_STEPS, new
from checks import scaled
from selection import by_turns
from torch import Tensor

import adapt
from adapt import Backbone
from adapt.data import Item, Split
from adapt.tasks.targets import Graded

SETTINGS: dict[str, Any] = {"epochs": 1, "batch_size": 12, "warmup_epochs": 0, "augment": "none", "workers": 0}


def learn(model: Any, inputs: Any, labels: Tensor) -> None:
    """One backward pass as training has it; all gradients are where the model is."""
    model.train()
    model.method.backward(model.losses(model.step(inputs, labels))[0])
    device = model.backbone.device
    assert all(each.grad is None or each.grad.device == device for each in model.method.trains())


@pytest.fixture
def items(tiny_split: Split) -> dict[str, tuple[Item, ...]]:
    """With targets, for those that learn numbers."""
    parts = {"train": tiny_split.train, "val": tiny_split.val}
    targets = {name: Graded(name, float(number)) for number, name in enumerate(NAMES)}
    return {name: tuple(each.labelled(targets[each.answer]) for each in part) for name, part in parts.items()}


@by_turns("method", [name for name in ALL if name not in ("gpt4image", "xbt")], take=4, one_in=6)  # which read more
def test_a_training_on_a_device_and_the_way_back(method: str, images: Tensor, labels: Tensor, items: Any) -> None:
    backbone = tiny_backbones.small()  # each operation takes its time on the stand-in
    settings: dict[str, Any] = SETTINGS if method in (*TRAINED_BY_STEPS, "uniqa") else {"val_set": items["val"]}
    with stand_in_device.attached() as device:
        model = adapt.wrap(backbone.to(device), new(method), NAMES)
        found = adapt.fit(model, items["train"], progress=False, **settings)
        assert found.metrics["device"] == "lazy:0 (Stand-In)"
        assert all(tensor.device == device for tensor in model.method.state_dict().values())
        there = model(images[:2]).cpu()
        model.to("cpu")
        assert scaled(model(images[:2]), there) < 1e-5
        if method in TRAINED_BY_STEPS:
            learn(model, images, labels)


def test_an_adapter_is_loaded_and_moved(model_folder: Path, images: Tensor, tmp_path: Path) -> None:
    model = adapt.wrap(adapt.load_backbone(str(model_folder), "cpu"), new("maple"), NAMES).eval()
    path, expected = model.save(tmp_path / "a.safetensors"), model(images)
    with stand_in_device.attached() as device:
        for moved in (adapt.load(path, device="cpu").to(device), adapt.load(path, device="lazy")):
            assert moved.backbone.device == device
            assert scaled(moved(images).cpu(), expected) < 1e-5


LEARN: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "vilt": (tiny_fusion.vilt, {"name": "das", "skip": 0, "towers": ("fusion",)}),
    "bridgetower": (tiny_fusion.bridgetower, {"name": "das", "skip": 0, "towers": ("text_fusion",)}),
    "vlora": (lambda: tiny_llms.vision_llm("llama"), {"name": "vlora", "dim": 16, "depth": 1, "rank": 2, "heads": 2}),
    "projector": (lambda: tiny_llms.vision_llm("phi3"), {"name": "projector"}),
}


@pytest.mark.parametrize("case", LEARN)
def test_models_that_answer_questions(case: str, images: Tensor) -> None:
    make, described = LEARN[case]
    questions, answers = ["what is it ?", "how many ?"], ["yes", "no"]
    method = adapt.methods.find(described["name"])(**{k: value for k, value in described.items() if k != "name"})
    with stand_in_device.attached() as device:
        model: Any = adapt.wrap(make(), method, answers if case in tiny_fusion.KINDS else ())
        expected = model.eval()(images[:2], questions)
        model.to(device)
        assert scaled(model(images[:2], questions).cpu(), expected) < 1e-4
        learn(model, (images[:2], questions, answers), torch.tensor([0, 1]))
        if case not in tiny_fusion.KINDS:
            assert len(model.eval().generate(images[:2], questions, max_new_tokens=2)) == 2


def test_what_stays_behind_is_found(backbone: Backbone, images: Tensor) -> None:
    """The stand-in refuses what a GPU would, with the operation's name."""
    with stand_in_device.attached() as device:
        model = adapt.wrap(backbone, new("clip_adapter"), NAMES)
        model.to(device)
        model.method.fc.to("cpu")
        with pytest.raises(stand_in_device.DeviceMismatch, match=r"aten\.mm\.default takes tensors of lazy:0"):
            model(images)
