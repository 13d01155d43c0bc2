"""What methods compute, against their formulas in fp64: where no official code ran, or ran with the defaults alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from checks import perturb, relative, scaled
from torch import Tensor

import adapt
from adapt import AdaptedModel, Backbone, methods
from adapt.engine import vision
from adapt.methods import lora
from adapt.methods.base import Encoded, ImageStep, Mixture, contrast
from adapt.methods.clippings import supervised_contrast
from adapt.methods.gda import shrunk_precision

NAMES = ("goldfish", "red_panda", "sea cucumber")


class Given:
    """A training whose unit-length features `(n, e)` and labels `(n,)` are at hand, of which none is for validation."""

    resumed = False

    def __init__(self, features: Tensor, labels: Tensor, model: Any = None, values: Any = None) -> None:
        self._features, self._labels, self._values = features, labels, values
        self.model = self.classifier = model
        self.noted: dict[str, Any] = {}

    def features(self, part: str, *, views: int = 0, unit: bool = True, projected: bool = True) -> Tensor:
        assert (views, unit, projected) == (0, True, True)
        return self._features

    def labels(self, part: str) -> Tensor:
        return self._labels

    def values(self, part: str) -> Tensor:
        return self._values

    def items(self, part: str) -> Any:
        return ()

    def note(self, **figures: Any) -> None:
        self.noted |= figures


def images(classes: int = 3, each: int = 5, spread: float = 0.25) -> tuple[Tensor, Tensor]:
    """Unit-length features of as many images of each class, around one axis a class; of the last class one fewer."""
    labels = torch.arange(classes).repeat(each)[:-1]
    return F.normalize(torch.eye(classes, 64)[labels] + spread * torch.randn(len(labels), 64), dim=-1), labels


def fitted(backbone: Backbone, method: methods.Method, train: tuple[Tensor, Tensor]) -> AdaptedModel:
    model = adapt.wrap(backbone, method, NAMES)
    method.prepare(Given(*train, model))  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize("neighbours", [1, 4])
def test_neighbours_vote_by_their_cosines_in_ties_alone(open_clip: Backbone, neighbours: int) -> None:
    features, labels = images()
    found = fitted(open_clip, methods.KNN(neighbours=neighbours), (features, labels)).logits(features)
    near = (features.double() @ features.double().T).topk(neighbours)
    votes = torch.full((len(features), 3), 0.05, dtype=torch.double)
    for row, (places, cosines) in enumerate(zip(near.indices, near.values)):
        for place, cosine in zip(places.tolist(), cosines.tolist()):
            votes[row, labels[place]] += 1 + 0.001 * cosine
    assert scaled(found, (votes / votes.sum(-1, keepdim=True)).log()) < 1e-5


@pytest.mark.parametrize(("count", "ridge"), [(11, 0.0), (11, 0.7), (4, 0.0)])
def test_lda_by_its_formula(open_clip: Backbone, count: int, ridge: float) -> None:
    """Of classes with unequal numbers of images: their shares, an unbiased covariance, and the ridge."""
    from sklearn.covariance import ledoit_wolf

    features, labels = (tensor[:count] for tensor in images(each=4))
    model = fitted(open_clip, methods.LDA(ridge=ridge), (features, labels))
    x = features.double()
    means = torch.stack([x[labels == label].mean(0) for label in range(3)])
    covariance = torch.from_numpy(ledoit_wolf((x - means[labels]).numpy(), assume_centered=True)[0])
    covariance = covariance * count / (count - 3)
    covariance = covariance + ridge * covariance.trace() / count * torch.eye(64, dtype=torch.double)
    weight = means @ torch.linalg.inv(covariance)
    shares = labels.bincount().double() / count
    bias = shares.log() - (weight * means).sum(-1) / 2
    assert relative(model.method.weight, weight) < 1e-5
    assert relative(model.method.bias, bias) < 1e-5


def test_noise_of_close_has_its_scale(open_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = images()
    method = methods.Close(noise=0.5)
    model = adapt.wrap(open_clip, method, NAMES).train()
    drawn = torch.randn(features.shape)
    monkeypatch.setattr(torch, "randn_like", lambda given: drawn)
    shaken = F.normalize(features.double() + 0.5 * drawn, dim=-1)
    expected = shaken @ method.lin.weight.double().T + method.lin.bias
    assert scaled(model.logits(features), expected) < 1e-5


def test_pairs_of_one_entity_alone_tell_nothing() -> None:
    logits = torch.randn(4, 4, dtype=torch.double)
    assert float(supervised_contrast(logits, torch.ones(4, 4, dtype=torch.bool))) == 0
    assert float(supervised_contrast(logits, torch.eye(4, dtype=torch.bool))) == 0
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    each = [
        float(logits[row, [c for c in range(4) if c != row]].logsumexp(-1) - logits[row, 1 - row]) for row in (0, 1)
    ]
    assert float(supervised_contrast(logits, same)) == pytest.approx(sum(each) / 2)


def test_the_threshold_of_detpro_is_where_both_kinds_are_told_best(open_clip: Backbone) -> None:
    """Each kind counts the same, however many images it has; the background is answered at the threshold itself."""
    method = methods.DetPro(n_ctx=2, background=NAMES[1])
    model = adapt.wrap(open_clip, method, NAMES).eval()
    features, labels = images(each=8, spread=0.6)
    training: Any = Given(features, labels, model)
    method.finish(training)
    step = ImageStep(model, Encoded(features))
    known = (100 * features.double() @ model.class_features().double()[[0, 2]].T).detach()
    sure, unknown = known.softmax(-1).max(-1).values, labels == 1
    values = sure.sort().values
    shares = {
        float(t): float((sure[unknown] < t).double().mean() + (sure[~unknown] >= t).double().mean()) / 2
        for t in (values[1:] + values[:-1]) / 2
    }
    best = max(shares, key=shares.__getitem__)
    assert training.noted["searched"]["threshold"] == pytest.approx(best, rel=1e-4)
    assert training.noted["searched"]["train_accuracy_of_both"] == pytest.approx(shares[best])
    none = known.logsumexp(-1) + math.log(best)
    assert scaled(step.logits, torch.stack([known[:, 0], none, known[:, 1]], dim=-1)) < 1e-4


def test_the_answers_of_detpros_grades_are_those_of_their_mean(open_clip: Backbone) -> None:
    method = methods.DetPro(n_ctx=2, grades=(0.4, 0.8))
    model = perturb(adapt.wrap(open_clip, method, NAMES)).eval()
    features, _ = images()
    parts = torch.stack(model.prompt_features(), dim=1).double()  # (grades, n, e)
    expected = 100 * features.double() @ F.normalize(parts.mean(0), dim=-1).T
    assert scaled(model.logits(features), expected) < 1e-5
    overlaps = torch.tensor([0.4, 0.79, 0.8, 1.0])  # the least of a grade belongs to it
    learning = method._learning(torch.zeros(4, dtype=torch.long), overlaps, NAMES)
    assert learning.tolist() == [[True, True, False, False], [False, False, True, True]]


@pytest.mark.parametrize(("done", "epochs", "window"), [(1, 20, 1), (4, 20, 2), (12, 20, 6), (19, 20, 8)])
def test_ogens_teacher_is_the_mean_of_the_last_contexts(
    open_clip: Backbone, done: int, epochs: int, window: int
) -> None:
    method = methods.OGEN(n_ctx=3, ctx_init="", neighbours=1, dropout=0.0, teacher=2.5, alone=0.0)
    model = perturb(adapt.wrap(open_clip, method, NAMES))
    features, labels = images(each=2)
    contexts = []
    for epoch in range(done):
        with torch.no_grad():
            method.ctx.add_(0.1 * torch.randn_like(method.ctx))
        contexts.append(method.ctx.detach().clone())
        method.epoch_done(epoch, epochs)
    with torch.no_grad():
        method.ctx.add_(0.3 * torch.randn_like(method.ctx))
    method._epochs = epochs
    turned = 1 + math.cos((epochs + done) / epochs * math.pi)
    assert window == min(done, math.floor(turned * (9 - 2) / 2 + 2))
    step = model.step(Encoded(features), labels)
    found = method.loss(step)["teacher"]
    answers = step.logits.double().softmax(-1)
    with torch.no_grad():
        kept = method.ctx.clone()
        method.ctx.copy_(torch.stack(contexts[-window:]).mean(0))
        taught = model.step(Encoded(features), labels).logits.double().softmax(-1)
        method.ctx.copy_(kept)
    assert float(found.detach()) == pytest.approx(2.5 * float((answers - taught).square().mean()), rel=1e-3)
    assert (answers - taught).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("alone", "epochs", "done", "joint"), [(0.5, 10, 4, False), (0.5, 10, 5, True), (0.3, 4, 1, True)]
)
def test_ogens_generator_learns_alone_for_its_share(
    open_clip: Backbone, alone: float, epochs: int, done: int, joint: bool
) -> None:
    method = methods.OGEN(n_ctx=2, ctx_init="", neighbours=1, dropout=0.0, alone=alone)
    model = adapt.wrap(open_clip, method, NAMES)
    method._epochs = epochs
    method._done.fill_(done)
    features, labels = images(each=2)
    assert ("image_class" in method.loss(model.step(Encoded(features), labels))) == joint


def test_uniqas_words_are_ordered_by_means_of_their_targets(open_clip: Backbone) -> None:
    method = methods.UniQA()
    adapt.wrap(open_clip, method, NAMES)
    labels = torch.tensor([0, 0, 1, 1, 2])
    targets = torch.tensor([1.0, 9.0, 6.0, 6.5, 5.5])  # of each word: neither extremes nor counts have its order
    method.prepare(Given(torch.zeros(5, 64), labels, values=targets))  # type: ignore[arg-type]
    assert method.score_level.tolist() == pytest.approx([1 / 3, 1.0, 2 / 3])
    assert method.config.between == (1.0, 9.0)


def test_ctp_tft_reads_by_its_template_and_keeps_the_backbones_bias(open_clip: Backbone) -> None:
    torch.manual_seed(0)
    model = perturb(adapt.wrap(open_clip, methods.CTPTFT(template="art of the {}."), NAMES)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    asked: list[Any] = []
    compute = model.frozen_class_features
    model.frozen_class_features = lambda *given: asked.append(given[0]) or compute(*given)  # type: ignore
    with torch.no_grad():
        step, other = (model.step(pixels, torch.zeros(2, dtype=torch.long)) for _ in range(2))
        other.of_classes["bias"] = 3.0
        assert scaled(other.logits, step.logits + 3) < 1e-5
    assert {tuple(each) for each in asked} == {("art of the {}.",)}


def test_what_a_nearest_mixture_of_loras_keeps(caplog: pytest.LogCaptureFixture) -> None:
    """Its factors give the change at the members' own scaling, and alpha keeps that at another rank."""
    members = [(torch.randn(2, 6), torch.randn(5, 2)) for _ in range(2)]
    mixture = Mixture(weights=(0.5, 0.5), rank=3)
    with caplog.at_level("INFO", logger="adapt"):
        [(a, b)] = lora.mixed_factors([members], 0.7, mixture)
    change = sum(0.5 * (up @ down) for down, up in members)
    u, values, v = torch.linalg.svd(change.double())
    nearest = u[:, :3] * values[:3] @ v[:3]
    assert relative(b @ a, nearest) < 1e-5
    share = 100 * float(values[:3].square().sum() / values.square().sum())
    assert caplog.messages == [f"rank 3 retains {share:.1f} % of the squared norm of the mixed weight change"]
    assert lora.scaled_alpha(2.0, 4, 9) / 9**0.5 == pytest.approx(2.0 / 4**0.5)


