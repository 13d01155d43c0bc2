"""What the trainer asks of a method while it learns: gradients, epochs, and what only training needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stopping import stopped_at
from torch import Tensor

from adapt import AdaptedModel, AdaptError, methods, wrap
from adapt.methods.base import Terms, Training


class Counting(methods.CoOp):
    """CoOp whose second term pulls it to the mean of what it was at the ends of epochs, and that tells of each call."""

    name = "counting"

    def build(self, backbone, class_names) -> None:
        super().build(backbone, class_names)
        self.called: list[str] = []
        self._memory = torch.zeros_like(self.ctx)

    def prepare(self, training: Training) -> None:
        self.called.append("prepare")

    def loss(self, step) -> Terms:
        return step.task_loss() | {"pull": (self.ctx - self._memory).square().mean()}

    def backward(self, terms: Terms) -> None:
        """The gradients of the second term alone, doubled."""
        (2 * terms["pull"]).backward()

    def epoch_done(self, epoch: int, epochs: int) -> None:
        self.called.append(f"epoch {epoch} of {epochs}")
        with torch.no_grad():
            self._memory.lerp_(self.ctx, 0.5)

    def finish(self, training: Training) -> None:
        self.called.append("finish")

    def training_state(self) -> dict[str, Tensor]:
        return {"memory": self._memory}


@pytest.fixture
def new(make_model, class_names) -> Callable[[], AdaptedModel]:
    backbone = make_model().backbone

    def make() -> AdaptedModel:
        torch.manual_seed(0)
        return wrap(backbone, Counting(n_ctx=4), class_names)

    return make


def test_each_is_called_in_its_turn(new, train) -> None:
    model = new()
    result = train(model)
    epochs = [f"epoch {epoch} of 3" for epoch in range(3)]
    assert model.method.called == ["prepare", *epochs, "finish"]
    assert set(result.history[0]["terms"]) == {"cross_entropy", "pull"}
    assert result.history[0]["loss"] == pytest.approx(sum(result.history[0]["terms"].values()))
    assert result.terms == ("cross_entropy", "pull")


def test_its_own_gradients_are_taken(new, train) -> None:
    model = new()
    before = model.method.ctx.detach().clone()
    train(model, epochs=1, batch_size=12, lr=0.5, momentum=0.0, weight_decay=0.0, schedule="constant")
    expected = before - 0.5 * 2 * (2 * before / before.numel())
    torch.testing.assert_close(model.method.ctx.detach(), expected)


def test_what_only_training_needs_is_in_checkpoints_and_in_no_adapter(new, train, tmp_path: Path) -> None:
    whole, stopped, resumed = new(), new(), new()
    result = train(whole, out=tmp_path / "whole")
    assert result.adapter is not None
    with stopped_at(5):
        train(stopped, out=tmp_path / "run")
    train(resumed, out=tmp_path / "run", resume=True)
    assert torch.equal(resumed.method.ctx, whole.method.ctx)
    assert torch.equal(resumed.method._memory, whole.method._memory)
    from adapt.formats.adapter import read_tensors

    assert list(read_tensors(result.adapter)) == ["ctx"]


def test_the_curves_have_a_line_for_each_term(new, train) -> None:
    figure = train(new()).plot()
    loss, accuracy = figure.axes
    assert [line.get_label() for line in loss.get_lines()] == ["sum", "cross_entropy", "pull"]
    assert len(accuracy.get_lines()) == 1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda self, step: {}, "the function loss returned {}"),
        (lambda self, step: None, "the function loss returned None"),
        (lambda self, step: self.ctx.sum(), "the function loss returned"),
        (lambda self, step: {"a": self.ctx}, r"the loss term 'a' is of shape \(4, 128\)"),
        (lambda self, step: {"a": 1.0}, "the loss term 'a' is 1.0"),
        (lambda self, step: {"a": torch.ones(())}, r"no term of the loss \(a\) depends on a trained parameter"),
        (
            lambda self, step: {"a": self.ctx.sum(), "b": self.ctx.sum() * float("nan")},
            r"the loss is nan \(a .*, b nan\) at step 1",
        ),
    ],
)
def test_a_loss_that_is_none_is_refused_by_name(make_model, train, monkeypatch, loss, message: str) -> None:
    monkeypatch.setattr(methods.CoOp, "loss", loss, raising=False)
    with pytest.raises(AdaptError, match=message):
        train(make_model(n_ctx=4))


def test_what_only_training_needs_may_be_infinite(make_model, train, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(methods.CoOp, "training_state", lambda self: {"best": torch.tensor(float("inf"))})
    with stopped_at(5):
        train(make_model(n_ctx=4), out=tmp_path / "run")
    assert train(make_model(n_ctx=4), out=tmp_path / "run", resume=True).metrics["steps"] == 9
