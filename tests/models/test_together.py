"""Answers about a set of images: what they depend on, what is refused, and where their figures stand."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, methods
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate
from adapt.methods.base import transduction
from adapt.methods.base.transduction import Neighbours
from adapt.models.answer import can_answer_together, logits_together
from adapt.training.plan import check_learned

NAMES = ("goldfish", "red_panda", "sea cucumber")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


def clusters(per_class: int = 16, classes: int = 4, width: int = 256, seed: int = 0) -> tuple[Any, Tensor]:
    """A set of images around directions that their classes' texts miss by much, and the images' labels."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=draw)
    labels = torch.arange(classes).repeat_interleave(per_class)
    features = F.normalize(centres[labels] + 2.0 * torch.randn(len(labels), width, generator=draw), dim=-1)
    texts = F.normalize(centres + 4.0 * torch.randn(classes, width, generator=draw), dim=-1)
    return a_set(features, texts), labels


def a_set(features: Tensor, texts: Tensor) -> Any:
    return SimpleNamespace(features=features, class_features=texts, logits=10 * features @ texts.T)


@pytest.mark.parametrize("name", ["stata", "transclip"])
def test_images_that_are_near_help_each_other(name: str) -> None:
    method: Any = methods.find(name)()
    step, labels = clusters()
    alone, together = ((each.argmax(-1) == labels).float().mean() for each in (step.logits, method.infer_set(step)))
    assert alone < 0.82
    assert together > 0.95


@pytest.mark.parametrize("name", ["stata", "transclip"])
def test_order_does_not_matter_and_company_does(name: str) -> None:
    method: Any = methods.find(name)()
    step, _ = clusters()
    answers = method.infer_set(step)
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(1))
    shuffled = method.infer_set(a_set(step.features[order], step.class_features))
    assert torch.allclose(shuffled, answers[order], atol=1e-4)
    assert torch.allclose(answers.exp().sum(-1), torch.ones(len(answers)))
    without = method.infer_set(a_set(step.features[4:], step.class_features))
    assert not torch.allclose(without.exp(), answers[4:].exp(), atol=1e-3)


def test_without_neighbours_a_first_round_is_prior_times_density() -> None:
    step, _ = clusters()
    first, *_ = methods.StatA(neighbour_weight=0.0).rounds(step)
    texts, prior = step.class_features, step.logits.softmax(-1)
    apart = (step.features[:, None] - texts).square()  # (n, c, e)
    variance = (prior[..., None] * apart).sum((0, 1)) / len(prior)
    density = -(apart / variance).sum(-1) / 2 - variance.log().sum() / 2
    expected = prior * (density / 50).exp()
    assert torch.allclose(first.answers.exp(), expected / expected.sum(-1, keepdim=True), atol=1e-5)


def test_a_class_that_is_held_to_its_text_without_end_stays_there() -> None:
    step, _ = clusters()
    held = list(methods.StatA(alpha=1e30).rounds(step))
    for each in held:
        assert torch.allclose(each.classes.mean, step.class_features, atol=1e-6)
        assert torch.allclose(each.classes.variance, held[0].classes.variance, atol=1e-6)


@pytest.mark.parametrize("name", ["stata", "transclip"])
def test_a_class_without_images_stays_finite(name: str) -> None:
    method: Any = methods.find(name)()
    step, _ = clusters()
    step.logits[:, 0] = -1e4  # whose probability is 0 in fp32
    answers = method.infer_set(step)
    assert answers[:, 1:].isfinite().all()
    assert answers.exp()[:, 0].eq(0).all()


