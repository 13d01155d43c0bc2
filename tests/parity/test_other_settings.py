"""Settings that no official code ran with: each method against its formula, in fp64, on features of the tiny CLIP."""

from __future__ import annotations

import copy
import math
from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from checks import relative, scaled
from published import GRADIENT_TOLERANCE, TOLERANCE, unit
from torch import Tensor
from trainings import Given

import adapt
from adapt import AdaptedModel, methods
from adapt.methods.base import Encoded, PairStep, total
from adapt.methods.prograd import aligned

NAMES = ("goldfish", "red_panda", "school bus", "dragonfly")
TEMPLATES = ("a photo of a {}.", "art of the {}, drawn by hand.")


def made(method: methods.Method, names: tuple[str, ...] = NAMES) -> AdaptedModel:
    return adapt.wrap(published.backbone("open_clip"), method, names)


def pictures(count: int = 8) -> tuple[Tensor, Tensor]:
    """Images of a case, and labels in turn."""
    return published.case("clap_l2")[1]["images"][:count], torch.arange(count) % len(NAMES)


def raw(model: AdaptedModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.backbone.encode_image(images).double()


def texts(model: AdaptedModel, template: str = TEMPLATES[0]) -> Tensor:
    """Features of the classes before unit length, in fp64."""
    prompts = [template.replace("{}", name.replace("_", " ")) for name in model.class_names]
    with torch.no_grad():
        return model.backbone.encode_text(model.backbone.tokenize(prompts)).double()


def learned(
    model: AdaptedModel, images: Tensor, labels: Tensor, values: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits of a batch, the terms of its loss, and the gradients of the tensors that train, after a small move."""
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    step = model.step(images, labels)
    step.values = values
    terms = model.losses(step)[0]
    found = torch.autograd.grad(total(terms), list(model.method.parameters()))
    return step.logits, terms, dict(zip(dict(model.method.named_parameters()), found, strict=True))


@pytest.mark.parametrize("constraint", ["adaptive", "corrected", "constant", "balanced"])
def test_other_constraints_of_clap(constraint: str) -> None:
    """Weights of classes from what zero-shot recognises, and the rise of adaptive ones by the epoch before."""
    images, _ = pictures(6)
    labels = torch.tensor([0, 1, 1, 2, 3, 3])
    model = made(methods.CLAP(constraint=constraint))
    method: Any = model.method
    method.prepare(Given(model, images[None], labels))
    base, features = texts(model, "a photo of a {}."), unit(raw(model, images))
    shares = (model.backbone.logit_scale * features @ unit(base).T).softmax(-1)
    sure = torch.stack([shares[labels == label, label].mean() for label in range(4)])
    even = torch.ones_like(sure)
    weights = {"corrected": sure / sure.mean(), "constant": sure.mean() * even, "balanced": even}.get(constraint, sure)
    moved = torch.zeros_like(sure)
    for _ in range(3):
        _, terms, gradients = learned(model, images, labels)
        start = method.prototypes.detach().double().requires_grad_()
        apart = (start - base).square().sum(-1)
        right = (
            F.cross_entropy(model.backbone.logit_scale * features @ unit(start).T, labels) + (weights * apart).mean()
        )
        assert scaled(total(terms), right) < TOLERANCE
        [expected] = torch.autograd.grad(right, [start])
        assert relative(gradients["prototypes"], expected) < GRADIENT_TOLERANCE
        method.epoch_done(0, 3)
        if constraint == "adaptive":
            weights, moved = weights + moved * apart.detach(), apart.detach()


@pytest.mark.parametrize(("ratio", "reduction"), [(0.7, 2), (1.0, 8)])
def test_clip_adapter_at_other_ratios(ratio: float, reduction: int) -> None:
    images, labels = pictures()
    model = made(methods.CLIPAdapter(ratio=ratio, reduction=reduction, template=TEMPLATES))
    logits, _, gradients = learned(model, images, labels)
    first, second = (each.detach().double().requires_grad_() for each in model.method.parameters())
    assert first.shape == (64 // reduction, 64)
    features = unit(raw(model, images))
    mixed = ratio * (features @ first.T).relu().matmul(second.T).relu() + (1 - ratio) * features
    classes = unit(sum(unit(texts(model, each)) for each in TEMPLATES))
    right = model.backbone.logit_scale * unit(mixed) @ classes.T
    assert scaled(logits, right) < TOLERANCE
    for own, expected in zip(gradients.values(), torch.autograd.grad(F.cross_entropy(right, labels), [first, second])):
        assert relative(own, expected) < GRADIENT_TOLERANCE


def test_task_res_of_several_templates() -> None:
    images, labels = pictures()
    model = made(methods.TaskRes(alpha=2.0, template=TEMPLATES))
    logits, _, gradients = learned(model, images, labels)
    residuals = model.method.text_feature_residuals.detach().double().requires_grad_()
    base = sum(texts(model, each) for each in TEMPLATES) / 2
    right = model.backbone.logit_scale * unit(raw(model, images)) @ unit(base + 2 * residuals).T
    assert scaled(logits, right) < TOLERANCE
    [expected] = torch.autograd.grad(F.cross_entropy(right, labels), [residuals])
    assert relative(gradients["text_feature_residuals"], expected) < GRADIENT_TOLERANCE


@pytest.mark.parametrize(("strength", "temperature"), [(0.0, 1.0), (0.3, 2.0), (2.0, 0.5)])
def test_prograd_at_other_strengths(strength: float, temperature: float) -> None:
    images, labels = pictures()
    config = {"strength": strength, "temperature": temperature, "template": TEMPLATES[1]}
    model = made(methods.ProGrad(n_ctx=3, **config))
    step = model.step(images, labels)
    terms, _ = model.losses(step)
    known = model.backbone.logit_scale * unit(raw(model, images)) @ unit(texts(model, TEMPLATES[1])).T
    probabilities = (known / temperature).softmax(-1)
    right = -(probabilities * (step.logits.double() / temperature).log_softmax(-1)).sum(-1).mean() * temperature**2
    assert scaled(terms["knowledge"], right) < TOLERANCE
    own, general = (
        torch.autograd.grad(terms[name], [model.method.ctx], retain_graph=True)[0].double()
        for name in ("cross_entropy", "knowledge")
    )
    model.method.backward(terms)
    inner = (own * general).sum()
    expected = own - strength * inner.clamp_max(0) / general.square().sum() * general
    assert relative(model.method.ctx.grad, expected) < GRADIENT_TOLERANCE
    against = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 0.0])
    assert aligned(*against, strength).tolist() == pytest.approx([strength - 1, 2.0])


@pytest.mark.parametrize(("name", "weight"), [("kgcoop", 3.0), ("tcp", 0.5)])
def test_held_to_other_prompts_at_another_weight(name: str, weight: float) -> None:
    images, labels = pictures()
    more = {"block": 1} if name == "tcp" else {}
    model = made(methods.find(name)(weight=weight, template=TEMPLATES[1], **more))
    _, terms, _ = learned(model, images, labels)
    apart = 1 - (model.class_features().double() * unit(texts(model, TEMPLATES[1]))).sum(-1).mean()
    assert apart > 0.01
    assert scaled(terms["knowledge"], weight * apart) < TOLERANCE
    assert set(terms) == {"cross_entropy", "knowledge"}


def test_prompt_src_at_other_weights() -> None:
    images, labels = pictures()
    config = {"depth_text": 2, "depth_vision": 2, "text_weight": 3.0, "image_weight": 7.0, "templates": TEMPLATES}
    model = made(methods.PromptSRC(**config))
    logits, terms, _ = learned(model, images, labels)
    frozen = unit(raw(model, images))
    teacher = unit(sum(texts(model, each) for each in TEMPLATES))
    found = model.image_features(images).double()
    assert scaled(terms["text"], 3 * (model.class_features().double() - teacher).abs().mean()) < TOLERANCE
    assert scaled(terms["image"], 7 * (found - frozen).abs().mean()) < TOLERANCE
    log_q = (model.backbone.logit_scale * frozen @ teacher.T).log_softmax(-1)
    apart = (log_q.exp() * (log_q - logits.double().log_softmax(-1))).mean()
    assert scaled(terms["answers"], apart) < TOLERANCE


def test_lp_plus_plus_keeps_the_last_of_its_best_epochs() -> None:
    """All views count under their image's label; validation images choose."""
    images, labels = published.case("clap_l2")[1]["images"], torch.arange(12) % 4
    views, epochs = 2, 30
    model = made(methods.LPPlusPlus(views=views, epochs=epochs))
    method: Any = model.method
    bias = method.bias.double()
    val = unit(raw(model, images[24:])).float(), torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 1, 1])
    training: Any = Given(model, images[:24].unflatten(0, (views, 12)), labels, val)
    method.prepare(training)
    rows, own, classes = unit(raw(model, images[:24])), labels.repeat(views), unit(texts(model))
    cosines = rows @ classes.T
    target = F.one_hot(own).double()
    weight, alpha = (
        target.T @ rows,
        torch.full((1, 4), 250 * float((target * cosines).sum(0).div(target.sum(0)).mean())),
    )
    rate = 4 * len(rows) / float(torch.linalg.svdvals(rows)[0]) ** 2
    rate_alpha = len(rows) / (4 * float(cosines.square().sum(0).max()))
    moved, moved_bias, summed, best = torch.zeros_like(weight), torch.zeros_like(bias), 0.0, (-1.0, 0, weight)
    for epoch in range(1, epochs + 1):
        wrong = ((rows @ weight.T + bias + alpha * cosines).softmax(-1) - target) / len(rows)
        moved, moved_bias = 0.9 * moved + wrong.T @ rows, 0.9 * moved_bias + wrong.sum(0)
        summed = summed + (wrong * cosines).sum(0)
        weight, bias = weight - rate * moved, bias - rate * moved_bias
        if epoch % 10 == 0:
            alpha = alpha - rate_alpha * summed
        seen = val[0].double()
        answers = (seen @ weight.T + bias + alpha * (seen @ classes.T)).argmax(-1)
        accuracy = float((answers == val[1]).double().mean())
        if accuracy >= best[0]:
            best = accuracy, epoch, weight
    assert training.noted["solver"] == {"epoch": best[1], "val_accuracy": pytest.approx(best[0])}
    assert best[1] < epochs  # or else the last one would do
    assert relative(method.weight, best[2]) < GRADIENT_TOLERANCE


