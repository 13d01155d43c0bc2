"""The field's few-shot methods against their published implementations: logits, losses, gradients, closed forms."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from checks import relative, scaled
from published import GRADIENT_TOLERANCE, LIBRARIES, TOLERANCE, GivenFeatures
from torch import Tensor

import adapt
from adapt import AdaptedModel, methods
from adapt.methods.base import Method, total
from adapt.methods.lp_plus_plus import rates
from adapt.methods.prompt_src import divergence
from adapt.training.average import RunningAverage
from adapt.training.choice import choose
from adapt.training.settings import Average

FAST = pytest.mark.parametrize("fast", [None, False])
EVERY_LIBRARY = pytest.mark.parametrize("library", LIBRARIES)


def trained(name: str, library: str, method: Method, fast: bool | None = None) -> tuple[AdaptedModel, dict[str, Any]]:
    """The model of a case with its tensors, and the case's settings."""
    settings, expected = published.case(name)
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast)
    given = {key.removeprefix("param."): value for key, value in expected.items() if key.startswith("param.")}
    method.load_state_dict(method.state_dict() | given)
    return model, settings


def compare(name: str, model: AdaptedModel) -> dict[str, Tensor]:
    """Logits, loss and gradients of a case; the loss's terms."""
    _, expected = published.case(name)
    step = model.step(expected["images"], expected["labels"])
    terms, _ = model.losses(step)
    total(terms).backward()
    assert scaled(step.logits, expected["logits"]) < TOLERANCE
    assert scaled(total(terms), expected["loss"]) < TOLERANCE
    for key, parameter in model.method.named_parameters():
        assert relative(parameter.grad, expected[f"grad.{key}"]) < GRADIENT_TOLERANCE, key
    return terms


def as_given(model: AdaptedModel, templates: list[str], average: str) -> Tensor:
    """Class features whose names are read as they are given, underscores too, as some of the official codes do."""
    _, backbone = model.class_names, model.backbone
    texts = [[each.replace("{}", name) for each in templates] for name in model.class_names]
    with torch.no_grad():
        raw = torch.stack([backbone.encode_text(backbone.tokenize(own)).mean(0) for own in texts])
    model.frozen_class_features = lambda *_: raw  # type: ignore[method-assign]
    return raw


@EVERY_LIBRARY
def test_task_res(library: str) -> None:
    settings, expected = published.case("taskres")
    model, _ = trained("taskres", library, methods.TaskRes(alpha=settings["scale"]))
    assert scaled(as_given(model, settings["templates"], "raw"), expected["base_text_features"]) < TOLERANCE
    compare("taskres", model)


@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["clap_l2", "zslp"])
def test_clap_and_zs_lp(name: str, library: str) -> None:
    settings, expected = published.case(name)
    model, _ = trained(name, library, methods.CLAP(constraint=settings["constraint"]))
    base = as_given(model, [settings["template"]], "raw")
    assert scaled(base, expected["base_text_features"]) < TOLERANCE
    step = model.step(expected["images"], expected["labels"])
    zero_shot = step.cosine_logits(F.normalize(base, dim=-1))
    assert scaled(zero_shot, expected["zero_shot_logits"]) < TOLERANCE
    method: Any = model.method
    if name == "clap_l2":
        method._multipliers = method.sureness(step, expected["labels"])
        assert scaled(method._multipliers, expected["multipliers"]) < TOLERANCE
    compare(name, model)
    with torch.no_grad():
        method.prototypes.copy_(base)
    optimizer = torch.optim.SGD(method.parameters(), lr=settings["lr"], momentum=settings["momentum"])
    for before in expected["steps.loss"]:
        loss = total(model.losses(model.step(expected["images"], expected["labels"]))[0])
        assert scaled(loss, before) < TOLERANCE
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert relative(method.prototypes, expected["after.prototypes"]) < GRADIENT_TOLERANCE


@EVERY_LIBRARY
def test_clip_adapter(library: str) -> None:
    settings, _ = published.case("clip_adapter")
    method = methods.CLIPAdapter(ratio=settings["ratio"], reduction=settings["reduction"])
    compare("clip_adapter", trained("clip_adapter", library, method)[0])


