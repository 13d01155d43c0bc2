"""Adapters in place of blocks that first learn to do what the blocks do."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny_fusion
import torch

from adapt import AdaptError, methods, wrap
from adapt.training.batches import training_batches
from adapt.training.imitate import imitate
from adapt.training.settings import TrainSettings

SEARCH: dict[str, Any] = {"skip": 1, "search_epochs": 2, "warmup_epochs": 0, "turn": 1, "draws": 2}
SKIPPING: dict[str, Any] = {"skip": 1, "skipped": ["vision.1"]}
COMPOSED = {"methods": [{"name": "das", **SKIPPING}, {"name": "lora", "rank": 2}]}


def _settings(imitate: int) -> TrainSettings:
    return TrainSettings(
        epochs=1, workers=0, augment="none", batch_size=6, optimizer="adamw", lr=0.01,
        schedule="cosine_iteration", imitate=imitate,
    )  # fmt: skip


def _imitated(model, items, epochs: int) -> float:
    settings = _settings(epochs)
    return imitate(model, training_batches(model, items, settings, 1, True, None), settings, show=False)


def _apart(model, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float(1 - (model.image_features(images) * model.backbone_features(images)).sum(-1).mean())


@pytest.mark.parametrize(("method", "config"), [("das", SKIPPING), ("compose", COMPOSED)])
def test_a_skipped_block_is_missed_less(make_model, tiny_split, images, method: str, config: dict[str, Any]) -> None:
    model = make_model(method, **config)
    before = {name: tensor.clone() for name, tensor in model.method.state_dict().items()}
    apart = _apart(model.eval(), images)
    assert _imitated(model, tiny_split.train, 30) > 0
    assert _apart(model, images) < 0.6 * apart
    changed = {name for name, tensor in model.method.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("vision.1.bypass" in name for name in changed)


def test_a_search_and_the_training_after_it_start_so(make_model, tiny_split, train, tmp_path) -> None:
    def losses(epochs: int) -> tuple[list[float], float]:
        out = tmp_path / str(epochs)
        settings = {"lr": 0.01, "optimizer": "adamw", "schedule": "constant", "imitate": epochs}
        result = train(make_model("das", **SEARCH), val_set=tiny_split.val, out=out, epochs=1, distill=100, **settings)
        return json.loads((out / "search.json").read_text())["trace"][0]["losses"], result.history[0]["loss"]

    plain, imitating = losses(0), losses(30)
    assert plain[0] != imitating[0]
    assert imitating[1] < 0.9 * plain[1]  # the first step's


def test_a_resumed_run_ends_as_one_that_was_not_stopped(make_model, tiny_split, train, at_step, tmp_path) -> None:
    def stop() -> None:
        raise RuntimeError("killed")

    options = {"val_set": tiny_split.val, "imitate": 2, "checkpoint_minutes": 0}
    whole, stopped, resumed = (make_model("das", **SEARCH) for _ in range(3))
    train(whole, out=tmp_path / "whole", **options)
    at_step(5, stop)
    with pytest.raises(RuntimeError, match="killed"):
        train(stopped, out=tmp_path / "run", **options)
    train(resumed, out=tmp_path / "run", resume=True, **options)
    expected = whole.method.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.method.state_dict().items())


def test_without_skipped_blocks_there_is_nothing_to_do(make_model, tiny_split) -> None:
    assert _imitated(make_model("das", skip=0), tiny_split.train, 2) == 0


@pytest.mark.parametrize(("method", "config"), [("coop", {"n_ctx": 4}), ("das", {"skip": 1, "towers": ["text"]})])
def test_a_model_that_skips_no_vision_block_refuses_it(train, make_model, method: str, config: dict[str, Any]) -> None:
    if method == "das":
        config |= {"skipped": ["text.1"]}
    with pytest.raises(AdaptError, match=rf"train\.imitate is 2, and {method} on .* does not skip blocks of a vision"):
        train(make_model(method, **config), imitate=2)


def test_a_fusion_encoder_refuses_it(tiny_split) -> None:
    model = wrap(tiny_fusion.vilt(), methods.DAS(towers=["fusion"], skip=1, skipped=["fusion.1"]), ("yes", "no"))
    with pytest.raises(AdaptError, match=r"train\.imitate is 2, and das on .* does not skip blocks of a vision tower"):
        _imitated(model, tiny_split.train, 2)
