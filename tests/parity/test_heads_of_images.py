"""Linear heads of a DINOv2's tokens, and CaFo's caches of two encoders, against the published implementations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor, nn
from trainings import stepped, watched

from adapt import methods
from adapt.backbones.joined import JoinedDualEncoder
from adapt.methods import cafo
from adapt.methods.base import Encoded, ImageStep, total
from adapt.methods.base.class_loss import ClassLoss
from adapt.recipe.settings import TrainSettings
from adapt.training.loop import learning_rate

CPU = torch.device("cpu")


# DINOv2's linear evaluation


def of_tokens(expected: Any) -> Any:
    """A model whose images are numbers; its four blocks have the stored tokens of each, behind the last norm already.

    Of the first three blocks there are class tokens alone.
    """
    outputs = {f"vision.{block}": expected[f"class.{block}"][:, None] for block in range(4)}
    outputs["vision.3"] = torch.cat([outputs["vision.3"], expected["patches.3"]], dim=1)
    form = SimpleNamespace(pooling="class", first_patch=1)
    tower = SimpleNamespace(blocks=range(4), width=outputs["vision.3"].shape[-1], final_norm=nn.Identity(), form=form)
    model: Any = SimpleNamespace(
        class_loss=ClassLoss(),
        backbone=SimpleNamespace(device=CPU, tower={"vision": tower}.__getitem__),
        frozen_blocks=lambda images, names: {name: 2 * (outputs[name][images],) for name in names},
        step=lambda images, labels: ImageStep(model, images, labels),
        losses=lambda step: (model.method.loss(step), None),
    )
    return model


def named(config: Any) -> list[str]:
    """What DINOv2 calls the heads, in the order of ours."""
    heads = product(config.inputs, config.rates)
    names = [f"classifier_{blocks}_blocks_avgpool_{mean}_lr_{rate:.5f}" for (blocks, mean), rate in heads]
    return [name.replace(".", "_") for name in names]


def by_name(method: Any, names: list[str], of: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """A tensor of each weight and each bias, by the published names."""
    tensors = {}
    for number, name in enumerate(names):
        place, row = divmod(number, len(method.config.rates))
        for kind, parameter in method.heads[place].named_parameters():
            tensors[f"{name}.{kind}"] = of(parameter)[row].squeeze(0)
    return tensors


def linear_heads(settings: Any, expected: Any, model: Any) -> Any:
    """The method with a head for each input and rate, at the stored start."""
    rates = [rate * settings["batch"] / 256 for rate in settings["learning_rates"]]
    settings.equal("lr_scaled", rates)
    model.method = method = methods.DINOLinear(rates=rates)
    method.build(model.backbone, range(int(expected["labels"].max()) + 1))  # type: ignore[arg-type]
    settings.equal("names", named(method.config))
    for name, tensor in by_name(method, settings["names"], lambda parameter: parameter.data).items():
        if name.endswith("weight"):
            tensor.copy_(expected[f"start.{name}"])
        assert name.endswith("weight") == tensor.any()  # biases start at zero
    return method


def train(settings: Any, expected: Any, method: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps at the published rates: each head's loss before each of them, and the first gradients."""
    rates, count = torch.tensor(method.config.rates), settings["steps"]
    schedule = TrainSettings(iterations=count, schedule="cosine_iteration", lr=1.0)
    decays = [learning_rate(schedule, 0, 1, number, count) for number in range(count)]
    expected.relative("steps.lr", torch.outer(torch.tensor(decays), rates.repeat(4)), within=1e-6)
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0, momentum=0.9)

    def before(number: int, step: ImageStep, loss: Tensor) -> None:
        optimizer.param_groups[0]["lr"] = decays[number]
        best = min(calls[-8:], key=lambda call: float(call[1].detach()))
        assert torch.equal(step.logits, best[0][0])
        if number == 0:
            gradients = by_name(method, settings["names"], lambda each: each.grad / rates[:, None, None])
            for key, gradient in gradients.items():
                expected.relative(f"grad.{key}", gradient)

    images = torch.arange(count * settings["batch"]) % len(expected["labels"])
    batches = [(some, expected["labels"][some]) for some in images.split(settings["batch"])]
    with watched(monkeypatch, F, "cross_entropy") as calls:
        sums = [*stepped(model, batches, optimizer, count, before)]
    losses = torch.stack([loss.detach() for _, loss in calls]).unflatten(0, (count, 8))
    expected.scaled("steps.loss", losses)
    assert scaled(torch.stack(sums), losses.sum(-1)) < 1e-6