@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["gda", "gda_one_shot", "gda_base_to_new"])
def test_gda(name: str, library: str) -> None:
    settings, expected = published.case(name)
    base_to_new = name == "gda_base_to_new"
    config = {"views": settings["views"], "template": tuple(settings["templates"])}
    method = methods.GDA(**config, shrink=not base_to_new, new_classes=base_to_new)
    model = adapt.wrap(published.backbone(library), method, settings["names"])
    views = model.image_features(expected["images"].flatten(0, 1)).unflatten(0, expected["images"].shape[:2])
    val = expected["val_features"], expected["val_labels"]
    training = GivenFeatures(model, views.transpose(0, 1), expected["labels"], val)
    choose(training)
    method.prepare(training)
    assert scaled(model.class_features().T, expected["clip_weights"]) < TOLERANCE
    assert relative(method.weight.T, expected["W.f64"]) < GRADIENT_TOLERANCE
    quadratic = -2 * (method.bias + torch.tensor(float(len(settings["names"]))).log())
    assert relative(quadratic, expected["quadratic.f64"]) < GRADIENT_TOLERANCE
    assert method.config.alpha == pytest.approx(settings["best_alpha"])
    assert scaled(model.logits(expected["test_features"]), expected["test_logits"]) < TOLERANCE
    for place, alpha in enumerate(settings["alphas"]):
        method.config = method.config.model_copy(update={"alpha": alpha})
        assert scaled(model.logits(val[0]), expected[f"val_logits.{place}"]) < TOLERANCE
    if base_to_new:
        method.config = method.config.model_copy(update={"alpha": settings["best_alpha"]})
        other = model.with_classes(settings["new_names"])
        weight, bias = method.of_texts(other.class_features())
        assert relative(weight.T, expected["W_new.f64"]) < GRADIENT_TOLERANCE
        assert scaled(bias, expected["b_new"]) < GRADIENT_TOLERANCE
        assert scaled(other.logits(expected["new_features"]), expected["new_logits"]) < TOLERANCE


@EVERY_LIBRARY
def test_lp_plus_plus(library: str) -> None:
    settings, expected = published.case("lp_plus_plus")
    method = methods.LPPlusPlus(epochs=settings["epochs"], template=tuple(settings["templates"]))
    model = adapt.wrap(published.backbone(library), method, settings["names"])
    features, labels = model.image_features(expected["images"]).detach(), expected["labels"]
    texts = model.class_features().detach()
    assert scaled(features, expected["features"]) < TOLERANCE
    assert scaled(texts.T, expected["clip_weights"]) < TOLERANCE
    cosines = features @ texts.T
    assert rates(features, cosines) == pytest.approx((settings["lr_w"], settings["lr_alpha"]), rel=1e-4)
    method.start(features, labels, cosines)
    method.bias = expected["param.bias"]
    for name in ("weight", "alpha"):
        assert relative(getattr(method, name), expected[f"param.{name}"]) < GRADIENT_TOLERANCE
    assert scaled(model.logits(features), expected["logits"]) < TOLERANCE
    losses = []
    steps = method.steps(features, labels, cosines)
    for _ in range(settings["epochs"]):
        losses.append(F.cross_entropy(model.logits(features), labels))
        next(steps)
    assert scaled(torch.stack(losses), expected["steps.loss"]) < TOLERANCE
    for name in ("weight", "bias", "alpha"):
        assert relative(getattr(method, name), expected[f"after.{name}"]) < GRADIENT_TOLERANCE


@EVERY_LIBRARY
def test_prolip(library: str) -> None:
    settings, expected = published.case("prolip")
    config = {key: settings[key] for key in ("views", "epochs", "lr")}
    method = methods.ProLIP(**config, weight=settings["lambda_"], template=tuple(settings["templates"]))
    model = adapt.wrap(published.backbone(library), method, settings["names"])
    texts = model.class_features().detach()
    assert scaled(texts.T, expected["clip_weights"]) < TOLERANCE
    images, labels = expected["images"], expected["labels"]
    with torch.no_grad():
        rows = model.read_features(images.flatten(0, 1), unit=False).unflatten(0, images.shape[:2])
        assert scaled(model.image_features(images[0]), model.backbone_features(images[0])) < TOLERANCE  # at its start
    losses = []
    for step, loss in enumerate(method.steps(rows, labels, texts), start=1):
        losses.append(loss)
        if step == 1:  # what the second step begins with
            assert relative(method.proj, expected["param.proj"]) < GRADIENT_TOLERANCE
            with torch.no_grad():
                assert scaled(model(images[2]), expected["logits"]) < TOLERANCE
    assert scaled(torch.tensor(losses), expected["steps.ce"]) < TOLERANCE
    assert scaled(torch.tensor(losses[1]), expected["ce"]) < TOLERANCE
    assert relative(method.proj, expected["after.proj"]) < GRADIENT_TOLERANCE
    assert scaled(model.eval()(expected["test_images"]), expected["test_logits"]) < TOLERANCE


