"""How methods learn, against their published implementations: terms of losses, tables of features, steps."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from checks import relative, scaled
from published import GRADIENT_TOLERANCE, LIBRARIES, TOLERANCE, GivenFeatures

import adapt
from adapt import AdaptedModel
from adapt.methods import OGEN, TPT, DetPro, KgCoOp, TipAdapter
from adapt.methods.base import Encoded, total
from adapt.methods.tpt import mean_entropy, surest
from adapt.training.choice import choose


@pytest.mark.parametrize("fast", [None, False])
@pytest.mark.parametrize("library", LIBRARIES)
def test_kgcoop(library: str, fast: bool | None) -> None:
    settings, expected = published.case("kgcoop_w8")
    method = KgCoOp(n_ctx=settings["n_ctx"], weight=settings["weight"], template=settings["teacher_template"])
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast)
    method.load_state_dict({"ctx": expected["param.ctx"]})
    teacher = model.frozen_class_features((settings["teacher_template"],))
    assert scaled(teacher, F.normalize(expected["teacher_text"], dim=-1)) < TOLERANCE
    step = model.step(expected["images"], expected["labels"])
    terms, right = model.losses(step)
    total(terms).backward()
    assert scaled(step.logits, expected["logits"]) < TOLERANCE
    assert scaled(terms["knowledge"] / settings["weight"], expected["score"]) < TOLERANCE
    assert scaled(total(terms), expected["loss"]) < TOLERANCE
    assert relative(method.ctx.grad, expected["grad.ctx"]) < GRADIENT_TOLERANCE
    assert torch.equal(right, expected["logits"].argmax(-1) == expected["labels"])


def table(name: str, library: str, **config: Any) -> tuple[AdaptedModel, GivenFeatures]:
    """A Tip-Adapter model of a case, and the training that it was prepared by."""
    settings, expected = published.case(name)
    chosen = {key: settings[key] for key in ("views", "alpha", "beta")} | {"template": tuple(settings["templates"])}
    chosen |= {"search_beta": settings["search_scale"][0], "search_alpha": settings["search_scale"][1]}
    model = adapt.wrap(published.backbone(library), TipAdapter(**chosen | config), settings["names"])
    images = expected["images"]
    raw = model.image_features(images.flatten(0, 1), unit=False).unflatten(0, images.shape[:2]).transpose(0, 1)
    stub = GivenFeatures(model, raw, expected["labels"], (expected["val_features"], expected["val_labels"]))
    model.method.prepare(stub)
    return model, stub


@pytest.mark.parametrize("library", LIBRARIES)
def test_tip_adapter(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("tip_adapter")
    model, stub = table("tip_adapter", library)
    steps = dict(zip(settings["search_scale"], settings["search_step"], strict=True))
    whole = adapt.methods.tip_adapter.steps_to
    monkeypatch.setattr(adapt.methods.tip_adapter, "steps_to", lambda most, count: whole(most, steps[most]))
    assert scaled(model.class_features().T, expected["clip_weights"]) < TOLERANCE
    assert scaled(model.method.keys.T, expected["keys"]) < TOLERANCE
    assert torch.equal(F.one_hot(model.method.labels).float(), expected["values"])
    zero_shot = model.step(Encoded(expected["val_features"]), expected["val_labels"])
    assert scaled(zero_shot.cosine_logits(model.class_features()), expected["zero_shot_val_logits"]) < TOLERANCE
    assert scaled(model.logits(expected["val_features"]), expected["logits"]) < TOLERANCE
    choose(stub, learned=True)
    assert (model.method.config.alpha, model.method.config.beta) == pytest.approx(
        (settings["best_alpha"], settings["best_beta"])
    )
    assert scaled(model.logits(expected["test_features"]), expected["test_logits"]) < TOLERANCE
    assert stub.noted["chosen"]["settings"]["beta"] == pytest.approx(settings["best_beta"])


@pytest.mark.parametrize("library", LIBRARIES)
def test_tip_adapter_f(library: str) -> None:
    """The first step's logits, loss and gradient, and the keys after all steps, with the trainer's own optimiser."""
    from adapt.training.loop import make_optimizer
    from adapt.training.schedules import learning_rate
    from adapt.training.settings import TrainSettings

    settings, expected = published.case("tip_adapter_f")
    model, _ = table("tip_adapter_f", library, train=True)
    assert scaled(model.method.keys, expected["param.weight"]) < TOLERANCE
    how = {key: settings[key] for key in ("lr", "eps", "weight_decay", "epochs", "batch_size")}
    chosen = TrainSettings(optimizer="adamw", schedule="cosine_iteration", **how)
    optimizer, losses = make_optimizer(model, chosen), []
    batches = [slice(i, i + chosen.batch_size) for i in range(0, len(expected["labels"]), chosen.batch_size)]
    steps = chosen.epochs * len(batches)
    for epoch in range(chosen.epochs):
        images = expected["images"][epoch % settings["views"]]
        for batch in batches:
            optimizer.param_groups[0]["lr"] = learning_rate(chosen, epoch, chosen.epochs, len(losses), steps)
            step = model.step(images[batch], expected["labels"][batch])
            loss = total(model.losses(step)[0])
            optimizer.zero_grad()
            loss.backward()
            if not losses:
                assert scaled(step.logits, expected["logits"]) < TOLERANCE
                assert scaled(loss, expected["loss"]) < TOLERANCE
                assert relative(model.method.keys.grad, expected["grad.weight"]) < GRADIENT_TOLERANCE
            optimizer.step()
            losses.append(loss.detach())
    assert scaled(torch.stack(losses), expected["steps.loss"]) < TOLERANCE
    assert relative(model.method.keys, expected["after.weight"]) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("fast", [None, False])
@pytest.mark.parametrize("library", LIBRARIES)
def test_tpt(library: str, fast: bool | None) -> None:
    settings, expected = published.case("tpt")
    images = expected["images"]
    assert settings["views"] == len(images)
    config = {"n_ctx": settings["n_ctx"], "views": len(images) - 1, "kept": settings["selection"]}
    method = TPT(**config, lr=settings["lr"], steps=settings["steps"])
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast)
    method.load_state_dict({"ctx": expected["param.ctx"]})
    logits = model.step(images, torch.zeros(len(images))).logits
    assert scaled(logits, expected["logits"]) < TOLERANCE
    kept = surest(logits.detach(), settings["selection"])
    assert sorted(kept.tolist()) == sorted(expected["selected"].tolist())
    loss = mean_entropy(logits[kept])
    loss.backward()
    assert scaled(loss, expected["loss"]) < TOLERANCE
    assert relative(method.ctx.grad, expected["grad.ctx"]) < GRADIENT_TOLERANCE
    answer = model.eval()(images[None])  # the views of one image
    assert scaled(answer, expected["after_logits"]) < TOLERANCE
    assert torch.equal(method.ctx, expected["param.ctx"])


@pytest.mark.parametrize("fast", [None, False])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["ogen_joint", "ogen_first_epochs"])
def test_ogen(name: str, library: str, fast: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case(name)
    method = OGEN(unknown_names=settings["new_names"], neighbours=settings["k"], heads=settings["heads"], dropout=0)
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast).train()
    own = {key.removeprefix("param."): value for key, value in expected.items() if key.startswith("param.")}
    method.load_state_dict({"ctx": own.pop("ctx")})
    renamed = {key.replace("ffn.layers.0", "ffn.0").replace("ffn.layers.1", "ffn.2"): key for key in own}
    method.generator.load_state_dict({mine: own[theirs] for mine, theirs in renamed.items()})
    method.set_statistics(expected["class_mean"], expected["class_std"])
    method._epochs = settings["max_epoch"]
    method._done.fill_(settings["epoch"])
    noise = iter([expected["noise"], expected["noise_targets"]])
    monkeypatch.setattr(torch, "rand", lambda *size: next(noise))
    size = model.backbone.embed_dim
    step = model.step(expected["images"], expected["labels"])
    terms = {
        key: term * settings["mse_weight"] / size if key in ("unknown", "known") else term
        for key, term in method.loss(step).items()
    }
    total(terms).backward()
    assert scaled(step.logits, expected["logits"]) < TOLERANCE
    assert scaled(total(terms), expected["loss"]) < TOLERANCE
    if settings["grads_absent"]:
        assert method.ctx.grad is None or not method.ctx.grad.any()
    else:
        assert relative(method.ctx.grad, expected["grad.ctx"]) < GRADIENT_TOLERANCE
    gradients = dict(method.generator.named_parameters())
    for mine, theirs in renamed.items():
        assert relative(gradients[mine].grad, expected[f"grad.{theirs}"]) < GRADIENT_TOLERANCE, theirs


@pytest.mark.parametrize("fast", [None, False])
@pytest.mark.parametrize("library", LIBRARIES)
def test_detpro(library: str, fast: bool | None) -> None:
    settings, expected = published.case("detpro_soft")
    names = [*settings["names"], "none"]
    method = DetPro(n_ctx=settings["n_ctx"], background="none")
    model = adapt.wrap(published.backbone(library), method, names, fast)
    method.load_state_dict(method.state_dict() | {"ctx": expected["param.ctx"]})
    method._weights = 1 / expected["freq"][None]
    step = model.step(Encoded(F.normalize(expected["region_features"], dim=-1)), expected["labels"])
    assert scaled(step.class_features[:-1], F.normalize(expected["text_features"], dim=-1)) < TOLERANCE
    loss = total(method.loss(step))
    loss.backward()
    assert scaled(loss, expected["loss"]) < TOLERANCE
    assert relative(method.ctx.grad, expected["grad.ctx"]) < GRADIENT_TOLERANCE