def test_dinov2_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head's rate multiplies its gradient here, and is its parameter group's there: one optimiser has one rate."""
    settings, expected = published.case("dinov2_linear")
    model = of_tokens(expected)
    method = linear_heads(settings, expected, model)
    train(settings, expected, method, model, monkeypatch)
    for key, tensor in by_name(method, settings["names"], lambda parameter: parameter.detach()).items():
        expected.scaled(f"after.{key}", tensor)
    labels = expected["labels"]
    whole = model.step(torch.arange(len(labels)), labels)
    with torch.no_grad():
        every = dict(zip(settings["names"], method.every(method.inputs(whole)), strict=True))
    for name, logits in every.items():
        expected.scaled(f"logits.{name}", logits)
    right = {name: int((logits.argmax(-1) == labels).sum()) / len(labels) for name, logits in every.items()}
    settings.equal("accuracy", right)
    keep_the_best(settings, expected, method, whole)


def keep_the_best(settings: Any, expected: Any, method: Any, whole: ImageStep) -> None:
    """Two heads are equally good, and the first of them is left."""
    assert sorted(settings["accuracy"].values())[-2:] == 2 * [settings["accuracy"][settings["best"]]]
    noted: dict[str, Any] = {}
    method.finish(SimpleNamespace(steps={"val": [whole]}.__getitem__, note=noted.update))
    [best] = named(method.config)
    settings.equal("best", best)
    assert noted["chosen"]["accuracy"] == pytest.approx(settings["accuracy"][best])
    assert noted["chosen"]["classifiers"] == 8
    expected.scaled(f"after.{best}.weight", method.heads[0].weight[0])
    expected.scaled(f"logits.{best}", method.logits(whole))


# CaFo


class Joined(JoinedDualEncoder):
    """Two encoders whose features are at hand."""

    device = CPU

    def __init__(self, *widths: int) -> None:
        self.both: Any = SimpleNamespace(widths=widths, first=SimpleNamespace(logit_scale=100.0, logit_bias=0.0))


def of_two(method: Any, expected: Any) -> Any:
    """A model with CaFo's tables, as its own preparation fills them from the stored keys."""
    labels = expected["values"].argmax(-1)
    assert torch.equal(F.one_hot(labels).float(), expected["values"])
    keys = torch.cat([expected["clip_keys"], expected["dino_keys"]], dim=-1)
    weights = expected["clip_weights"].T
    second = expected["dino_keys"].shape[1]
    backbone = Joined(weights.shape[1], second)
    method.build(backbone, range(len(weights)))
    method.prepare(SimpleNamespace(features=lambda part, views, unit: keys, labels=lambda part: labels))
    return SimpleNamespace(
        backbone=backbone, method=method, class_loss=ClassLoss(), projected=lambda features: features,
        class_features=lambda: F.pad(weights, (0, second)),
    )  # fmt: skip


def test_cafo(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("cafo_fuse")
    method = methods.CaFo(train=True, views=0, alpha=settings["alpha"], beta=settings["beta"])
    model = of_two(method, expected)
    features = published.unit(torch.cat([expected["clip_features"], expected["dino_features"]], dim=-1))
    step = ImageStep(model, Encoded(features), expected["labels"])
    with watched(monkeypatch, cafo, "fused") as calls:
        terms = method.loss(step)
    [((zero_shot, caches), fused)] = calls
    for key, value in zip(("zero_shot", "clip_cache", "dino_cache", "fused"), (zero_shot, *caches, fused), strict=True):
        expected.scaled(key, value)
    expected.scaled("logits", step.logits)
    expected.scaled("loss", total(terms))
    method.backward(terms)
    for name, gradient in (("clip", method.first.grad), ("dino", method.second.grad)):
        expected.relative(f"grad.{name}_keys", gradient)
