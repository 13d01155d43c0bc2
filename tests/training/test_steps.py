"""Optimiser steps: they learn, and the ways to take them agree."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from adapt.recipe.settings import TrainSettings
from adapt.training.batches import KnownBatches, training_batches

_LORA = {"dropout": 0.0, "projections": "qv"}


def _trained(train, model, **settings: Any) -> dict[str, Tensor]:
    train(model, **settings)
    return model.method.state_dict()


def _assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("method", "config", "settings"),
    [
        ("coop", {"n_ctx": 4}, {"optimizer": "sgd", "lr": 0.05}),
        ("lora", _LORA, {"optimizer": "adamw", "lr": 0.001}),
        ("lora", _LORA, {"optimizer": "adamw", "lr": 0.001, "precision": "bf16"}),
    ],
)
def test_steps_lower_the_loss(train, make_model, method: str, config: dict[str, Any], settings: dict[str, Any]) -> None:
    model = make_model(method, **config)
    history = train(model, **settings, batch_size=12, epochs=6, schedule="constant").history
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert {parameter.dtype for parameter in model.method.parameters()} == {torch.float32}


def test_accumulated_gradients_are_those_of_the_big_batch(train, make_model) -> None:
    big = _trained(train, make_model(n_ctx=4), epochs=2, batch_size=12)
    parts = _trained(train, make_model(n_ctx=4), epochs=2, batch_size=4, accumulate=3)
    _assert_close(big, parts, 1e-6)
    assert not torch.equal(big["ctx"], make_model(n_ctx=4).method.ctx)


def test_a_last_group_of_fewer_batches_counts_as_many_as_it_has(train, make_model) -> None:
    """Two batches where three are asked for are one step by the mean of both."""
    big = _trained(train, make_model(n_ctx=4), epochs=2, batch_size=24)
    parts = _trained(train, make_model(n_ctx=4), epochs=2, batch_size=12, accumulate=3)
    _assert_close(big, parts, 1e-6)


def test_gradients_are_clipped_without_the_scale_of_fp16(train, make_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler of fp16, here in fp32: its scale, a power of two, changes nothing, though the limit is often met."""
    settings: dict[str, Any] = {"optimizer": "sgd", "lr": 0.05, "max_grad_norm": 1e-2}
    plain = _trained(train, make_model(n_ctx=4), **settings)
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**10)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device))
    _assert_close(plain, _trained(train, make_model(n_ctx=4), **settings), 1e-6)
    unclipped = _trained(train, make_model(n_ctx=4), **settings | {"max_grad_norm": None})
    assert (unclipped["ctx"] - plain["ctx"]).abs().max() > 1e-4


def test_cached_features_train_as_the_images_do(train, make_model) -> None:
    features = _trained(train, make_model(n_ctx=4), cache=True)
    images = _trained(train, make_model(n_ctx=4), cache=False)
    _assert_close(features, images, 1e-5)


def test_block_checkpointing_trains_the_same(train, make_model) -> None:
    plain, checkpointed = make_model("lora", dropout=0.0), make_model("lora", dropout=0.0)
    checkpointed.checkpointing = True
    _assert_close(_trained(train, plain, epochs=1), _trained(train, checkpointed, epochs=1), 1e-6)


@pytest.mark.parametrize("method", ["coop", "lora"])
def test_a_seed_gives_the_same_run_again_and_another_seed_another(train, make_model, method: str) -> None:
    one, again, other = (_trained(train, make_model(method), epochs=1, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(again[name], tensor) for name, tensor in one.items())
    assert not all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_training_leaves_the_global_random_state_alone(train, make_model) -> None:
    model = make_model("lora")
    before = torch.get_rng_state()
    train(model, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_views_are_fixed_augmented_features(make_model, tiny_split) -> None:
    settings = TrainSettings(epochs=1, views=3, workers=0, batch_size=12)
    model = make_model()
    batches = training_batches(model, tiny_split.train, settings, 1, True, None)
    assert isinstance(batches, KnownBatches)
    again = training_batches(model, tiny_split.train, settings, 1, True, None)
    epochs = [next(batches.epoch(epoch, 0)) for epoch in range(6)]
    assert torch.equal(epochs[0][0].features, next(again.epoch(0, 0))[0].features)
    assert len(torch.cat([encoded.features for encoded, _ in epochs]).unique(dim=0)) > 2 * len(tiny_split.train)


@pytest.mark.parametrize(
    ("method", "settings", "cached"),
    [
        ("coop", {"augment": "none"}, True),
        ("coop", {"views": 2}, True),
        ("coop", {"augment": "published"}, False),
        ("lora", {"augment": "none"}, False),
    ],
)
def test_features_stand_in_for_images_only_where_they_can(
    make_model, tiny_split, method: str, settings: dict[str, Any], cached: bool
) -> None:
    chosen = TrainSettings(epochs=1, workers=0, **settings)
    batches = training_batches(make_model(method), tiny_split.train, chosen, 1, True, None)
    assert isinstance(batches, KnownBatches) is cached