def test_prolips_weight_is_one_over_the_shots_unless_given() -> None:
    images, labels = pictures(12)
    found = []
    for weight in (None, 4 / 12, 30.0):
        model = made(methods.ProLIP(views=0, epochs=3, lr=0.01, weight=weight))
        start = model.method.proj.double()
        model.method.prepare(Given(model, images[None], labels))
        found.append(model.method.proj.double())
    assert torch.equal(found[0], found[1])
    read = Given(model, images[None], labels).features("train", unit=False, projected=False).double()
    classes = model.class_features().detach().double()  # the model's own: Adam magnifies how another pass rounds them
    trained = start.clone().requires_grad_()
    moments, squares = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(3):
        cosines = unit(read @ trained) @ classes.T
        loss = F.cross_entropy(100 * cosines, labels) + 30 * (trained - start).square().sum()
        [gradient] = torch.autograd.grad(loss, [trained])
        moments, squares = 0.9 * moments + 0.1 * gradient, 0.999 * squares + 0.001 * gradient**2
        rate = 0.01 * (1 + math.cos(math.pi * step / 3)) / 2
        unbiased = moments / (1 - 0.9 ** (step + 1)), (squares / (1 - 0.999 ** (step + 1))).sqrt()
        trained = (trained - rate * unbiased[0] / (unbiased[1] + 1e-4)).detach().requires_grad_()
    assert relative(found[2] - start, trained - start) < 10 * GRADIENT_TOLERANCE