@FAST
@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["prograd_conflict", "prograd_agree"])
def test_prograd(name: str, library: str, fast: bool | None) -> None:
    settings, expected = published.case(name)
    config = {"strength": settings["lambda_"], "temperature": settings["temperature"]}
    method = methods.ProGrad(n_ctx=settings["n_ctx"], template=settings["teacher_template"], **config)
    model, _ = trained(name, library, method, fast)
    step = model.step(expected["images"], expected["labels"])
    terms, _ = model.losses(step)
    assert scaled(step.logits, expected["logits"]) < TOLERANCE
    assert scaled(terms["cross_entropy"], expected["loss"]) < TOLERANCE
    assert scaled(terms["knowledge"], expected["kl"]) < TOLERANCE
    for term, key in (("cross_entropy", "grad_ce.ctx"), ("knowledge", "grad_kl.ctx")):
        (gradient,) = torch.autograd.grad(terms[term], [method.ctx], retain_graph=True)
        assert relative(gradient, expected[key]) < GRADIENT_TOLERANCE
    method.backward(terms)
    assert relative(method.ctx.grad, expected["grad.ctx"]) < GRADIENT_TOLERANCE
    against = (expected["grad_ce.ctx"] * expected["grad_kl.ctx"]).sum() < 0
    assert bool(against) == settings["conflict"]


@FAST
@EVERY_LIBRARY
def test_tcp(library: str, fast: bool | None) -> None:
    settings, expected = published.case("tcp_b1")
    behind = settings["prompt_template"].removeprefix("X X X X ")
    config = {"n_ctx": settings["n_ctx"], "block": settings["block"], "weight": settings["weight"]}
    method = methods.TCP(**config, prompt=behind, template=settings["teacher_template"])
    model, _ = trained("tcp_b1", library, method, fast)
    terms = compare("tcp_b1", model)
    assert scaled(terms["cross_entropy"], expected["ce"]) < TOLERANCE
    assert scaled(model.frozen_class_features([settings["teacher_template"]]), expected["teacher_text"]) < TOLERANCE


@FAST
@EVERY_LIBRARY
def test_mma(library: str, fast: bool | None) -> None:
    settings, _ = published.case("mma_2_3")
    blocks = settings["start"], settings["end"]
    method = methods.MMA(blocks=blocks, dim=settings["dim"], scale=settings["scale"])
    compare("mma_2_3", trained("mma_2_3", library, method, fast)[0])


@FAST
@EVERY_LIBRARY
def test_prompt_src(library: str, fast: bool | None) -> None:
    settings, expected = published.case("promptsrc_d2")
    templates = tuple(settings["templates"])
    method = methods.PromptSRC(depth_text=2, depth_vision=2, templates=templates)
    model, _ = trained("promptsrc_d2", library, method, fast)
    teacher = F.normalize(model.frozen_class_features(templates, "raw"), dim=-1)
    assert scaled(teacher, expected["teacher_text"]) < TOLERANCE
    terms = compare("promptsrc_d2", model)
    weights = {"cross_entropy": ("ce", 1), "text": ("text_l1", 25), "image": ("image_l1", 10), "answers": ("kl", 1)}
    for term, (key, weight) in weights.items():
        assert scaled(terms[term], weight * expected[key]) < TOLERANCE
    step = model.step(expected["images"], expected["labels"])
    known = step.cosine_logits(teacher, step.frozen_features)
    assert scaled(known, expected["teacher_logits"]) < TOLERANCE
    assert scaled(divergence(step.logits, known), expected["kl"]) < TOLERANCE


