"""Averages of the trained tensors: by epochs with their weights, or over steps."""

from __future__ import annotations

import math
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from selection import by_turns
from stopping import assert_goes_on_exactly, stopped_at

from adapt.common.errors import AdaptError
from adapt.formats import tensor_file
from adapt.recipe.settings import Average, TrainSettings
from adapt.training.loop import Trainer, epoch_weights

AVERAGES: list[dict[str, Any]] = [
    {"gaussian": {"mean": 2, "std": 0.7}}, {"swa": {"start": 2}}, {"ema": {"decay": 0.6}},
]  # fmt: skip


def test_gaussian_weights_are_the_published_ones() -> None:
    found = epoch_weights(Average(gaussian={"mean": 15, "std": 1}), 20)
    bell = [math.exp(-((t - 15) ** 2) / 2) for t in range(1, 21)]
    assert found == pytest.approx([value / sum(bell) for value in bell])
    assert sum(found[12:17]) > 0.98


def test_swa_takes_the_epochs_from_its_start_on() -> None:
    assert epoch_weights(Average(swa={"start": 3}), 4) == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize("average", AVERAGES, ids=lambda each: next(iter(each)))
def test_what_is_left_is_the_average(make_model, train, monkeypatch, average: dict[str, Any]) -> None:
    steps: list[torch.Tensor] = []
    step = Trainer._step

    def watched(self: Trainer, group: Any) -> Any:
        found = step(self, group)
        steps.append(self.model.method.ctx.detach().clone())
        return found

    monkeypatch.setattr(Trainer, "_step", watched)
    model = make_model(n_ctx=4)
    start = model.method.ctx.detach().clone()
    train(model, average=average)  # three epochs of three steps
    assert len(steps) == 9
    expected = start.clone()
    if "ema" in average:
        for each in steps:
            expected = 0.6 * expected + 0.4 * each
    else:
        weights = epoch_weights(Average(**average), 3)
        expected = sum(weight * each for weight, each in zip(weights, steps[2::3]))
    torch.testing.assert_close(model.method.ctx.detach(), expected)
    assert not torch.equal(model.method.ctx, steps[-1])


@pytest.mark.parametrize("average", AVERAGES, ids=lambda each: next(iter(each)))
@by_turns("at", [2, 5, 9])
def test_a_resumed_run_has_the_same_average(
    make_model, train, tmp_path: Path, average: dict[str, Any], at: int
) -> None:
    train = partial(train, average=average, checkpoint_minutes=0)
    assert_goes_on_exactly(lambda: make_model(n_ctx=4), train, tmp_path / "run", step=at)


def test_a_checkpoint_of_a_training_without_an_average_is_not_taken_for_one(make_model, train, tmp_path: Path) -> None:
    with stopped_at(4):
        train(make_model(n_ctx=4), out=tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoint.safetensors"
    recipe = tensor_file.describe(checkpoint).metadata["recipe"]
    run: Any = SimpleNamespace(goes_on=True, checkpoint=checkpoint, identity=recipe)
    settings = TrainSettings(epochs=3, average=AVERAGES[0])
    with pytest.raises(AdaptError, match="the stored training tensors do not match"):
        Trainer(make_model(n_ctx=4), range(3), settings, run)  # type: ignore[arg-type]


@pytest.mark.parametrize("average", AVERAGES, ids=lambda each: next(iter(each)))
def test_an_interrupt_at_the_last_step_leaves_out_no_epoch(
    make_model, train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, average: dict[str, Any]
) -> None:
    """The state is kept between the last step and the end of its epoch."""
    whole, stopped, resumed = (make_model(n_ctx=4) for _ in range(3))
    train(whole, average=average)
    step = Trainer._step

    def and_stop(self: Trainer, group: Any) -> Any:
        found = step(self, group)
        if self.position.step == 8:  # of nine, counted from 0
            signal.raise_signal(signal.SIGINT)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, average=average, out=tmp_path / "run")
    train(resumed, average=average, out=tmp_path / "run", resume=True)
    assert torch.equal(resumed.method.ctx, whole.method.ctx)


@pytest.mark.parametrize("average", [{"gaussian": {"mean": 100, "std": 1}}, {"swa": {"start": 5}}])
def test_an_average_of_no_epoch_is_refused_before_anything_is_trained(
    make_model, train, average: dict[str, Any]
) -> None:
    from adapt import AdaptError

    model = make_model(n_ctx=4)
    model.method.prepare = lambda training: pytest.fail("it began")
    with pytest.raises(AdaptError, match="gives a weight of zero to all 2 epochs"):
        train(model, average=average, epochs=None, iterations=6, schedule="constant")