@pytest.mark.parametrize("views", [0, 3])
def test_tip_adapter_without_a_search(views: int) -> None:
    images, labels = pictures(12)
    model = made(methods.TipAdapter(views=views, alpha=2.5, beta=4.0, search_alpha=None))
    training: Any = Given(
        model, images.unflatten(0, (3, 4)) if views else images[None], labels[:4] if views else labels
    )
    model.method.prepare(training)
    assert model.method.grid(training) == {}
    features = raw(model, images)
    keys = unit(features.unflatten(0, (3, 4)).mean(0)) if views else unit(features)
    queries = unit(features[:5])
    said = (4.0 * (queries @ keys.T - 1)).exp() @ F.one_hot(training.labels("train"), 4).double()
    right = 100 * queries @ unit(texts(model)).T + 2.5 * said
    assert scaled(model(images[:5]), right) < TOLERANCE


def test_the_published_search_of_tip_adapter() -> None:
    images, labels = pictures(8)
    model = made(methods.TipAdapter(views=0))
    grid = model.method.grid(Given(model, images[None], labels))
    assert grid["beta"].values == pytest.approx([0.1 + i * 6.9 / 200 for i in range(200)])
    assert grid["alpha"].values == pytest.approx([0.1 + i * 2.9 / 20 for i in range(20)])