@EVERY_LIBRARY
def test_prompt_srcs_average_over_epochs(library: str) -> None:
    settings, expected = published.case("promptsrc_d2")
    method = methods.PromptSRC(depth_text=2, depth_vision=2, templates=tuple(settings["templates"]))
    model, _ = trained("promptsrc_d2", library, method)
    gaussian = Average(gaussian={"mean": settings["gpa_mean"], "std": settings["gpa_std"]})
    average = RunningAverage(method, gaussian, 3)
    losses = []
    for epoch in range(3):
        for batch in ("", "_b"):
            loss = total(model.losses(model.step(expected[f"images{batch}"], expected[f"labels{batch}"]))[0])
            gradients = torch.autograd.grad(loss, list(method.parameters()))
            losses.append(loss.detach())
            with torch.no_grad():
                for parameter, gradient in zip(method.parameters(), gradients):
                    parameter -= settings["lr"] * gradient
        average.epoch_done(epoch)
    average.settle()
    assert scaled(torch.stack(losses), expected["steps.loss"]) < TOLERANCE
    for key, value in method.state_dict().items():
        assert relative(value, expected[f"after.{key}"]) < GRADIENT_TOLERANCE
    logits = model(expected["images"])
    assert scaled(logits, expected["after_logits"]) < TOLERANCE


@FAST
@EVERY_LIBRARY
def test_two_stages(library: str, fast: bool | None) -> None:
    settings, expected = published.case("two_stage_ln")
    method = methods.TwoStage(template=settings["template"])
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast)
    method.tuned.load_state_dict({key[6:]: value for key, value in expected.items() if key.startswith("param.")})
    images, labels = expected["images"], expected["labels"]

    def stage(parameters: list[torch.nn.Parameter], steps: int) -> list[Tensor]:
        optimizer = torch.optim.AdamW(parameters, lr=settings["lr"], weight_decay=settings["weight_decay"])
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, settings["eta_min"])
        losses = []
        for number in range(steps):
            step = model.step(images, labels)
            losses.append(total(model.losses(step)[0]))
            optimizer.zero_grad()
            losses[-1].backward()
            if number == 0 and parameters[0] is not method.classifier:
                assert scaled(step.logits, expected["logits"]) < TOLERANCE
                for key, parameter in method.tuned.named_parameters():
                    assert relative(parameter.grad, expected[f"grad.{key}"]) < GRADIENT_TOLERANCE, key
            optimizer.step()
            falling.step()
        return losses

    with method.first_stage():
        losses = stage(list(method.tuned.parameters()), settings["stage1_steps"])
    for key, value in method.tuned.state_dict().items():
        assert relative(value, expected[f"after.{key}"]) < GRADIENT_TOLERANCE, key
    method.start(model.class_features())
    method.tuned.requires_grad_(False)
    assert scaled(method.classifier, expected["classifier_start"]) < TOLERANCE
    assert scaled(model(images), expected["stage2_logits"]) < TOLERANCE
    losses += stage([method.classifier], settings["stage2_steps"])
    assert scaled(torch.stack(losses), expected["steps.loss"]) < TOLERANCE
    assert relative(method.classifier, expected["classifier"]) < GRADIENT_TOLERANCE
    every = model.with_classes((*settings["names"], *settings["new_names"]))
    assert scaled(every(images), expected["final_logits"]) < TOLERANCE


@EVERY_LIBRARY
def test_tda(library: str) -> None:
    settings, expected = published.case("tda")
    method = methods.TDA(template=tuple(settings["templates"]))
    model = adapt.wrap(published.backbone(library), method, settings["names"]).eval()
    assert scaled(model.class_features().T, expected["clip_weights"]) < TOLERANCE
    with torch.no_grad():
        found = model(expected["images"])
        assert scaled(found, expected["logits"]) < TOLERANCE
        stream = model.stream()
        by_five = torch.cat([stream(images) for images in expected["images"].split(5)])
        assert torch.allclose(by_five, found, atol=1e-3)
        alone = torch.cat([model(images) for images in expected["images"].split(1)])
    assert not torch.allclose(alone, found, atol=0.1)  # each call by itself remembers nothing
