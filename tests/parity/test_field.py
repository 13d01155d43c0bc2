"""Few-shot methods inside the towers against their published implementations: logits, losses, gradients, stages."""

from __future__ import annotations

import re
from typing import Any

import published
import pytest
import tiny_clip
import torch
import torch.nn.functional as F
from published import LIBRARIES
from selection import by_turns
from torch import Tensor
from trainings import Given, stepped, watched

import adapt
from adapt import AdaptedModel, methods
from adapt.methods import prompt_src
from adapt.methods.base import ImageStep, total
from adapt.recipe.settings import Average
from adapt.training.loop import RunningAverage, epoch_weights

FAST = by_turns("fast", [None, False])
EVERY_LIBRARY = by_turns("library", LIBRARIES)


def trained(name: str, library: str, method: methods.Method, fast: bool | None = None) -> AdaptedModel:
    """The model of a case with its tensors."""
    settings, expected = published.case(name)
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast)
    method.load_state_dict(method.state_dict() | expected.under("param."))
    return model


def compare(name: str, model: AdaptedModel) -> dict[str, Tensor]:
    """Logits, loss and gradients of a case; the loss's terms."""
    _, expected = published.case(name)
    step = model.step(expected["images"], expected["labels"])
    terms, right = model.losses(step)
    model.method.backward(terms)
    expected.scaled("logits", step.logits)
    expected.scaled("loss", total(terms))
    assert torch.equal(right, expected["logits"].argmax(-1) == expected["labels"])
    for key, parameter in model.method.named_parameters():
        expected.relative(f"grad.{key}", parameter.grad)
    return terms


@FAST
@EVERY_LIBRARY
def test_kgcoop(library: str, fast: bool | None) -> None:
    settings, expected = published.case("kgcoop_w8")
    config = {key: settings[key] for key in ("n_ctx", "ctx_init", "weight")}
    method = methods.KgCoOp(**config, template=settings["teacher_template"])
    model = trained("kgcoop_w8", library, method, fast)
    teacher = model.frozen_class_features((settings["teacher_template"],))
    expected.scaled("teacher_text", teacher)
    terms = compare("kgcoop_w8", model)
    expected.scaled("score", terms["knowledge"] / settings["weight"])


@FAST
@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["prograd_conflict", "prograd_agree"])
def test_prograd(name: str, library: str, fast: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case(name)
    config = {key: settings[key] for key in ("n_ctx", "ctx_init", "temperature")}
    method = methods.ProGrad(**config, strength=settings["lambda_"], template=settings["teacher_template"])
    model = trained(name, library, method, fast)
    step = model.step(expected["images"], expected["labels"])
    with watched(monkeypatch, ImageStep, "cosine_logits") as compared:
        terms, _ = model.losses(step)
    expected.scaled("teacher_logits", compared[0][1])
    expected.scaled("logits", step.logits)
    expected.scaled("loss", terms["cross_entropy"])
    expected.scaled("kl", terms["knowledge"])
    for term, key in (("cross_entropy", "grad_ce.ctx"), ("knowledge", "grad_kl.ctx")):
        (gradient,) = torch.autograd.grad(terms[term], [method.ctx], retain_graph=True)
        expected.relative(key, gradient)
    method.backward(terms)
    expected.relative("grad.ctx", method.ctx.grad)
    settings.equal("conflict", bool((expected["grad_ce.ctx"] * expected["grad_kl.ctx"]).sum() < 0))


@FAST
@EVERY_LIBRARY
def test_tcp(library: str, fast: bool | None) -> None:
    settings, expected = published.case("tcp_b1")
    behind = settings["prompt_template"].removeprefix("X X X X ")
    config = {key: settings[key] for key in ("n_ctx", "block", "weight")}
    method = methods.TCP(**config, prompt=behind, template=settings["teacher_template"])
    model = trained("tcp_b1", library, method, fast)
    terms = compare("tcp_b1", model)
    expected.scaled("ce", terms["cross_entropy"])
    expected.scaled("teacher_text", model.frozen_class_features([settings["teacher_template"]]))


@FAST
@EVERY_LIBRARY
def test_mma(library: str, fast: bool | None) -> None:
    settings, _ = published.case("mma_2_3")
    config = {key: settings[key] for key in ("dim", "scale")}
    method = methods.MMA(
        **config, blocks=(settings["start"], settings["end"]), template=f"{settings['ctx_init']} {{}}."
    )
    compare("mma_2_3", trained("mma_2_3", library, method, fast))


@FAST
@EVERY_LIBRARY
def test_clip_svd(library: str, fast: bool | None) -> None:
    """Of fp64's decomposition, as the stored numbers are: fp32's has gradients that are off by 2.5e-4."""
    settings, expected = published.case("clip_svd")
    config = {key: settings[key] for key in ("towers", "template", "logit_scale", "rank")}
    projections = tuple(letter for part in settings["parts"] for letter in part.split(", "))
    method = methods.CLIPSVD(**config, projections=projections)
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast)
    trained = dict(method.named_parameters())
    for key, start in trained.items():
        expected.relative(f"param.{key}", start)

    def first(number: int, step: ImageStep, loss: Tensor) -> None:
        if number == 0:
            expected.scaled("logits", step.logits)
            expected.scaled("loss", loss)
            for key, parameter in trained.items():
                expected.relative(f"grad.{key}", parameter.grad)

    count = settings["steps"]
    batches = [(expected[f"images.{number}"], expected[f"labels.{number}"]) for number in range(count)]
    optimizer = torch.optim.AdamW(trained.values(), **{key: settings[key] for key in ("lr", "weight_decay")})
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count, settings["eta_min"])
    losses = [*stepped(model, batches, optimizer, count, first, falling.step)]
    expected.scaled("steps.loss", torch.stack(losses))
    for key, value in trained.items():
        expected.relative(f"after.{key}", value)


