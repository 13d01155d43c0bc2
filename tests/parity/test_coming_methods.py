"""The cases of methods that are still to come, as far as the present ones reach: prompts, teachers, keys and values."""

from __future__ import annotations

import published
import pytest
import torch
import torch.nn.functional as F
from checks import relative, scaled
from published import GRADIENT_TOLERANCE, LIBRARIES, TOLERANCE

import adapt
from adapt import AdaptedModel
from adapt.methods import CoOp, ZeroShot


def prompted(name: str, library: str) -> AdaptedModel:
    settings, expected = published.case(name)
    model: AdaptedModel = adapt.wrap(published.backbone(library), CoOp(n_ctx=settings["n_ctx"]), settings["names"])
    model.method.load_state_dict({"ctx": expected["param.ctx"]})
    return model


@pytest.mark.parametrize("library", LIBRARIES)
def test_kgcoop_holds_coops_prompts_to_those_of_a_teacher(library: str) -> None:
    settings, expected = published.case("kgcoop_w8")
    model = prompted("kgcoop_w8", library)
    teacher = adapt.wrap(model.backbone, ZeroShot(settings["teacher_template"]), settings["names"]).class_features()
    assert scaled(teacher, F.normalize(expected["teacher_text"], dim=-1)) < TOLERANCE
    logits, score = model(expected["images"]), 1 - (model.class_features() * teacher).sum(-1).mean()
    loss = F.cross_entropy(logits, expected["labels"]) + settings["weight"] * score
    loss.backward()
    assert scaled(logits, expected["logits"]) < TOLERANCE
    assert scaled(score, expected["score"]) < TOLERANCE
    assert scaled(loss, expected["loss"]) < TOLERANCE
    assert relative(model.method.ctx.grad, expected["grad.ctx"]) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("library", LIBRARIES)
def test_tpt_starts_from_coops_answers_and_keeps_the_surest_views(library: str) -> None:
    settings, expected = published.case("tpt")
    model = prompted("tpt", library)
    logits = model(expected["images"])
    assert scaled(logits, expected["logits"]) < TOLERANCE
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    surest = entropy.argsort()[: int(settings["views"] * settings["selection"])]
    assert sorted(surest.tolist()) == sorted(expected["selected"].tolist())
    mean = logits[surest].softmax(-1).mean(0)
    loss = -(mean * mean.log()).sum()
    loss.backward()
    assert scaled(loss, expected["loss"]) < TOLERANCE
    assert relative(model.method.ctx.grad, expected["grad.ctx"]) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("library", LIBRARIES)
def test_tip_adapter_adds_to_zero_shot_what_its_keys_answer(library: str) -> None:
    settings, expected = published.case("tip_adapter")
    [template] = settings["templates"]
    backbone = published.backbone(library)
    classes = adapt.wrap(backbone, ZeroShot(template), settings["names"]).class_features()
    views = backbone.encode_image(expected["images"].flatten(0, 1)).unflatten(0, (settings["views"], -1))
    keys, values = F.normalize(views.mean(0), dim=-1), expected["values"]  # of views before normalisation
    assert scaled(classes.T, expected["clip_weights"]) < TOLERANCE
    assert scaled(keys.T, expected["keys"]) < TOLERANCE
    assert torch.equal(values, F.one_hot(expected["labels"]).float())
    for part, beta, alpha, name in (
        ("val", settings["beta"], settings["alpha"], "logits"),
        ("test", settings["best_beta"], settings["best_alpha"], "test_logits"),
    ):
        features = expected[f"{part}_features"]
        answered = (beta * (features @ keys.T - 1)).exp() @ values
        assert scaled(100 * features @ classes.T + alpha * answered, expected[name]) < TOLERANCE


@pytest.mark.parametrize("library", LIBRARIES)
def test_tip_adapter_f_starts_from_the_keys_and_trains_them(library: str) -> None:
    settings, expected = published.case("tip_adapter_f")
    backbone = published.backbone(library)
    weight = expected["param.weight"].clone().requires_grad_()
    assert scaled(weight, published.case("tip_adapter")[1]["keys"].T) < TOLERANCE
    first = slice(0, settings["batch_size"])  # of the first view
    features = F.normalize(backbone.encode_image(expected["images"][0, first]), dim=-1)
    answered = (settings["beta"] * (features @ weight.T - 1)).exp() @ expected["values"]
    logits = 100 * features @ expected["clip_weights"] + settings["alpha"] * answered
    loss = F.cross_entropy(logits, expected["labels"][first])
    loss.backward()
    assert scaled(logits, expected["logits"]) < TOLERANCE
    assert scaled(loss, expected["loss"]) < TOLERANCE
    assert scaled(loss, expected["steps.loss"][0]) < TOLERANCE
    assert relative(weight.grad, expected["grad.weight"]) < GRADIENT_TOLERANCE
