"""Several adapters whose probabilities are averaged: by hand, over one pass, saved, exported, and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import tiny_backbones
import tiny_vision
import torch
from checks import counted_blocks, perturb
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate
from adapt.formats import tensor_file
from adapt.formats.adapter import read_header, read_tensors
from adapt.methods import GDA, TDA, TPT, CoCoOp, CoOp, LinearProbe, LoRA, MaPLe, NearestMean, Ridge
from adapt.models.average import AverageOfAdapters
from adapt.models.prediction import Answers

NAMES = ("goldfish", "red_panda", "sea cucumber")
LATE: dict[str, Any] = {"towers": ["vision"], "rank": 2}


def made(backbone: Backbone, *methods: Any, names: Sequence[str] = NAMES) -> list[Any]:
    """Models that differ much, each from its own seed; statistics of closed forms are drawn as well."""
    models = []
    for seed, method in enumerate(methods):
        model = perturb(adapt.wrap(backbone, method, names), seed=seed, size=0.3).eval()
        noise = torch.Generator().manual_seed(seed)
        for buffer in (each for each in model.method.buffers() if each.is_floating_point()):
            buffer.add_(0.3 * torch.randn(buffer.shape, generator=noise))
        models.append(model)
    return models


def several_kinds(backbone: Backbone) -> list[Any]:
    """A closed form, prompts, LoRA in the vision tower, prompts for each image, and both towers with a blend."""
    models = made(backbone, GDA(), CoOp(n_ctx=4), LoRA(**LATE), CoCoOp(n_ctx=2, ctx_init=""), MaPLe(depth=2))
    models[0].answers = Answers(temperature=2.5)
    models[4] = models[4].blended(0.6)
    return models


def mean_of(models: Sequence[Any], images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([model.answers.probabilities(model(images)) for model in models]).mean(0)


def close(model: Any, expected: Tensor, images: Tensor) -> bool:
    with torch.no_grad():
        found = model.answers.probabilities(model(images))
    return torch.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["open_clip", "hf_clip", "hf_siglip"])
@pytest.mark.parametrize("fast", [None, False])
def test_probabilities_are_the_mean_of_the_members(
    kind: str, fast: bool | None, images: Tensor, tmp_path: Path
) -> None:
    backbone = tiny_backbones.backbone(kind)
    models = several_kinds(backbone)
    expected = mean_of(models, images)
    assert (expected - mean_of(models[:1], images)).abs().max() > 0.01
    average = adapt.average(models)
    assert close(average, expected, images)
    back = adapt.load(average.save(tmp_path / "average.safetensors"), backbone, fast=fast)
    assert close(back, expected, images)
    assert close(copy.deepcopy(back), expected, images)
    assert back.metadata["recipe"]["average"] == {"adapters": [f"model {number}" for number in range(1, 6)]}


@pytest.mark.parametrize("kind", ["timm_vit", "dinov3_convnext"])
def test_on_backbones_of_images_alone(kind: str, images: Tensor, tmp_path: Path) -> None:
    backbone = tiny_vision.backbone(kind)
    methods = [NearestMean(), LinearProbe(), *([LoRA(**LATE)] if kind == "timm_vit" else [])]
    models = made(backbone, *methods)
    average = adapt.average(models)
    expected = mean_of(models, images)
    assert close(average, expected, images)
    assert close(adapt.load(average.save(tmp_path / "average.safetensors"), backbone), expected, images)


def test_other_orders_of_classes_are_aligned(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    other = (NAMES[2], NAMES[0], NAMES[1])
    models = [
        *made(open_clip, LinearProbe(), CoOp(n_ctx=2)),
        *made(open_clip, LinearProbe(), CoOp(n_ctx=2), names=other),
    ]
    with torch.no_grad():
        aligned = [model(images).softmax(-1)[:, [model.class_names.index(name) for name in NAMES]] for model in models]
    average = adapt.average(models)
    assert average.class_names == NAMES
    assert close(average, torch.stack(aligned).mean(0), images)
    assert close(
        adapt.load(average.save(tmp_path / "average.safetensors"), open_clip), torch.stack(aligned).mean(0), images
    )


def test_other_classes_are_those_of_the_members(open_clip: Backbone, images: Tensor) -> None:
    models, others = made(open_clip, CoOp(n_ctx=2), LoRA(**LATE)), ("sky", "toy")
    average = adapt.average(models)
    expected = mean_of([model.with_classes(others) for model in models], images)
    assert close(average.with_classes(others), expected, images)
    assert close(average, mean_of(models, images), images)  # which keeps its own
    with pytest.raises(AdaptError, match="this average learned tensors for each of its 3 classes"):
        adapt.average(made(open_clip, CoOp(n_ctx=2), LinearProbe())).with_classes(others)


def test_images_of_several_classes(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    models = made(open_clip, CoOp(n_ctx=2), LoRA(**LATE))
    for model, bias in zip(models, (-20.0, -10.0), strict=True):
        model.answers = Answers(logit_bias=bias)
    expected = mean_of(models, images)
    back = adapt.load(adapt.average(models).save(tmp_path / "average.safetensors"), open_clip)
    assert back.answers.several
    assert close(back, expected, images)
    assert ((expected > 0.01) & (expected < 0.99)).any()
    blended = [each.blended(0.0)(images) - each.answers.logit_bias for each in (back, models[0])]
    torch.testing.assert_close(*blended)  # zero-shot alone
    assert back.answers.logit_bias == -15.0
    adapt.export(back, tmp_path / "onnx")  # which compares the probabilities


def by_definition(models: Sequence[Any], images: Tensor, several: bool) -> Tensor:
    """The share of members with another answer, and the entropy of the mean minus the mean of the entropies."""
    with torch.no_grad():
        each = torch.stack([model.answers.probabilities(model(images)) for model in models]).double()
    mean = each.mean(0)

    def entropy(p: Tensor) -> Tensor:
        own = -(p * p.log()).sum(-1)
        return own - ((1 - p) * (1 - p).log()).sum(-1) if several else own

    if several:
        others = (each >= 0.5).ne(mean >= 0.5).any(-1)
    else:
        others = each.argmax(-1) != mean.argmax(-1)
    return torch.stack([others.double().mean(0), entropy(mean) - entropy(each).mean(0)], -1)


@pytest.mark.parametrize("several", [False, True])
def test_disagreement_is_as_defined(several: bool, open_clip: Backbone, tiny_split: Split) -> None:
    models = made(open_clip, CoOp(n_ctx=4), LoRA(**LATE), GDA(), CoOp(n_ctx=2))
    for model in models:
        model.answers = Answers(temperature=4.0, logit_bias=-2.0 if several else None)
    paths = [item.path for item in tiny_split.train]
    pixels = next(iter(models[0].pixels_of(paths, len(paths))))
    expected = by_definition(models, pixels, several)
    found = torch.tensor([each.disagreement for each in adapt.average(models).predict(paths)], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert expected[:, 0].max() > 0
    assert 0.001 < expected[:, 1].max() < (3 if several else 1) * math.log(4)


def test_equal_members_agree(open_clip: Backbone, tiny_split: Split) -> None:
    [model] = made(open_clip, CoOp(n_ctx=4))
    path = tiny_split.train[0].path
    [own], [found] = model.predict(path), adapt.average([model, model, model]).predict(path)
    assert own.disagreement is None
    assert "disagreement" not in own.plain()
    assert found.disagreement == (0.0, pytest.approx(0.0, abs=1e-6))
    assert found.plain()["disagreement"].keys() == {"share", "nats"}
    assert found.probability == pytest.approx(own.probability, abs=1e-6)


def test_the_frozen_tower_runs_once(open_clip: Backbone, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    encode = open_clip.encode_image
    frozen = [GDA(), CoOp(n_ctx=4), LinearProbe(), CoOp(n_ctx=2)]
    average = adapt.average(made(open_clip, *frozen, LoRA(**LATE)))
    plain = copy.copy(average)
    plain.fast, plain.vision_path = False, "plain"
    plain.method._models = {}
    monkeypatch.setattr(open_clip, "encode_image", lambda pixels: (passes.append(len(pixels)), encode(pixels))[1])
    with torch.no_grad():
        plain(images)
    assert passes == [len(images)] * 2  # that of four members, and that of LoRA


def test_editing_members_share_the_blocks_before(
    open_clip: Backbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [LoRA(**LATE, blocks=(2, 3)), LoRA(**LATE, blocks=(2, 3))]
    average = adapt.average(made(open_clip, GDA(), CoOp(n_ctx=4), *late))
    blocks = counted_blocks(monkeypatch)
    with torch.no_grad():
        average(images)
    # the frozen tower once for two members, the first two blocks once for both LoRAs, and the last for each
    assert sorted(blocks) == sorted([0, 1, 2] + [0, 1] + [2, 2])


def test_it_is_evaluated_from_kept_features_too(open_clip: Backbone, tiny_split: Split) -> None:
    items = tiny_split.train
    for methods in ([GDA(), CoOp(n_ctx=4)], [GDA(), LoRA(**LATE)]):
        models = made(open_clip, *methods)
        scores, average = evaluate(adapt.average(models), items), adapt.average(models)
        predictions = average.predict([item.path for item in items])
        assert scores.confidence == pytest.approx([each.probability for each in predictions], abs=1e-5)
        assert list(scores.predicted) == [each.class_name for each in predictions]
        together = adapt.predict_many([*models, average], [item.path for item in items])
        assert [each[-1].probability for each in together] == pytest.approx(scores.confidence, abs=1e-5)


def test_items_of_several_images(open_clip: Backbone, tiny_split: Split) -> None:
    items = [[item.path for item in tiny_split.train[start : start + 3]] for start in (0, 3)]
    models = made(open_clip, GDA(), CoOp(n_ctx=4))
    found = adapt.average(models).predict_items(items, top_k=3)
    for prediction, *own in zip(found, *(model.predict_items(items, top_k=3) for model in models), strict=True):
        for name, probability in prediction.top:
            assert probability == pytest.approx(sum(dict(each.top)[name] for each in own) / 2, abs=1e-6)
        assert prediction.disagreement is not None


@pytest.mark.full
@pytest.mark.at_length
def test_an_export_answers_alike(images: Tensor, tmp_path: Path) -> None:
    models = made(tiny_backbones.small(), LinearProbe(), CoOp(n_ctx=2), LoRA(**LATE))
    models[1].answers = Answers(temperature=2.0)
    average = adapt.average(models)
    adapt.export(average, tmp_path / "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    assert torch.allclose(logits.softmax(-1), mean_of(models, images), rtol=0, atol=1e-4)


def test_what_cannot_be_averaged_is_named(open_clip: Backbone, hf_clip: Backbone) -> None:
    first, *_ = made(open_clip, CoOp(n_ctx=2))
    several = copy.copy(first)
    several.answers = Answers(logit_bias=-3.0)
    pooled = copy.copy(first)
    pooled.answers = Answers(pooling="logits")
    turned = copy.copy(first)
    turned.turn(not open_clip.preprocess.turned)
    for other, words in (
        (made(hf_clip, CoOp(n_ctx=2))[0], "model 1 and model 2 differ in backbone"),
        (
            first.with_classes(["goldfish", "sky"]),
            r"differ in classes, \['goldfish', 'red_panda', 'sea cucumber'\] and",
        ),
        (several, "differ in kind of labels, 'one an image' and 'several an image'"),
        (pooled, "differ in pooling, 'features' and 'logits': give adapters with equal pooling"),
        (turned, "differ in preprocessing"),
        (made(open_clip, Ridge())[0], "model 2 cannot be averaged with other adapters: this ridge predicts a number"),
        (made(open_clip, TPT())[0], "this tpt depends on random views, or on earlier images"),
        (made(open_clip, TDA())[0], "this tda depends on random views, or on earlier images"),
        (adapt.average([first, first]), "model 2 is an average of several adapters already: give its members"),
    ):
        with pytest.raises(AdaptError, match=words):
            adapt.average([first, other])
    with pytest.raises(AdaptError, match="model 1 is an average of several adapters already"):
        adapt.soup([adapt.average([first, first]), adapt.average([first, first])])
    for few in ([], [first], "runs/first"):
        with pytest.raises(AdaptError, match="expected a list with 2 or more adapters"):
            adapt.average(few)


def test_it_is_not_trained(open_clip: Backbone, tiny_split: Split) -> None:
    average = adapt.average(made(open_clip, CoOp(n_ctx=2), CoOp(n_ctx=2)))
    before = {name: tensor.clone() for name, tensor in average.method.state_dict().items()}
    with pytest.raises(AdaptError, match="an average of adapters is not trained: train its members"):
        adapt.fit(average, tiny_split.train, epochs=1, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.method.state_dict().items())
    assert "average" not in adapt.methods.names()


def test_items_whose_images_are_answered_by_themselves_have_a_disagreement(
    open_clip: Backbone, tiny_split: Split
) -> None:
    models = made(open_clip, GDA(), CoOp(n_ctx=4))
    for model in models:
        model.answers = replace(model.answers, pooling="logits")
    average, paths = adapt.average(models), [item.path for item in tiny_split.test]
    [alone] = average.predict(paths[:1])
    once, both = average.predict_items([paths[:1], paths[:2]])
    assert once.disagreement == pytest.approx(alone.disagreement, rel=1e-4)
    assert both.disagreement is not None
    assert both.disagreement.nats > 0
    assert both.disagreement != once.disagreement


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"order": [0, 0, 1]}, "the order of the classes of coop is not one of 3 classes"),
        ({"method": "cop"}, "unknown method 'cop'; did you mean 'coop'"),
        ({"config": {"n_ctx": 2, "no": 1}}, "unknown key 'no'"),
        ({"answers": {"temperature": -1.0}}, "temperature is -1.0; expected a positive number"),
        ({"weight": 2}, "unknown key 'members.1.weight'"),
    ],
)
def test_a_file_made_by_hand(change: dict[str, Any], words: str, open_clip: Backbone, tmp_path: Path) -> None:
    path = adapt.average(made(open_clip, CoOp(n_ctx=2), CoOp(n_ctx=2))).save(tmp_path / "average.safetensors")
    header = read_header(path).model_dump()
    header["config"]["members"][1] |= change
    metadata = {key: adapt.common.plain.dump(value) for key, value in header.items() if value is not None}
    other = tmp_path / "other.safetensors"
    tensor_file.write(read_tensors(path), other, metadata)
    with pytest.raises(AdaptError, match=words):
        adapt.load(other, open_clip)


def test_a_member_keeps_no_sets(open_clip: Backbone) -> None:
    from adapt.models.sets import Sets

    first, second = made(open_clip, CoOp(n_ctx=2), CoOp(n_ctx=2))
    sets = Sets("lac", False, ((0.5,),), ((1,),), first.settings_id)
    first.answers = replace(first.answers, sets=sets)
    average = adapt.average([first, second])
    assert isinstance(average.method, AverageOfAdapters)
    assert average.answers.sets is None
    assert average.method.config.members[0].answers.sets is None