def test_a_contrast_is_over_both_directions_and_wrong_texts_over_one() -> None:
    logits, wrong = torch.randn(3, 3, dtype=torch.double), torch.randn(3, 2, dtype=torch.double)
    right = torch.arange(3)
    rows = -torch.cat([logits, wrong], -1).log_softmax(-1)[right, right].mean()
    columns = -logits.log_softmax(0)[right, right].mean()
    assert float(contrast(logits, wrong)) == pytest.approx(float((rows + columns) / 2), rel=1e-6)


@pytest.mark.parametrize(("right", "helps"), [(7, False), (8, True)])
def test_names_help_where_they_are_two_standard_errors_above_guessing(
    open_clip: Backbone, right: int, helps: bool
) -> None:
    """Of twelve images of three classes: above 1/3 + 2 sqrt(1/3 2/3 / 12) = 0.605, which is more than 7 of them."""
    model = adapt.wrap(open_clip, methods.NearestMean(words=None), NAMES)
    labels = torch.arange(12) % 3
    seen = torch.where(torch.arange(12) < right, labels, (labels + 1) % 3)
    grid = model.method.grid(Given(model.class_features().detach()[seen], labels, model))  # type: ignore[arg-type]
    assert grid["words"].usual == float(helps)


def test_the_patches_of_a_wide_image_keep_their_rows() -> None:
    """Four rows of eight patches: the side stream by its formula, block by block."""
    import open_clip

    torch.manual_seed(1)
    sizes = {"image_size": (32, 64), "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    text = open_clip.CLIPTextCfg(width=32, heads=2, layers=1)
    native = open_clip.model.CLIP(32, open_clip.CLIPVisionCfg(**sizes), text, quick_gelu=True).eval()
    backbone = tiny_backbones.from_open_clip(native)
    pixels, tower = torch.randn(2, 3, 32, 64), native.visual
    model = adapt.wrap(backbone, methods.AnoVL(), ("normal", "abnormal"))
    with torch.no_grad():
        found, whole = vision.local_features(model.backbone, pixels)
        x = tower.conv1(pixels).flatten(2).mT
        x = torch.cat([tower.class_embedding.expand(2, 1, -1), x], dim=1) + tower.positional_embedding
        x = beside = tower.ln_pre(x)
        for block in tower.transformer.resblocks:
            attention, normed = block.attn, block.ln_1(x)
            v = F.linear(normed, attention.in_proj_weight[128:], attention.in_proj_bias[128:])
            heads = v.unflatten(-1, (2, 32)).transpose(1, 2)
            mixed = (heads @ heads.mT / 32**0.5).softmax(-1) @ heads
            beside = beside + attention.out_proj(mixed.transpose(1, 2).flatten(2))
            x = block(x)
        expected = tower.ln_post(beside[:, 1:]) @ tower.proj
        assert scaled(found, expected.unflatten(1, (4, 8))) < 1e-5
        assert scaled(F.normalize(whole, dim=-1), F.normalize(native.encode_image(pixels), dim=-1)) < 1e-5


def test_cosines_are_scaled_and_biased_for_all_and_by_image(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, methods.ZeroShot(), NAMES)
    features, _ = images()
    step = ImageStep(model, Encoded(features))
    step.of_classes |= {"scale": 7.0, "bias": -2.5}
    classes = F.normalize(torch.randn(3, 64), dim=-1)
    expected = 7 * features.double() @ classes.double().T - 2.5
    assert scaled(step.cosine_logits(classes), expected) < 1e-6
    assert scaled(step.cosine_logits(classes.expand(len(features), 3, 64)), expected) < 1e-6
    assert scaled(step.cosine_logits(classes, features.flip(0)), expected.flip(0)) < 1e-6


@pytest.mark.parametrize("shrink", [True, False])
def test_gda_of_classes_with_unequal_numbers_of_images(open_clip: Backbone, shrink: bool) -> None:
    features, labels = images(each=4)
    method = methods.GDA(views=0, shrink=shrink)
    adapt.wrap(open_clip, method, NAMES)
    method.fit(features, labels)
    x = features.double()
    means = torch.stack([x[labels == label].mean(0) for label in range(3)])
    apart = [x[labels == label] - means[label] for label in range(3)]
    if shrink:
        centred = torch.cat(apart)
        covariance = centred.T @ centred / 10
        eye = torch.eye(64, dtype=torch.double)
        precision = 64 * torch.linalg.inv(10 * covariance + covariance.trace() * eye)
        assert relative(shrunk_precision(covariance, 11), precision) < 1e-12  # of fp64
    else:
        precision = torch.linalg.pinv(sum(each.T @ each / (len(each) - 1) for each in apart) / 3, hermitian=True)
    weight = means @ precision
    assert relative(method.weight, weight) < 1e-4
    assert relative(method.bias, -math.log(3) - (weight * means).sum(-1) / 2) < 1e-4


def test_learned_tokens_start_as_small_as_published(open_clip: Backbone) -> None:
    """From N(0, 0.02): of some thousand values, each within a tenth."""
    torch.manual_seed(0)
    starts = {
        "coop": (methods.CoOp(n_ctx=16), "ctx"),
        "classes": (methods.CoOp(n_ctx=8, class_specific=True), "ctx"),
        "vision": (methods.IVLP(n_ctx_vision=16, depth_text=2, depth_vision=2), "vision.0"),
        "deeper vision": (methods.IVLP(n_ctx_vision=16, depth_text=2, depth_vision=2), "vision.1"),
        "deeper text": (methods.IVLP(n_ctx_text=16, ctx_init="", depth_text=2, depth_vision=2), "text.1"),
        "maple": (methods.MaPLe(n_ctx=16, ctx_init="", depth=2), "compound_prompts_text.0"),
        "tcp": (methods.TCP(n_ctx=16, block=1), "ctx"),
    }
    for kind, (method, name) in starts.items():
        adapt.wrap(open_clip, method, NAMES)
        values = method.get_parameter(name)
        assert float(values.std()) == pytest.approx(0.02, rel=0.1), kind
        assert abs(float(values.mean())) < 0.002, kind


def test_a_pair_is_the_mean_of_its_image_and_its_text(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, methods.LoRA(), NAMES)
    seen, said = (F.normalize(torch.randn(4, 64), dim=-1) for _ in range(2))
    assert scaled(model.pair_features(seen, said), F.normalize(seen.double() + said, dim=-1)) < 1e-6


def test_an_image_is_the_first_of_its_views(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, methods.TPT(views=2), NAMES)
    own, views = torch.randn(3, 64), torch.randn(3, 2, 64)
    found = ImageStep(model, Encoded(own, views)).view_features
    assert torch.equal(found[:, 0], own)
    assert torch.equal(found[:, 1:], views)


def test_of_entities_of_different_sizes_each_row_counts_its_own_pairs() -> None:
    logits = torch.randn(6, 6, dtype=torch.double)
    entity = torch.tensor([0, 0, 0, 1, 1, 2])
    rows = []
    for row in range(5):  # the last has no other of its entity
        others = [column for column in range(6) if column != row]
        log_p = logits[row] - logits[row, others].logsumexp(-1)
        rows.append(-log_p[[column for column in others if entity[column] == entity[row]]].mean())
    found = supervised_contrast(logits, entity[:, None] == entity)
    assert float(found) == pytest.approx(float(torch.stack(rows).mean()))
