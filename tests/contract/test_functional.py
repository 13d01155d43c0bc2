"""The transforms of `torch.func`: gradients and batches of models by functions, which leave nothing behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import build
from checks import Fault, assert_untouched, failing, flag, flat, gradient, relative, scaled, snapshot
from selection import by_turns
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from adapt import Backbone
from adapt.methods.lora import Dropout


@pytest.mark.parametrize("method", ["lora", "coop", "maple", "das"])
@by_turns("fast", [None, False])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_and_batches_of_parameters(
    method: str, fast: bool | None, open_clip: Backbone, images: Tensor, labels: Tensor
) -> None:
    flag(open_clip.model)
    before = snapshot(open_clip.model)
    model = build(method, open_clip, fast=fast).eval()
    with torch.no_grad():
        expected = model(images)
    names = [name for name, _ in model.method.named_parameters()]
    parameters = {f"method.{name}": value.detach() for name, value in model.method.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, values, (images,)), labels)

    found = grad(loss)(parameters)
    assert relative(flat(found[f"method.{name}"] for name in names), gradient(model, images, labels)) < 1e-4
    two = {name: torch.stack([value, 1.5 * value]) for name, value in parameters.items()}
    with torch.no_grad():
        called = vmap(lambda values: functional_call(model, values, (images,)))(two)
        assert scaled(called[0], expected) < 1e-4
        assert scaled(called[1], expected) > 1e-4
        assert torch.equal(model(images), expected)
    assert_untouched(open_clip.model, before)


def test_gradients_under_dropout(
    open_clip: Backbone, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is torch's own in a transform."""
    model = build("lora", open_clip).train()
    parameters: dict[str, Tensor] = dict(model.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(5)
        return F.cross_entropy(functional_call(model, values, (images,)), labels)

    found = grad(loss)({name: value.detach() for name, value in parameters.items()})
    monkeypatch.setattr(Dropout, "forward", nn.Dropout.forward)
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    assert relative(flat(found[name] for name in parameters), flat(expected)) < 1e-4


def test_an_error_inside_a_transform(open_clip: Backbone, images: Tensor, labels: Tensor) -> None:
    flag(open_clip.model)
    before = snapshot(open_clip.model)
    model = build("lora", open_clip)
    expected = model(images)
    with failing(open_clip.towers["vision"].blocks[-1].scale1), pytest.raises(Fault):
        grad(lambda values: functional_call(model, values, (images,)).sum())(
            {name: value.detach() for name, value in model.named_parameters()}
        )
    assert_untouched(open_clip.model, before)
    assert torch.equal(model(images), expected)