def test_cosines_in_pieces_give_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters()[0].features
    whole = Neighbours.of(features, 3)
    monkeypatch.setattr(transduction, "ROWS", 5)
    pieces = Neighbours.of(features, 3)
    assert torch.equal(whole.places, pieces.places)
    assert not (whole.places == torch.arange(len(features))[:, None]).any()  # nothing is its own neighbour
    dense = torch.zeros(2 * (len(features),)).scatter(1, whole.places, whole.cosines)
    values = torch.rand(len(features), 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(whole.sums(values), (dense + dense.T) @ values, atol=1e-5)


@pytest.fixture
def model(open_clip) -> AdaptedModel:
    return adapt.wrap(open_clip, methods.StatA(neighbours=2), NAMES).eval()


def test_a_model_answers_paths_items_and_features_alike(model: AdaptedModel, tiny_split: Split) -> None:
    model = model.with_classes(tiny_split.class_names)
    paths = [item.path for item in tiny_split.test]
    predicted = model.predict_together(paths, batch_size=4, features=True)
    scores = evaluate(model, tiny_split.test, workers=0, together=True)
    decoded = evaluate(model, tiny_split.test, workers=0, cache=False, together=True)
    assert [each.class_name for each in predicted] == list(scores.predicted) == list(decoded.predicted)
    assert [each.probability for each in predicted] == pytest.approx(scores.confidence, abs=1e-4)
    features = torch.stack([each.features for each in predicted if each.features is not None])
    assert torch.allclose(logits_together(model, features).max(-1).values.exp(), torch.tensor(scores.confidence))
    alone = model.predict(paths)
    zero_shot = adapt.wrap(model.backbone, methods.ZeroShot(), tiny_split.class_names).predict(paths)
    assert [each.top for each in alone] == [each.top for each in zero_shot]
    assert [each.probability for each in alone] != [each.probability for each in predicted]


def test_sets_of_a_stream_do_not_know_each_other(model: AdaptedModel, images: Tensor) -> None:
    features = model.backbone_features(torch.cat([images, images.flip(-1)]))[:8]
    halves = torch.cat([logits_together(model, half) for half in features.chunk(2)])
    assert torch.equal(logits_together(model, features, at_a_time=5), halves)  # two sets of four, not of five and three
    assert not torch.allclose(logits_together(model, features), halves, atol=1e-4)


@pytest.mark.parametrize(("name", "smallest"), [("stata", 4), ("transclip", 8)])
def test_no_set_of_a_stream_is_too_small(open_clip, name: str, smallest: int) -> None:
    model = adapt.wrap(open_clip, methods.find(name)(), NAMES)
    draw = torch.Generator().manual_seed(0)
    for count in range(smallest, 3 * smallest):
        features = F.normalize(torch.randn(count, open_clip.embed_dim, generator=draw), dim=-1)
        logits = logits_together(model, features, at_a_time=smallest)
        assert logits.isfinite().all(), count
        assert len(logits) == count


@pytest.mark.parametrize("name", ["stata", "transclip"])
def test_equal_images_get_finite_answers(name: str) -> None:
    method: Any = methods.find(name)()
    step, _ = clusters()
    answers = method.infer_set(a_set(step.features[:1].repeat(20, 1), step.class_features))
    assert torch.allclose(answers.exp().sum(-1), torch.ones(20))


@pytest.mark.parametrize("name", ["stata", "transclip"])
def test_images_with_several_classes_are_refused(name: str) -> None:
    several = adapt.data.load("emoji-labels")
    with pytest.raises(AdaptError, match=f"{name} learns classes"):
        check_learned(methods.find(name)(), several.task, several.name)


def test_a_temperature_of_single_images_is_left_out(open_clip, images: Tensor) -> None:
    model = adapt.wrap(open_clip, methods.StatA(neighbours=2), NAMES)
    features = model.backbone_features(images)
    before = logits_together(model, features)
    model.answers = replace(model.answers, temperature=2.0)
    assert torch.equal(logits_together(model, features), before)


def test_sets_of_items_are_pooled_as_each_item_is(open_clip, tiny_split: Split) -> None:
    items = [replace(a, paths=(*a.paths, *b.paths)) for a, b in zip(tiny_split.train, tiny_split.val * 2, strict=True)]
    parts = [{"name": "abmil", "hidden": 4}, {"name": "stata", "neighbours": 2}]
    model = adapt.wrap(open_clip, methods.Compose(parts), tiny_split.class_names).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.copy_(5 * torch.randn(parameter.shape, generator=draw))
    cached, decoded = (evaluate(model, items, workers=0, cache=cache, together=True) for cache in (True, False))
    assert cached.confidence == pytest.approx(decoded.confidence, abs=1e-4)
    plain = adapt.wrap(open_clip, methods.StatA(neighbours=2), tiny_split.class_names)
    assert cached.confidence != pytest.approx(evaluate(plain, items, workers=0, together=True).confidence, abs=1e-3)
    model.answers = replace(model.answers, pooling="logits")
    assert not can_answer_together(model, items)
    with pytest.raises(AdaptError, match="answers together pool the features of an item's images"):
        evaluate(model, items, workers=0, together=True)


def test_a_composition_answers_sets_by_the_features_of_its_other_part(open_clip, images: Tensor) -> None:
    lora = {"name": "lora", "dropout": 0.0}
    parts = methods.Compose([lora, {"name": "stata", "neighbours": 2}])
    composed = adapt.wrap(open_clip, parts, NAMES).eval()
    alone = adapt.wrap(open_clip, methods.LoRA(dropout=0.0), NAMES).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one, other in zip(composed.method.parameters(), alone.method.parameters(), strict=True):
            one.copy_(0.3 * torch.randn(one.shape, generator=draw))
            other.copy_(one)
    assert torch.allclose(composed(images), alone(images), atol=1e-4)
    features = alone.image_features(images)
    assert not torch.allclose(features, alone.backbone_features(images), atol=1e-2)
    step = SimpleNamespace(features=features, class_features=alone.class_features(), logits=alone(images))
    expected = methods.StatA(neighbours=2).infer_set(step)  # type: ignore[arg-type]
    pictures = [(255 * image).to(torch.uint8) for image in images.clamp(0, 1)]
    assert len(composed.predict_together(pictures)) == len(images)
    assert torch.allclose(logits_together(composed, features), expected, atol=1e-4)


def test_methods_of_single_images_refuse_sets(open_clip, images: Tensor) -> None:
    single = adapt.wrap(open_clip, methods.ZeroShot(), NAMES)
    with pytest.raises(AdaptError, match="zero_shot answers each image by itself: use a method such as stata"):
        single.predict_together(list(images))
    composed = {"methods": [{"name": "cocoop", "n_ctx": 4}, {"name": "stata"}]}
    with pytest.raises(AdaptError, match="stata needs classes that are the same for all images"):
        methods.find("compose")(**composed)


def test_small_sets_and_blends_are_refused(model: AdaptedModel, images: Tensor) -> None:
    features = model.backbone_features(images)
    with pytest.raises(AdaptError, match="there are 2 images, but stata answers 3 or more images together"):
        logits_together(model, features[:2])
    with pytest.raises(AdaptError, match="there are 0 images"):
        model.predict_together([])
    with pytest.raises(AdaptError, match="at_a_time is 2; stata needs 3 or more images"):
        logits_together(model, features, at_a_time=2)
    with pytest.raises(AdaptError, match="leave the blend out"):
        model.blended(0.5).predict_together(list(images))


def test_transclip_doubts_small_sets_and_absent_classes() -> None:
    method = methods.TransCLIP(surest=4)
    step, _ = clusters(per_class=4)
    assert method.doubt(step) == ""
    few, _ = clusters(per_class=3)
    assert method.doubt(few) == "12 images are few for 4 classes, of which each starts at 4 images"
    step.logits = torch.tensor([[9.0, 0, 0, 0]]).repeat(16, 1)
    assert method.doubt(step) == "about 1 of 4 classes appear in the images, but each is expected to"


def test_a_doubt_is_said_once(
    open_clip, images: Tensor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubts = iter(["", "a later doubt", "a later doubt"])
    model = adapt.wrap(open_clip, methods.TransCLIP(surest=3, neighbours=2), NAMES)
    features = model.backbone_features(images).repeat(2, 1)
    with caplog.at_level(logging.WARNING, logger="adapt"):
        logits_together(model, features, at_a_time=4)
        monkeypatch.setattr(methods.TransCLIP, "doubt", lambda self, step: next(doubts))
        logits_together(model, features, at_a_time=4)
    [said, later] = [record.getMessage() for record in caplog.records]
    assert said.startswith("transclip: 4 images are few for 3 classes")
    assert later.startswith("transclip: a later doubt: ")
