"""Settings of what happens at test time, and in stages, that no official code ran with: against formulas in fp64."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from checks import relative, scaled
from published import TOLERANCE, unit
from selection import by_turns
from torch import Tensor
from trainings import Given, stepped, watched

import adapt
from adapt import AdaptedModel, methods
from adapt.methods import anovl

NAMES = ("goldfish", "red_panda", "school bus", "dragonfly")
Entropies = list[tuple[float, Tensor, Tensor, int]]  # of what is remembered: entropy, features, probabilities, when


def made(method: methods.Method, names: tuple[str, ...] = NAMES) -> AdaptedModel:
    return adapt.wrap(published.backbone("open_clip"), method, names).eval()


class Stream:
    """TDA by its formula, of features and classes in fp64."""

    def __init__(self, classes: Tensor, config: Any) -> None:
        self.classes, self.config = classes, config
        self.sure: dict[int, Entropies] = {}
        self.unsure: dict[int, Entropies] = {}
        self.seen: list[float] = []  # entropies of the images, in turn

    def answer(self, views: Tensor, time: int) -> Tensor:
        logits = 100 * views @ self.classes.T
        own = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        kept = own.sort(stable=True).indices[: max(1, int(self.config.kept * len(views)))]
        features, logits, probabilities = views[kept].mean(0), logits[kept].mean(0), logits[kept].softmax(-1).mean(0)
        entropy = float(-(probabilities * probabilities.log()).sum())
        self.seen.append(entropy)
        label, image = int(logits.argmax()), (entropy, features, probabilities, time)
        self._keep(self.sure, label, image, self.config.shots)
        if self.config.unsure[0] < entropy / math.log2(len(logits)) < self.config.unsure[1]:
            self._keep(self.unsure, label, image, self.config.negative_shots)
        for label, images in self.sure.items():
            for _, other, _, _ in images:
                logits[label] += self.config.alpha * torch.exp(-self.config.beta * (1 - other @ features))
        for images in self.unsure.values():
            for _, other, probabilities, _ in images:
                low, high = self.config.improbable
                near = torch.exp(-self.config.negative_beta * (1 - other @ features))
                logits -= self.config.negative_alpha * near * ((low < probabilities) & (probabilities < high))
        return logits

    @staticmethod
    def _keep(memory: dict[int, Entropies], label: int, image: tuple[float, Tensor, Tensor, int], most: int) -> None:
        memory[label] = sorted([*memory.get(label, []), image], key=lambda each: (each[0], each[3]))[:most]


TDAS: dict[str, dict[str, Any]] = {
    "fewer": {"shots": 1, "negative_shots": 4, "alpha": 1.0, "beta": 8.0, "negative_alpha": 3.0, "negative_beta": 2.0},
    "bounds": {"unsure": (0.05, 0.9), "improbable": (0.1, 0.6), "negative_alpha": 2.0},
    "views": {"views": 5, "kept": 0.5, "unsure": (0.01, 0.9), "negative_alpha": 2.0},
    "one view": {"views": 5, "kept": 0.1, "shots": 2, "unsure": (0.01, 0.9)},
}


@pytest.mark.parametrize("name", TDAS)
def test_tda_with_other_memories(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = methods.TDA(**TDAS[name])
    model = made(method)
    images = published.case("tda")[1]["images"]
    if method.views:
        images = images.unflatten(0, (8, 6))
    with torch.no_grad(), watched(monkeypatch, method, "_answer") as answers:
        found = model(images)
        views = images if method.views else images[:, None]
        features = unit(model.backbone.encode_image(views.flatten(0, 1)).double()).unflatten(0, views.shape[:2])
        stream = Stream(model.class_features().double(), method.config)
    assert scaled(found, torch.stack([stream.answer(own, time) for time, own in enumerate(features)])) < TOLERANCE
    assert any(stream.unsure.values())
    assert [image.entropy for (image, _), _ in answers] == pytest.approx(stream.seen, abs=1e-5)


@pytest.mark.parametrize(("steps", "kept", "lr"), [(1, 0.6, 0.02), (3, 0.3, 0.01)])
def test_tpt_with_several_steps(steps: int, kept: float, lr: float) -> None:
    """AdamW by hand; which views count is settled before the first step."""
    views = published.case("tpt")[1]["images"][:10]
    model = made(methods.TPT(views=9, kept=kept, steps=steps, lr=lr))
    found, method = model(views[None]), model.method
    start = method.ctx.detach().clone()
    context, moments, squares = start.double(), 0.0, 0.0
    chosen = None
    for step in range(1, steps + 1):
        with torch.no_grad():
            method.ctx.copy_(context)
        logits = model.step(views, torch.zeros(10)).logits
        own = -(logits.double().softmax(-1) * logits.double().log_softmax(-1)).sum(-1)
        chosen = own.argsort(stable=True)[: int(kept * 10)] if chosen is None else chosen
        mean = logits[chosen].double().softmax(-1).mean(0)
        gradient = torch.autograd.grad(-(mean * mean.log()).sum(), [method.ctx])[0].double()
        moments, squares = 0.9 * moments + 0.1 * gradient, 0.999 * squares + 0.001 * gradient.square()
        root = (squares / (1 - 0.999**step)).sqrt()  # type: ignore[attr-defined]
        context = context * (1 - 0.01 * lr) - lr * moments / (1 - 0.9**step) / (root + 1e-8)
    with torch.no_grad():
        method.ctx.copy_(context)
        expected = model.step(views[:1], torch.zeros(1)).logits
        method.ctx.copy_(start)
    assert scaled(found, expected) < 3 * TOLERANCE
    assert scaled(found, model.step(views[:1], torch.zeros(1)).logits) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"text_start": 1, "vision_start": 2},
        {"tune": "biases"},
        {"tune": "biases", "towers": ["vision"], "vision_start": 1},
    ],
    ids=["norms", "norms of later blocks", "biases", "biases of later blocks in vision"],
)
@by_turns("fast", [None, False])
def test_two_stages_are_those_of_a_clip_whose_own_tensors_train(config: dict[str, Any], fast: bool | None) -> None:
    """The same steps on a copy of CLIP itself, of which nothing but norms, or biases, learns."""
    _, expected = published.case("two_stage_ln")
    images, labels = expected["images"], expected["labels"] % len(NAMES)
    method = methods.TwoStage(first=0.5, **config)
    model = adapt.wrap(published.backbone("open_clip"), method, NAMES, fast)
    tuned: Any = method.tuned

    def steps(parameters: Any, count: int) -> list[Tensor]:
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        return [*stepped(model, [(images, labels)], optimizer, count)]

    training: Any = Given(model, images[None], labels, steps=steps, epochs=5)
    method.prepare(training)
    assert len(training.losses) == 2  # half of 5, to the nearest even number
    own: Any = copy.deepcopy(model.backbone.model)
    trained = {key: each for key, each in own.named_parameters() if key in tuned.state_dict()}
    assert trained.keys() == tuned.state_dict().keys()
    assert {match[0] for key in trained if (match := re.match(r"(visual\.)?transformer\.resblocks\.\d", key))} == {
        f"{prefix}transformer.resblocks.{index}"
        for tower, prefix in (("text", ""), ("vision", "visual."))
        for index in (range(config.get(f"{tower}_start", 0), 3) if tower in method.touches else ())
    }
    own.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01)
    ids = model.backbone.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])

    def features() -> tuple[Tensor, Tensor]:
        return unit(own.encode_image(images)), unit(own.encode_text(ids))

    for found in training.losses:
        of_images, of_texts = features()
        loss = F.cross_entropy(model.backbone.logit_scale * of_images @ of_texts.T, labels)
        assert scaled(found, loss) < 10 * TOLERANCE
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    start = published.backbone("open_clip").model.state_dict()
    for key, value in tuned.state_dict().items():
        told = (trained[key].grad.abs() > 1e-5).float()  # Adam goes by the sign: where there is none, anywhere
        assert relative(told * (value - start[key]), told * (trained[key] - start[key])) < 0.01, key
    # biases of norms move what softmax leaves alone, so that rounding is all there is to compare beyond this
    assert scaled(method.classifier, features()[1]) < 2e-3
    assert all(not each.requires_grad for each in tuned.parameters())


@pytest.mark.parametrize(("iterations", "epochs", "count"), [(None, 4, 6), (5, None, 8), (1, None, 2)])
def test_the_first_stage_is_half_as_long_again(iterations: int | None, epochs: int | None, count: int) -> None:
    model = made(methods.TwoStage())
    counts = []

    def steps(parameters: Any, asked: int) -> list[Tensor]:
        counts.append(asked)
        return []

    images, labels = published.case("two_stage_ln")[1]["images"], torch.zeros(6, dtype=torch.long)
    training: Any = Given(model, images[None], labels, steps=steps, iterations=iterations, epochs=epochs)
    model.method.prepare(training)
    assert counts == [count]


@pytest.mark.parametrize(
    ("steps", "lr", "noise", "normal", "kind"),
    [(2, 0.02, 0.2, 0, "texts"), (1, 0.001, 0.0, 1, "texts"), (2, 0.02, 0.2, 0, "linear")],
)
def test_anovl_with_other_steps(
    steps: int, lr: float, noise: float, normal: int, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter learns as by the formula, from the same draws; the second step's rate is AdamW's by hand."""
    _, expected = published.case("anovl_map")
    method = methods.AnoVL(object="screw", steps=steps, lr=lr, noise=noise, adapter=kind)
    model = made(method, ("normal", "abnormal") if normal == 0 else ("abnormal", "normal"))
    images = expected["images"][:1]
    with (
        watched(monkeypatch, anovl, "PatchAdapter") as adapters,
        watched(monkeypatch, method, "_adapted") as adapted,
    ):
        model.logits_and_maps(images)
    [((patches, classes, texts, _), found)], [(_, adapter)] = adapted, adapters
    draws = torch.Generator().manual_seed(0)
    size = classes.shape[1]
    count = len(texts) if kind == "texts" else size
    weight = ((2 * torch.rand((count, size), generator=draws) - 1) / size**0.5).double()
    bias = ((2 * torch.rand((count,), generator=draws) - 1) / size**0.5).double()
    patches, classes, texts = patches.double(), classes.double(), texts.double()
    tensors = {"weight": weight.requires_grad_(), "bias": bias.requires_grad_()}
    optimizer = torch.optim.AdamW(tensors.values(), lr=lr)

    def changed(x: Tensor) -> Tensor:
        mapped = unit(x) @ tensors["weight"].T + tensors["bias"]
        return 0.5 * x + 0.5 * (torch.tanh(mapped) @ texts if kind == "texts" else mapped)

    for _ in range(steps):
        shaken = patches + noise * torch.randn(patches.shape, generator=draws).double()
        clean, other = ((unit(changed(each)) @ classes.T).softmax(-1) for each in (patches, shaken))
        entropy = -(clean * clean.log()).sum(-1).mean()
        loss = entropy + 0.5 * (-clean[..., normal].log() - other[..., 1 - normal].log()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in adapter.ad.named_parameters():
        assert relative(value.double(), tensors[name]) < 5e-3, name
    assert scaled(found, changed(patches)) < 2e-2  # AdamW goes by the sign of gradients that are rounded


def test_what_is_not_normal_is_abnormal_whichever_class_comes_first() -> None:
    images = published.case("anovl_map")[1]["images"]
    found = [
        made(methods.AnoVL(object="screw"), names).logits_and_maps(images)[1]
        for names in (("normal", "abnormal"), ("abnormal", "normal"))
    ]
    assert scaled(found[0], found[1]) < TOLERANCE
    assert (found[0] - 0.5).abs().max() > 1e-3