def test_uniqa_between_other_targets() -> None:
    images, labels = pictures(4)
    model = made(methods.UniQA(between=(2.0, 7.0), reduction=4))
    targets = torch.tensor([2.0, 3.5, 7.0, 6.0], dtype=torch.double)
    logits, terms, _ = learned(model, images, labels, targets.float())
    shares = logits.double().softmax(-1) @ model.method.score_level.double()
    assert scaled(model.method.score(logits), 2 + 5 * shares) < TOLERANCE
    assert scaled(terms["squared_error"], (shares - (targets - 2) / 5).square().mean()) < TOLERANCE


@pytest.mark.parametrize("fast", [None, False])
def test_uniqa_with_several_groups_of_words(fast: bool | None) -> None:
    """The softmax is within each group, and the groups' scores are averaged; one group leaves a word as it is."""
    images, labels = pictures(4)
    names, groups = ("bad", "good", "fair"), [{"bad": "noisy image", "good": "clean image"}, {"fair": "fair content"}]
    method = methods.UniQA(between=(0.0, 1.0), groups=groups)
    model = adapt.wrap(published.backbone("open_clip"), method, names, fast)
    targets = torch.tensor([0.2, 0.5, 0.9, 0.4])
    logits, terms, gradients = learned(model, images, labels % 3, targets)
    tensors = {name: each.detach().double().requires_grad_() for name, each in method.named_parameters()}
    first, second = (tensors[f"adapter.fc.{layer}.weight"] for layer in (0, 2))
    features = unit(raw(model, images))
    changed = unit(features + (features @ first.T).relu().matmul(second.T).relu())
    prompts = [[group.get(name, f"{name} image") for name in names] for group in [{}, *groups]]
    with torch.no_grad():
        encoded = [unit(model.backbone.encode_text(model.backbone.tokenize(each)).double()) for each in prompts]
    scores = [(model.backbone.logit_scale * changed @ each.T).softmax(-1) @ tensors["score_level"] for each in encoded]
    right = sum(scores) / 3
    assert scaled(method.score(logits), right) < TOLERANCE
    loss = (right - targets).square().mean()
    assert scaled(terms["squared_error"], loss) < TOLERANCE
    for name, expected in zip(tensors, torch.autograd.grad(loss, [*tensors.values()]), strict=True):
        assert relative(gradients[name], expected) < GRADIENT_TOLERANCE
    with pytest.raises(adapt.AdaptError, match="groups has 'great', which is not a class"):
        adapt.wrap(published.backbone("open_clip"), methods.UniQA(groups=[{"great": "sharp image"}]), names)


@pytest.mark.parametrize("mode", ["hinge", "learn"])
@pytest.mark.parametrize("fast", [None, False])
def test_other_modes_of_detpro(mode: str, fast: bool | None) -> None:
    """A background that is no more probable than at random, or a class with a prompt of learned tokens alone."""
    names = ("goldfish", "none", "red_panda", "school bus")
    images, labels = pictures(7)
    method = methods.DetPro(n_ctx=4, background="none", mode=mode)
    model = adapt.wrap(published.backbone("open_clip"), method, names, fast)
    method.set_counts(torch.tensor([4, 6, 2, 12]), names)
    logits, terms, gradients = learned(model, images, labels)
    weights, none = torch.tensor([8 / 4, 12 / 6, 8 / 2, 8 / 12], dtype=torch.double)[labels], labels == 1
    contexts = {name: each.detach().double().requires_grad_() for name, each in method.named_parameters()}
    clip: Any = copy.deepcopy(published.backbone("open_clip").model).double()
    texts = [f"X X X X {name.replace('_', ' ')}." for name in names]
    texts[1] = " ".join(["X"] * 10)
    ids = model.backbone.tokenize(texts)
    rows = clip.token_embedding(ids)
    rows = torch.cat([rows[:, :1], contexts["ctx"].expand(4, -1, -1), rows[:, 5:]], dim=1)
    if mode == "learn":
        row = torch.cat([rows[1, :1], contexts["bg_prompt"], rows[1, 11:]])
        rows = torch.stack([rows[0], row, *rows[2:]])
    hidden = clip.transformer(rows + clip.positional_embedding, attn_mask=clip.attn_mask.double())
    encoded = unit((clip.ln_final(hidden)[torch.arange(4), ids.argmax(-1)]) @ clip.text_projection)
    features = unit(raw(model, images))
    if mode == "learn":
        right = 100 * features @ encoded.T
        assert scaled(logits, right) < TOLERANCE
        each = F.cross_entropy(right, labels, reduction="none") * weights / weights.sum()
    else:
        known = 100 * features @ encoded[[0, 2, 3]].T
        target = torch.tensor([0, 0, 1, 2])[labels]
        over = (known.softmax(-1) - 1 / 3).clamp_min(0).sum(-1)
        each = torch.where(none, over, F.cross_entropy(known, target, reduction="none")) * weights / 7
    assert scaled(terms["known"], each[~none].sum()) < TOLERANCE
    assert scaled(terms["background"], each[none].sum()) < TOLERANCE
    expected = torch.autograd.grad(each.sum(), [*contexts.values()])
    for name, gradient in zip(contexts, expected, strict=True):
        assert relative(gradients[name], gradient) < GRADIENT_TOLERANCE
    assert method.threshold == 0.5