def drawn(name: str, key: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of a case that is not stored, as it was drawn by its name: images, or a published parameter."""
    noise = tiny_clip.draw(published.case(name)[0]["drawn"] + key, shape)
    kind = key.rpartition(".")[2]
    if "images" in key:
        return noise
    if kind in ("bias", "compound_rep_tokens"):
        return noise * (0.05 if kind == "bias" else 0.3)
    return noise * (shape[0] if kind == "proj_rep" else shape[-1]) ** -0.5 / (2 if kind in ("A", "B") else 1)


@FAST
@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
def test_mmrl(name: str, library: str, fast: bool | None) -> None:
    """Three steps, of which large tensors are stored as sums over their last axis; trained and new classes."""
    settings, expected = published.case(name)
    given = {"tokens": "n_rep_tokens", "width": "rep_dim", "weight": "alpha", "pull": "reg_weight"}
    given |= {"template": "template", "logit_scale": "logit_scale"}
    if name == "mmrlpp":
        given |= {"share": "beta", "rank": "res_lora_dim", "projection_rank": "proj_lora_dim"}
    config = {key: settings[there] for key, there in given.items()}
    method: Any = methods.find(name)(**config, first_block=settings["layers"][0])
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast)
    with_images = ("proj_rep", "A", "B")
    parameters = {
        f"{'image_encoder' if key in with_images else 'representation_learner'}.{key}": parameter
        for key, parameter in method.named_parameters()
    }
    for key, parameter in parameters.items():
        parameter.data = drawn(name, key, tuple(parameter.shape))

    def compare(kind: str, key: str, value: Tensor | None) -> None:
        assert value is not None
        whole = f"{kind}.{key}" in expected
        expected.relative(f"{kind}{'' if whole else '_rows'}.{key}", value if whole else value.sum(-1))

    def first(number: int, step: ImageStep, loss: Tensor) -> None:
        if number > 0:
            return
        of_tokens, of_class_token = method._both(step)
        expected.scaled("logits", of_class_token)
        expected.scaled("logits_rep", of_tokens)
        expected.scaled("logits_fusion", step.logits)
        expected.scaled("image_features", step.features)
        expected.scaled("text_features", step.class_features)
        expected.scaled("frozen_image_features", step.frozen_features)
        expected.scaled("frozen_text_features", step.frozen_class_features([settings["template"]]))
        terms, weight = method.loss(step), settings["alpha"]
        expected.scaled("ce", terms["class_token"] / weight)
        expected.scaled("ce_rep", terms["tokens"] / (1 - weight))
        expected.scaled("regular", (terms["image"] + terms["text"]) / settings["reg_weight"])
        expected.scaled("loss", loss)
        for key, parameter in parameters.items():
            compare("grad", key, parameter.grad)

    count, shape = settings["steps"], (4, 3, 32, 32)
    batches = [(drawn(name, f"images.{number}", shape), expected[f"labels.{number}"]) for number in range(count)]
    optimizer = torch.optim.AdamW(parameters.values(), **{key: settings[key] for key in ("lr", "weight_decay")})
    expected.scaled("steps.loss", torch.stack([*stepped(model, batches, optimizer, count, first)]))
    for key, parameter in parameters.items():
        compare("after", key, parameter)
    images = drawn(name, "test_images", shape)
    expected.scaled("after_logits_rep", method._both(model.step(images))[0])
    expected.scaled("after_logits_fusion", model(images))
    expected.scaled("after_logits", model.with_classes([*settings["names"], "tulip"])(images)[:, :-1])


def self_regulated(library: str, fast: bool | None = None) -> AdaptedModel:
    settings, _ = published.case("promptsrc_d2")
    shared = ("n_ctx_text", "n_ctx_vision", "depth_text", "depth_vision", "ctx_init", "text_weight", "image_weight")
    method = methods.PromptSRC(**{key: settings[key] for key in shared}, templates=tuple(settings["templates"]))
    return trained("promptsrc_d2", library, method, fast)


@FAST
@EVERY_LIBRARY
def test_prompt_src(library: str, fast: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("promptsrc_d2")
    settings.equal("templates", list(prompt_src.published_templates()))
    model = self_regulated(library, fast)
    with watched(monkeypatch, prompt_src, "divergence") as apart, watched(monkeypatch, F, "l1_loss") as distances:
        terms = compare("promptsrc_d2", model)
    weights = {"cross_entropy": 1, "text": settings["text_weight"], "image": settings["image_weight"], "answers": 1}
    for term, key in {"cross_entropy": "ce", "text": "text_l1", "image": "image_l1", "answers": "kl"}.items():
        expected.scaled(key, terms[term] / weights[term])
    expected.scaled("teacher_text", distances[0][0][1])
    expected.scaled("teacher_logits", apart[0][0][1])


@EVERY_LIBRARY
def test_prompt_srcs_average_over_epochs(library: str) -> None:
    settings, expected = published.case("promptsrc_d2")
    model, epochs = self_regulated(library), settings["epochs"]
    gaussian = Average(gaussian={"mean": settings["gpa_mean"], "std": settings["gpa_std"]})
    expected.scaled("gauss", torch.tensor(epoch_weights(gaussian, epochs)))
    average, taken = RunningAverage(model.method, gaussian, epochs), []

    def epoch_over() -> None:
        taken.append(None)
        if len(taken) % 2 == 0:
            average.epoch_done(len(taken) // 2 - 1)

    batches = [(expected[f"images{batch}"], expected[f"labels{batch}"]) for batch in ("", "_b")]
    optimizer = torch.optim.SGD(model.method.parameters(), lr=settings["lr"])
    losses = [*stepped(model, batches, optimizer, 2 * epochs, after=epoch_over)]
    average.settle()
    expected.scaled("steps.loss", torch.stack(losses))
    for key, value in model.method.state_dict().items():
        expected.relative(f"after.{key}", value)
    expected.scaled("after_logits", model(expected["images"]))


OF_HICROPL = {  # how the reference calls the parts of the networks that refine vision and text prompts
    "vision.summaries.": "attn_pooling_text_nets.", "text.summaries.": "attn_pooling_visual_nets.",
    "vision.": "text2visual_net.", "text.": "visual2text_net.",
}  # fmt: skip
OF_PROMPTS = {"ctx": "text.0", "cross_prompts_text.": "text.", "cross_prompts_visual.": "vision."}


def of_network(key: str) -> str:
    """The name that the reference has for a tensor of the networks."""
    if key.endswith(".proxy_token"):
        tower, _, number, _ = key.split(".")
        return f"{'text' if tower == 'vision' else 'visual'}_proxy_token.{number}"
    ours, theirs = next(pair for pair in OF_HICROPL.items() if key.startswith(pair[0]))
    return theirs + re.sub("^c_", "ffn.c_", key.removeprefix(ours))


def of_prompt(key: str) -> str:
    """The name that we have for a prompt of the reference."""
    ours, theirs = next(pair for pair in OF_PROMPTS.items() if key.startswith(pair[0]))
    return theirs + key.removeprefix(ours)


def drawn_network(prefix: str, key: str, shape: torch.Size) -> Tensor:
    """A tensor of HiCroPL at the start; a prompt, or one of the networks."""
    noise = tiny_clip.draw(prefix + key, tuple(shape))
    if key.startswith(tuple(OF_PROMPTS)):
        return 0.1 * noise
    if "proxy_token" in key:
        return noise
    if len(shape) == 1:
        return 1 + 0.1 * noise if key.endswith(("ln_1.weight", "ln_2.weight")) else 0.05 * noise
    return noise / shape[-1] ** 0.5


def hierarchical(library: str, fast: bool | None, flow: str) -> AdaptedModel:
    """The model of the case with its prompts and its networks."""
    settings, _ = published.case("hicropl")
    sizes = {f"{size}_{tower}": settings[size] for size in ("n_ctx", "depth") for tower in ("text", "vision")}
    method = methods.HiCroPL(
        **sizes, flow=flow, cross_block=settings["cross_layer"], ctx_init=settings["ctx_init"],
        weight=settings["lambda_"], descriptors=settings["texts"],
    )  # fmt: skip
    names = [name.replace("_", " ") for name in settings["names"]]
    model = adapt.wrap(published.backbone(library), method, names, fast)
    method.prepare(Given(model, torch.empty(0), torch.empty(0)))
    networks = {key: of_network(key) for key in method.aside.state_dict()}
    prompts = {of_prompt(key): key for key in ("ctx", *(f"cross_prompts_text.{block}" for block in (1, 2)))}
    prompts |= {of_prompt(key): key for key in (f"cross_prompts_visual.{block}" for block in (0, 1, 2))}
    for module, called in ((method.aside, networks), (method, prompts)):
        state = module.state_dict()
        module.load_state_dict({key: drawn_network(settings["drawn"], called[key], state[key].shape) for key in state})
    return model


def hierarchical_step(model: AdaptedModel, number: int) -> ImageStep:
    settings, expected = published.case("hicropl")
    images = tiny_clip.draw(f"{settings['drawn_images']}images.{number}", (4, 3, 32, 32))
    return model.step(images, expected[f"labels.{number}"])


@FAST
@EVERY_LIBRARY
def test_hicropl(library: str, fast: bool | None) -> None:
    """The published flow: prompts are overwritten before each step; in evaluation too there, and only there."""
    settings, expected = published.case("hicropl")
    model = hierarchical(library, fast, "published")
    method: Any = model.method
    optimizer = torch.optim.Adam(method.trains(), **{key: settings[key] for key in ("lr", "weight_decay", "eps")})
    losses = []
    for number in range(settings["steps"]):
        step = hierarchical_step(model, number)
        terms, _ = model.losses(step)
        optimizer.zero_grad()
        method.backward(terms)
        losses.append(total(terms).detach())
        if number == 0:
            expected.scaled("logits", step.logits)
            expected.scaled("loss", losses[0])
            expected.scaled("ce", terms["cross_entropy"])
            expected.scaled("fixed_text_features", step.frozen_class_features(method.texts))
            expected.scaled("frozen_image_features", step.frozen_features)
            for key in expected.under("mapped."):
                expected.relative(f"mapped.{key}", method.get_parameter(of_prompt(key)))
            for key in expected.under("grad."):
                expected.relative(f"grad.{key}", method.get_parameter(of_prompt(key)).grad)
        optimizer.step()
    expected.scaled("steps.loss", torch.stack(losses))
    for key in expected.under("after."):
        expected.relative(f"after.{key}", method.get_parameter(of_prompt(key)))
    images = tiny_clip.draw(f"{settings['drawn_images']}test_images", (4, 3, 32, 32))
    for asked in range(3):
        method.fold()
        with torch.no_grad():
            answers = model.eval()(images)
            assert torch.equal(model(images), answers)
        expected.scaled(f"after_logits.{asked}", answers)


@FAST
@EVERY_LIBRARY
def test_hicropl_as_intended(library: str, fast: bool | None) -> None:
    """Logits are the same, and gradients reach the networks; of a map of one key they are rounding, and not stored."""
    _, expected = published.case("hicropl")
    model = hierarchical(library, fast, "trained")
    method: Any = model.method
    step = hierarchical_step(model, 0)
    method.backward(model.losses(step)[0])
    expected.scaled("logits", step.logits)
    networks = {of_network(key): parameter for key, parameter in method.aside.named_parameters()}
    for key in expected.under("intended."):
        trained = networks[key] if key in networks else method.get_parameter(of_prompt(key))
        expected.relative(f"intended.{key}", trained.grad)
    for key in expected.under("intended_rows."):
        expected.relative(f"intended_rows.{key}", networks[key].grad.sum(-1))


@FAST
@EVERY_LIBRARY
def test_two_stages(library: str, fast: bool | None) -> None:
    settings, expected = published.case("two_stage_ln")
    counts = settings["stage1_steps"], settings["stage2_steps"]
    towers = ("text", "vision") if settings["modality"] == "both" else (settings["modality"],)
    starts = {key: settings[key] for key in ("text_start", "vision_start")}
    tune = {"ln": "norms", "bitfit": "biases"}[settings["peft"]]
    method = methods.TwoStage(
        template=settings["template"], first=counts[0] / counts[1], towers=towers, tune=tune, **starts
    )
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast)
    tuned: Any = method.tuned
    settings.equal("listed_but_frozen", sorted(_norms() - set(tuned.state_dict())))
    tuned.load_state_dict(expected.under("param."))
    images, labels = expected["images"], expected["labels"]

    def first(number: int, step: ImageStep, loss: Tensor) -> None:
        if number == 0 and not method.classifier.any():
            expected.scaled("logits", step.logits)
            expected.scaled("loss", loss)
            for key, parameter in tuned.named_parameters():
                expected.relative(f"grad.{key}", parameter.grad)

    def steps(parameters: Any, count: int) -> list[Tensor]:
        how = {key: settings[key] for key in ("lr", "weight_decay")}
        optimizer = torch.optim.AdamW(parameters, **how)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count, settings["eta_min"])
        return [*stepped(model, [(images, labels)], optimizer, count, first, falling.step)]

    training: Any = Given(model, images[None], labels, steps=steps, iterations=counts[1])
    method.prepare(training)
    assert training.stages == ["norms"]
    assert len(training.losses) == counts[0]
    for key, value in tuned.state_dict().items():
        expected.relative(f"after.{key}", value)
    expected.scaled("classifier_start", method.classifier)
    expected.scaled("stage2_logits", model(images))
    losses = [*training.losses, *steps([each for each in method.parameters() if each.requires_grad], counts[1])]
    expected.scaled("steps.loss", torch.stack(losses))
    expected.relative("classifier", method.classifier)
    for key, value in tuned.state_dict().items():  # which the second stage leaves alone
        expected.relative(f"after.{key}", value)
    method.finish(training)
    assert all(parameter.requires_grad for parameter in method.parameters())
    every = model.with_classes((*settings["names"], *settings["new_names"]))
    expected.scaled("final_logits", every(images))


def _norms() -> set[str]:
    """All of the tiny CLIP's norms, in the names of open_clip."""
    state = published.backbone("open_clip").model.state_dict()
    return {name for name in state if name.rpartition(".")[0].rpartition(".")[2].startswith("ln_")}


@EVERY_LIBRARY
def test_tda(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("tda")
    sure, unsure = settings["positive"], settings["negative"]
    method = methods.TDA(
        shots=sure["shot_capacity"], alpha=sure["alpha"], beta=sure["beta"],
        negative_shots=unsure["shot_capacity"], negative_alpha=unsure["alpha"], negative_beta=unsure["beta"],
        unsure=tuple(unsure["entropy_threshold"].values()), improbable=tuple(unsure["mask_threshold"].values()),
        views=settings["views"], template=tuple(settings["templates"]),
    )  # fmt: skip
    model = adapt.wrap(published.backbone(library), method, settings["names"]).eval()
    settings.equal("logit_scale", method.logit_scale)
    expected.scaled("clip_weights", model.class_features().T)
    with torch.no_grad():
        with watched(monkeypatch, method, "_answer") as answers:
            found = model(expected["images"])
        expected.scaled("logits", found)
        entropies = torch.tensor([image.entropy for (image, _), _ in answers])
        binary = torch.tensor(float(len(settings["names"]))).log2()
        expected.scaled("entropy", entropies / binary)
        stream = model.stream()
        by_five = torch.cat([stream(images) for images in expected["images"].split(5)])
        assert torch.allclose(by_five, found, atol=1e-3)
        alone = torch.cat([model(images) for images in expected["images"].split(1)])
    assert not torch.allclose(alone, found, atol=0.1)  # each call by itself remembers nothing
