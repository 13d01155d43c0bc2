"""Two stages: which tensors learn in each, from where a stopped run goes on, and which names the classifier knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch

import adapt
from adapt import AdaptedModel, fit, methods
from adapt.data import Split
from adapt.methods.ln_tuning import TunedNorm, layer_norm
from adapt.training.fitting import Fitting

STEPS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "warmup_epochs": 0, "augment": "none", "workers": 0, "lr": 0.05}
NAMES = ("goldfish", "red_panda", "sea cucumber")


def made(**config: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(tiny_backbones.backbone("open_clip"), methods.TwoStage(**config), NAMES)


@pytest.mark.parametrize("tune", ["norms", "biases"])
def test_either_stage_learns_its_own(tune: str, tiny_split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    train, start = Fitting.train, methods.TwoStage.start

    def staged(self: Fitting, title: str, **options: Any) -> float:
        seen["before"] = [value.clone() for value in self.model.method.tuned.parameters()]
        seconds = train(self, title, **options)
        seen["after"] = [value.clone() for value in self.model.method.tuned.parameters()]
        assert not self.model.method.classifier.any()
        return seconds

    def started(self: methods.TwoStage, texts: torch.Tensor) -> None:
        start(self, texts)
        seen["classifier"] = [self.classifier.clone()]

    monkeypatch.setattr(Fitting, "train", staged)
    monkeypatch.setattr(methods.TwoStage, "start", started)
    model = made(tune=tune, first=1.0)
    fit(model, tiny_split.train, progress=False, **STEPS)
    assert all(not torch.equal(before, after) for before, after in zip(seen["before"], seen["after"]))
    assert all(torch.equal(now, after) for now, after in zip(model.method.tuned.parameters(), seen["after"]))
    assert torch.allclose(seen["classifier"][0].norm(dim=-1), torch.ones(3), atol=1e-5)
    assert not torch.equal(model.method.classifier, seen["classifier"][0])
    assert all(parameter.requires_grad for parameter in model.method.parameters())


def test_a_run_stopped_in_the_second_stage_goes_on_exactly(tiny_split: Split, tmp_path: Path) -> None:
    whole, stopped = made(), made()
    fit(whole, tiny_split.train, progress=False, **STEPS)
    losses: Callable[..., Any] = stopped.losses

    def failing(step: Any, *terms: Any) -> Any:
        if not stopped.method._unclassified and stopped.method.classifier.any() and len(taken) == 3:
            raise InterruptedError
        if not stopped.method._unclassified:
            taken.append(1)
        return losses(step, *terms)

    taken: list[int] = []
    stopped.losses = failing  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        fit(stopped, tiny_split.train, progress=False, out=tmp_path / "run", **STEPS)
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
    resumed = made()
    fit(resumed, tiny_split.train, progress=False, out=tmp_path / "run", resume=True, **STEPS)
    for name, value in whole.method.state_dict().items():
        assert torch.equal(resumed.method.state_dict()[name], value), name


def test_known_names_are_the_classifiers_and_others_the_texts(images: torch.Tensor) -> None:
    model = made().eval()
    with torch.no_grad():
        model.method.classifier.copy_(torch.randn(3, model.backbone.embed_dim))
        expected = model(images)
        other = model.with_classes(("sea cucumber", "kite"))
        assert torch.allclose(other(images)[:, 0], expected[:, 2], atol=1e-4)
        scale = model.backbone.logit_scale * model.image_features(images)
        assert torch.allclose(other(images)[:, 1], scale @ other.class_features()[1], atol=1e-4)


def test_norms_of_another_kind_are_refused() -> None:
    with pytest.raises(adapt.AdaptError, match="ln_tuning tunes layer norms, but this backbone has RMSNorm instead"):
        layer_norm(torch.nn.RMSNorm(4), methods.LNTuning())


@pytest.mark.parametrize("affine", [True, False])
def test_a_tuned_norm_starts_as_the_frozen_one(affine: bool) -> None:
    """Also as one without weight and bias, which then are 1 and 0."""
    norm = torch.nn.LayerNorm(8, elementwise_affine=affine).half()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 8).half()
    tuned = TunedNorm(norm)
    assert [(name, value.shape) for name, value in tuned.named_parameters()] == [("weight", (8,)), ("bias", (8,))]
    assert torch.allclose(tuned(x), norm.float()(x.float()).half(), atol=4e-3)