def test_vl2v_sd_draws_to_images_and_texts_by_their_share() -> None:
    images, labels = pictures()
    model = made(methods.VL2VSD(image_share=0.3))
    _, terms, _ = learned(model, images, labels)
    found = model.image_features(images).double()
    of_texts = unit(texts(model, "a photo of a {}"))[labels]
    assert scaled(terms["images"], 0.3 * (1 - (found * unit(raw(model, images))).sum(-1).mean())) < TOLERANCE
    assert scaled(terms["texts"], 0.7 * (1 - (found * of_texts).sum(-1).mean())) < TOLERANCE


@pytest.mark.parametrize(("for_all", "symmetric"), [(True, False), (False, True)])
def test_svlc_at_another_weight_and_with_images_that_share_a_caption(for_all: bool, symmetric: bool) -> None:
    """A caption that is another image's too is wrong for neither, in all of the loss."""
    images, _ = pictures(4)
    config = {"negative_weight": 0.3, "twins_for_all": for_all, "symmetric": symmetric}
    method = methods.SVLC(**config, words={"colour": ["red", "blue"]})
    model = made(method, ())
    captions = ["a red bus", "a cat", "a red bus", "a dog"]
    others = ["a bus, red", "", "", "one dog"]
    step = PairStep(model, [Encoded(unit(raw(model, images)).float()), captions, others], torch.arange(4))
    terms = method.loss(step)
    with torch.no_grad():
        right, wrong, again = (
            unit(model.backbone.encode_text(model.backbone.tokenize(each)).double())
            for each in (captions, ["a blue bus"] * 2, ["a bus, red", "a cat", "a red bus", "one dog"])
        )
    scale, seen = model.backbone.logit_scale, unit(raw(model, images))
    hidden = torch.zeros(4, 4, dtype=torch.double)
    hidden[0, 2] = hidden[2, 0] = -math.inf
    logits, labels = scale * seen @ right.T + hidden, torch.arange(4)
    of_images = torch.cat([logits, scale * seen @ wrong.T], dim=-1) if for_all else logits
    plain = (F.cross_entropy(of_images, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert scaled(terms["cross_entropy"], plain) < TOLERANCE
    pairs = torch.stack([logits[[0, 2], [0, 2]], scale * (seen[[0, 2]] * wrong).sum(-1)], dim=-1)
    assert scaled(terms["twins"], 0.3 * -pairs.log_softmax(-1)[:, 0].mean()) < TOLERANCE
    rephrased = [scale * features @ again.T + hidden for features in (seen, right)]
    ways = [*rephrased, *(each.T for each in rephrased)] if symmetric else rephrased
    assert scaled(terms["rephrased"], sum(F.cross_entropy(each, labels) for each in ways) / len(ways)) < TOLERANCE


def test_several_twins_and_the_divergence_of_svlc() -> None:
    """A caption has as many wrong twins as are drawn, without a second of the same; two captions have none."""
    images, _ = pictures(4)
    method = methods.SVLC(negatives=3, negative_weight=0.7, even_weight=0.1)
    model = made(method, ())
    captions = ["a red bus", "a cat", "one red cat", "a dog"]
    others = ["a bus, red", "", "a cat, red", "one dog"]
    drawn = {captions[0]: ["a blue bus"] * 3, captions[2]: ["one blue cat", "two red cats", "one blue cat"]}
    draws = {text: iter(drawn.get(text, [None] * 3)) for text in captions}
    method.twin = lambda text: next(draws[text])  # type: ignore[method-assign,assignment]
    terms = method.loss(PairStep(model, [Encoded(unit(raw(model, images)).float()), captions, others], torch.arange(4)))
    with torch.no_grad():
        right, wrong, again = (
            unit(model.backbone.encode_text(model.backbone.tokenize(each)).double())
            for each in (
                captions,
                ["a blue bus", "one blue cat", "two red cats"],
                [o or c for o, c in zip(others, captions)],
            )
        )
    scale, seen, labels = model.backbone.logit_scale, unit(raw(model, images)), torch.arange(4)
    logits, against, rephrased = (scale * seen @ each.T for each in (right, wrong, again))
    plain = F.cross_entropy(torch.cat([logits, against], -1), labels) + F.cross_entropy(logits.T, labels)
    assert scaled(terms["cross_entropy"], plain / 2) < TOLERANCE
    own = [logits[0, 0].exp(), against[0, 0].exp(), logits[2, 2].exp(), against[2, 1:].exp().sum()]
    lost = -((own[0] / (own[0] + own[1])).log() + (own[2] / (own[2] + own[3])).log()) / 2
    assert scaled(terms["twins"], 0.7 * lost) < TOLERANCE
    both = torch.stack([logits.diag(), rephrased.diag()], -1).log_softmax(-1)
    even = F.kl_div(both, torch.full_like(both, 0.5), reduction="batchmean")
    assert scaled(terms["even"], 0.1 * even) < TOLERANCE
    assert float(even) > 1e-3


def test_narrower_deep_tokens_of_vpt() -> None:
    """One map brings those of all blocks to the tower's width; its gradient is the sum over them."""
    images, labels = pictures()
    narrow = made(methods.IVLP(n_ctx_text=0, n_ctx_vision=3, depth_vision=2, project=20))
    logits, _, gradients = learned(narrow, images, labels)
    wide = made(methods.IVLP(n_ctx_text=0, n_ctx_vision=3, depth_vision=2))
    weight, bias = narrow.method.prompt_proj.weight, narrow.method.prompt_proj.bias
    with torch.no_grad():
        for own, mapped in zip(wide.method.vision, narrow.method.vision, strict=True):
            assert mapped.shape == (3, 20)
            own.copy_(mapped @ weight.T + bias)
    step = wide.step(images, labels)
    assert scaled(logits, step.logits) < TOLERANCE
    found = torch.autograd.grad(total(wide.losses(step)[0]), list(wide.method.vision))
    right = sum(each.double().T @ own.detach().double() for each, own in zip(found, narrow.method.vision))
    assert relative(gradients["prompt_proj.weight"], right) < GRADIENT_TOLERANCE
    for number, each in enumerate(found):
        assert relative(gradients[f"vision.{number}"], each @ weight) < GRADIENT_TOLERANCE
    sizes = {"n_ctx_text": 4, "n_ctx_vision": 3, "depth_text": 2, "depth_vision": 2}
    refined = made(methods.HiCroPL(**sizes, project=24))
    refined.method.prepare(Given(refined, images[None], labels))
    _, _, gradients = learned(refined, images, labels)
    assert gradients["prompt_proj.weight"].norm() > 0
    with pytest.raises(adapt.AdaptError, match="project is given, but n_ctx_vision is 0"):
        methods.IVLP(n_ctx_vision=0, project=20)


def test_published_places_inside_the_towers() -> None:
    """What is left out lies where the papers have it: of three blocks the last two, and after two."""
    model = made(methods.MMA())
    assert list(model.method.shared_adapter) == ["2", "3"]
    model = made(methods.TCP(block=None))
    assert model.method.config.block == 2
    model = made(methods.MaPLe(depth=None))
    assert model.method.config.depth == 2
    assert len(model.method.compound_prompts_text) == 1


def test_mmas_adapters_start_as_published() -> None:
    """Weights of a variance of 2 over what they give, and biases of zero."""
    torch.manual_seed(0)
    method: Any = made(methods.MMA(dim=64)).method
    for each in (method.text_adapter["2"]["down"][0], method.visual_adapter["3"]["up"], method.shared_adapter["2"][0]):
        assert float(each.weight.std()) == pytest.approx((2 / each.out_features) ** 0.5, rel=0.05)
        assert not each.bias.any()
