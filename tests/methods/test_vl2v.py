"""VL2V: what learns in which stage, and what is refused; its losses are in tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
from torch import Tensor, nn

import adapt
from adapt import AdaptedModel, AdaptError, fit, methods
from adapt.data import Split
from adapt.methods import vl2v
from adapt.training.fitting import Fitting
from adapt.training.start import start_from

STEPS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "warmup_epochs": 0, "augment": "none", "workers": 0, "lr": 0.05}
NAMES = ("goldfish", "red_panda", "sea cucumber")


def made(**config: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(tiny_backbones.backbone("open_clip"), methods.VL2V(**methods.VL2V.example | config), NAMES)


def values(model: AdaptedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.method.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_the_projection_learns_first_and_then_the_student_alone(
    tiny_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[set[str]] = []
    train = Fitting.train

    def aligned(self: Fitting, title: str, **options: Any) -> float:
        before = values(self.model)
        seconds = train(self, title, **options)
        stages.append(moved(before, values(self.model)))
        return seconds

    monkeypatch.setattr(Fitting, "train", aligned)
    model = made()
    start = values(model)
    fit(model, tiny_split.train, progress=False, **STEPS)
    assert stages == [{"proj_lyr"}]
    assert moved(start, values(model)) == {"proj_lyr", "student"}
    monkeypatch.setattr(methods.VL2V, "prepare", lambda self, training: None)
    alone = made()
    fit(alone, tiny_split.train, progress=False, **STEPS)
    assert moved(start, values(alone)) == {"student"}


def test_a_student_has_its_own_normalisation_and_size() -> None:
    model = made()
    pixels = torch.rand(2, 3, 32, 32)
    given = model.backbone.preprocess
    mean, std = (torch.tensor(each)[:, None, None] for each in (given.mean, given.std))
    seen = model.method._pixels((pixels - mean) / std)
    assert seen.shape[-1] == 160  # timm's of test_vit, with mean and deviation 0.5
    larger = nn.functional.interpolate(pixels, (160, 160), mode="bicubic", antialias=True)
    assert torch.allclose(seen, (larger - 0.5) / 0.5, atol=1e-5)


def test_a_student_keeps_the_statistics_of_its_norms() -> None:
    model = made(student="test_resnet").train()
    before = {name: buffer.clone() for name, buffer in model.method.student.named_buffers()}
    model(torch.randn(2, 3, 32, 32))
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert all(torch.equal(before[name], buffer) for name, buffer in model.method.student.named_buffers())


def test_a_student_that_timm_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(AdaptError, match="vl2v: timm has no model 'vit_smal_patch16_224'; did you mean"):
        made(student="vit_smal_patch16_224")


def test_published_weights_are_a_first_start_and_no_second_one(
    tiny_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {name: value + 1 for name, value in made().method.student.state_dict().items()}
    monkeypatch.setattr(vl2v, "_published_weights", lambda student: weights)
    monkeypatch.setattr(Fitting, "train", lambda self, title, **options: 0.0)
    first = made(pretrained=True)
    fit(first, tiny_split.train, progress=False, **STEPS | {"lr": 1e-9})
    assert torch.allclose(first.method.student.state_dict()["cls_token"], weights["cls_token"], atol=1e-4)
    first.method.student.cls_token.data.fill_(5.0)
    first.save(tmp_path / "first.safetensors")
    second = made(pretrained=True)
    start_from(second, tmp_path / "first.safetensors")
    fit(second, tiny_split.train, progress=False, **STEPS | {"lr": 1e-9})
    assert torch.allclose(second.method.student.cls_token, torch.tensor(5.0), atol=1e-4)


def test_it_is_no_part_of_a_composition() -> None:
    with pytest.raises(AdaptError, match="vl2v cannot be part of a composition"):
        methods.Compose([methods.VL2V(**methods.VL2V.example), methods.CoOp(n_ctx=2)])
