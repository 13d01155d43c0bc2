"""Mod-X: what it is held to, and from which adapter it goes on; its losses are in tests/parity."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_backbones
import torch
from checks import perturb
from stopping import assert_goes_on_exactly
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, fit, methods
from adapt.data import Item, Split
from adapt.methods.modx import cosines, row_divergence
from adapt.tasks.pairs import Pair
from adapt.training.start import start_from

NAMES = ("goldfish", "red_panda", "sea cucumber")
STEPS: dict[str, Any] = {"batch_size": 4, "warmup_epochs": 0, "augment": "none", "workers": 0, "lr": 0.01}
STEPS |= {"optimizer": "adamw", "progress": False}


def made(name: str = "modx", names: tuple[str, ...] = NAMES, **config: Any) -> AdaptedModel:
    torch.manual_seed(0)
    settings = {"dropout": 0.0, "rank": 4, "logit_scale": None, "input_gradient": True}
    backbone = tiny_backbones.backbone("open_clip")
    return adapt.wrap(backbone, methods.find(name)(**settings | config), names)


def paired(split: Split) -> tuple[Item, ...]:
    """The training images, each with a text of its own."""
    return tuple(
        replace(item, label=Pair(), text=f"picture {number} of a {item.answer}")
        for number, item in enumerate(split.train)
    )


def image_features(model: AdaptedModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval().image_features(images)


@pytest.mark.parametrize("of_pairs", [False, True])
def test_it_stays_nearer_to_the_adapter_that_it_goes_on_from(
    of_pairs: bool, tiny_split: Split, images: Tensor, tmp_path: Path
) -> None:
    names, items = ((), paired(tiny_split)) if of_pairs else (NAMES, tiny_split.train)
    old = perturb(made(names=names))
    old.save(tmp_path / "old.safetensors")
    moved: dict[float, float] = {}
    for keep in (0.0, 500.0):
        model = made(names=names, keep=keep)
        model.method.load_state_dict(old.method.state_dict())
        result = fit(model, items, epochs=4, **STEPS)
        moved[keep] = float((image_features(model, images) - image_features(old, images)).norm())
        assert result.history[0]["terms"]["kept"] == pytest.approx(0.0, abs=1e-4)  # nothing has moved yet
        assert model.method.state_dict().keys() == old.method.state_dict().keys()
    assert 0 < moved[500.0] < 0.7 * moved[0.0]


def test_training_starts_from_an_adapter_of_a_kin_method(tmp_path: Path, images: Tensor) -> None:
    earlier = perturb(made("lora"))
    earlier.save(tmp_path / "lora.safetensors")
    model = made()
    start_from(model, tmp_path / "lora.safetensors")
    assert torch.equal(image_features(model, images), image_features(earlier, images))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("modx", {"rank": 2}, "was trained with rank set to 4, but this training has 2: set method.rank to 4"),
        ("modx", {"alpha": 8.0}, "was trained with alpha set to 1.0, but this training has 8.0"),
        ("coop", {}, "is an adapter of modx, but the method to train is coop"),
        ("clap", {}, "clap sets the initial values of its tensors itself, so no value from .* would be used"),
        ("zero_shot", {}, "zero_shot is not trained by gradient steps, and cannot start from"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(
    name: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    perturb(made()).save(tmp_path / "old.safetensors")
    model = (
        made(**config)
        if name == "modx"
        else adapt.wrap(tiny_backbones.backbone("open_clip"), methods.find(name)(), NAMES)
    )
    before = {key: value.clone() for key, value in model.method.state_dict().items()}
    with pytest.raises(AdaptError, match=message):
        start_from(model, tmp_path / "old.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in model.method.state_dict().items())


def test_tensors_of_classes_start_for_the_same_classes_alone(tmp_path: Path) -> None:
    backbone = tiny_backbones.backbone("open_clip")
    adapt.wrap(backbone, methods.TaskRes(), NAMES).save(tmp_path / "old.safetensors")
    start_from(adapt.wrap(backbone, methods.TaskRes(), NAMES), tmp_path / "old.safetensors")
    with pytest.raises(AdaptError, match="tensors of task_res for each of its 3 classes"):
        start_from(adapt.wrap(backbone, methods.TaskRes(), ("a", "b", "c")), tmp_path / "old.safetensors")


@pytest.mark.parametrize("of_pairs", [False, True])
def test_what_it_loses_is_the_rows_that_were_right(of_pairs: bool, tiny_split: Split, images: Tensor) -> None:
    """The whole loss of a step, against `row_divergence` of the old model's and the new one's own features."""
    names = () if of_pairs else NAMES
    old, model = perturb(made(names=names)), perturb(made(names=names, keep=7.0), seed=5)
    model.method._old = (old.method,)
    texts = [f"picture {number}" for number in range(len(images))]
    labels = torch.arange(len(images)) if of_pairs else torch.arange(len(images)) % 3
    step = model.step([images, texts] if of_pairs else images, labels)
    others = (each.encode_texts(texts) if of_pairs else each.class_features() for each in (model, old))
    new, before = (each.image_features(images) @ text.T for each, text in zip((model, old), others, strict=True))
    kept = row_divergence(new, before, labels)
    if of_pairs:
        kept = (kept + row_divergence(new.T, before.T, labels)) / 2
    assert kept > 0
    assert float(model.method.loss(step)["kept"].detach()) == pytest.approx(7 * float(kept.detach()), rel=1e-3)


def test_it_is_no_part_of_a_composition() -> None:
    with pytest.raises(AdaptError, match="modx cannot be part of a composition"):
        methods.Compose([methods.ModX(), methods.CoOp(n_ctx=2)])


def test_a_stopped_run_that_started_from_an_adapter_goes_on_exactly(tiny_split: Split, tmp_path: Path) -> None:
    perturb(made()).save(tmp_path / "old.safetensors")

    def started() -> AdaptedModel:
        model = made()
        start_from(model, tmp_path / "old.safetensors")
        return model

    train = partial(fit, train_set=tiny_split.train, epochs=3, **STEPS)
    assert_goes_on_exactly(started, train, tmp_path / "run", step=4)


def test_the_old_model_answers_without_dropout(images: Tensor) -> None:
    """What the new model is held to does not change from one look at a batch to the next."""
    model = perturb(made(dropout=0.9))
    model.method.prepare(SimpleNamespace(model=model))
    model.train()
    step = model.step(images, torch.arange(len(images)) % 3)
    with torch.no_grad():
        old = [cosines(step.under(model.method._old[0])) for _ in range(2)]
        expected = cosines(model.eval().step(images))
    assert torch.equal(old[0], old[1])
    assert torch.allclose(old[0], expected, atol=1e-6)
