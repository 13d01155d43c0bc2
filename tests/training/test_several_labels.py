"""Learning from images of several classes: the loss, the bias, what an adapter of them says, and who refuses them."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_trainings import SETTINGS
from stopping import stopped_at

import adapt
from adapt import AdaptError, Backbone, methods, tasks
from adapt.data import Item, Split
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.inference import Inference
from adapt.methods.zero_shot import ZeroShot
from adapt.recipe import read_recipe
from adapt.training.run_recipe import read_data, run_recipe

LABELS = ((0,), (0, 1), (1, 2), ())
OF_ALL = {"progress": False} | SETTINGS


def of_classes(names: tuple[str, ...]) -> Any:
    return Item.of(path="-", labels=names).label


@pytest.fixture
def several(tiny_split: Split) -> Split:
    """The tiny split's images with none, one or two labels, which need not be of what is seen."""

    def part(items: tuple[Item, ...]) -> tuple[Item, ...]:
        cells = [tuple(tiny_split.class_names[label] for label in labels) for labels in LABELS]
        return tuple(item.labelled(of_classes(cell)) for item, cell in zip(items, cycle(cells)))

    return replace(tiny_split, train=part(tiny_split.train), val=part(tiny_split.val), test=part(tiny_split.test))


@pytest.fixture
def listed(several: Split, tmp_path: Path) -> Path:
    lines = [
        f"{item.path},{item.answer},{part}" for part in ("train", "val", "test") for item in getattr(several, part)
    ]
    (tmp_path / "several.csv").write_text("path,labels,split\n" + "\n".join(lines) + "\n")
    return tmp_path / "several.csv"


def of_method(backbone: Backbone, name: str, names: tuple[str, ...]) -> adapt.AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(backbone, methods.find(name)(**methods.find(name).example), names)


@pytest.mark.parametrize("name", ["coop", "lora", "clip_adapter", "kgcoop"])
def test_a_step_is_binary_cross_entropy_of_biased_logits(open_clip: Backbone, several: Split, name: str) -> None:
    model = of_method(open_clip, name, several.class_names)
    frozen = adapt.wrap(open_clip, ZeroShot("a photo of a {}."), several.class_names)
    truth = several.task.labels(several.train, several.class_names)
    seen: list[tuple[Any, float]] = []
    losses = model.losses

    def watched(step: Any, weights: Any = None) -> Any:
        terms, right = losses(step, weights)
        seen.append((step, float(terms["cross_entropy"])))
        assert right.dtype == torch.bool
        return terms, right

    model.losses = watched  # type: ignore[method-assign]
    adapt.fit(model, several.train, **OF_ALL | {"epochs": 1, "batch_size": 12, "lr": 1e-6})
    [(step, loss)] = seen
    scale = model.method.logit_scale or open_clip.logit_scale  # type: ignore[attr-defined]
    with torch.no_grad():
        items = torch.stack([model.transform()(adapt.data.open_image(item)) for item in several.train])
        logits = frozen(items) * scale / open_clip.logit_scale  # type: ignore[attr-defined]
    bias = model.answers.logit_bias
    assert bias is not None
    assert float((logits.double() + bias).sigmoid().mean()) == pytest.approx(float(truth.double().mean()), abs=1e-4)
    assert step.labels.sum() == truth.sum()
    expected = F.binary_cross_entropy_with_logits(step.logits.detach() + bias, step.labels.float())
    assert loss == pytest.approx(float(expected), abs=1e-4)


def test_rare_classes_may_weigh_more(open_clip: Backbone, several: Split) -> None:
    model = of_method(open_clip, "coop", several.class_names)
    adapt.fit(model, several.train, class_weights="balanced", **OF_ALL | {"epochs": 1})
    counts = several.task.labels(several.train, several.class_names).sum(0)
    assert model.class_loss.weights is not None
    torch.testing.assert_close(model.class_loss.weights, (12 - counts) / counts)


def test_it_learns_and_its_adapter_says_several(open_clip: Backbone, several: Split, tmp_path: Path) -> None:
    """Colours have their labels: what is trained is told again by the file."""
    cells = [several.class_names[:2]] * 4 + [several.class_names[2:]] * 4 + [()] * 4
    known = [item.labelled(of_classes(cell)) for item, cell in zip(several.train, cells, strict=True)]
    model = of_method(open_clip, "lora", several.class_names)
    before = adapt.fit(model, known, known, **OF_ALL | {"epochs": 15, "lr": 0.02, "schedule": "constant"})
    assert before.metrics["adapted"]["mean_average_precision"] == 1.0
    assert before.metrics["adapted"]["f1"] > 0.9 > before.metrics["zero_shot"]["f1"]
    assert "100.0 % mAP" in str(before)
    loaded = adapt.load(model.save(tmp_path / "adapter.safetensors"), open_clip)
    assert loaded.answers == model.answers
    first, middle, last = loaded.predict([known[place].path for place in (0, 4, 8)], top_k=1)
    assert set(first.class_names or ()) == set(several.class_names[:2])
    assert len(first.top) == 2  # as many as are said, though one was asked for
    assert (middle.class_names, middle.class_name) == ((several.class_names[2],), several.class_names[2])
    assert (last.class_names, last.class_name, last.label) == ((), "none", None)
    assert len(loaded.predict(known[8].path, threshold=0.0)[0].class_names or ()) == 3
    probabilities = loaded.probabilities([known[0].path])
    assert float(probabilities[0, :2].sum()) > 1.0  # each by itself


def test_a_run_that_goes_on_has_the_same_bias(listed: Path, model_folder: Path, tmp_path: Path) -> None:
    settings = [("backbone", str(model_folder)), ("data.shots", None), ("train.augment", "none"), ("train.workers", 0)]
    settings += [("train.epochs", 2), ("train.batch_size", 4), ("data.root", "/")]
    recipe = read_recipe("two_stage", [*settings, ("train.iterations", None)], str(listed))
    whole = run_recipe(recipe, tmp_path / "whole", progress=False)
    with stopped_at(4):
        run_recipe(recipe, tmp_path / "run", progress=False)
    resumed = run_recipe(recipe, tmp_path / "run", resume=True, progress=False)
    assert whole.adapter is not None
    assert resumed.adapter is not None
    one, other = adapt.load(whole.adapter), adapt.load(resumed.adapter)
    assert one.answers == other.answers
    for name, value in one.method.state_dict().items():
        assert torch.equal(value, other.method.state_dict()[name])


REFUSING = (
    "clap", "detpro", "gda", "lda", "lp_plus_plus", "modx", "ogen", "prograd", "proker", "rehark",
    "ss_text", "tip_adapter",
)  # fmt: skip


@pytest.mark.parametrize("name", REFUSING)
def test_who_learns_from_one_class_refuses(open_clip: Backbone, several: Split, listed: Path, name: str) -> None:
    others = "or use one of the methods abmil, bitfit, "
    refused = rf"images with several classes each, or none, but {name} learns classes.*, {others}"
    with pytest.raises(AdaptError, match=refused):
        read_data(read_recipe(name, [("data.root", "/")], str(listed)))
    model = of_method(open_clip, name, several.class_names)
    with pytest.raises(AdaptError, match=refused):
        adapt.fit(model, several.train, **OF_ALL if model.method.takes_steps else {"progress": False})


def test_test_images_without_any_class_are_refused_before_training(open_clip: Backbone, several: Split) -> None:
    model = of_method(open_clip, "coop", several.class_names)
    without = [item.labelled(of_classes(())) for item in several.test]
    with pytest.raises(AdaptError, match=f"none of the {len(without)} images to measure on has a class"):
        adapt.fit(model, several.train, without, **OF_ALL)


def test_both_kinds_are_told_apart(open_clip: Backbone, several: Split, tiny_split: Split) -> None:
    model = of_method(open_clip, "coop", several.class_names)
    with pytest.raises(AdaptError, match="several classes per image, but this coop predicts one class per image"):
        evaluate(model, several.test)
    adapt.fit(model, several.train, **OF_ALL | {"epochs": 1})
    with pytest.raises(AdaptError, match="trained for several classes per image, but the data has one"):
        evaluate(model, tiny_split.test)
    adapt.fit(model, tiny_split.train, **OF_ALL | {"epochs": 1})  # and learns anew from one class each
    assert model.answers.logit_bias is None
    tiny_split.task.fit_answers(model, tiny_split.train, Inference())
    assert model.answers.logit_bias is None


def test_a_composition_is_as_its_parts() -> None:
    labels = tasks.named("labels")
    assert labels.learned_by(methods.Compose([methods.LoRA(), methods.CoOp(n_ctx=2)]))
    assert not labels.learned_by(methods.Compose([methods.LoRA(), methods.DetPro(n_ctx=2)]))


@pytest.mark.full
def test_a_temperature_lowers_the_binary_cross_entropy_and_changes_no_decision(tmp_path: Path) -> None:
    """Text residuals that learn their scenes by heart are too sure of others; the adapter keeps the temperature."""
    scenes = adapt.data.load("emoji-labels")
    model = adapt.wrap(adapt.load_backbone("mini-clip"), methods.find("task_res")(alpha=1.0), scenes.class_names)
    long = {"epochs": 40, "batch_size": 32, "optimizer": "adam", "lr": 0.02, "augment": "none", "workers": 0}
    out = tmp_path / "run"
    with pytest.raises(AdaptError, match="calibrate needs validation images"):
        adapt.fit(model, scenes.train[:150], progress=False, calibrate=True, **long)
    result = adapt.fit(
        model, scenes.train[:150], scenes.test, val_set=scenes.val, out=out, progress=False, calibrate=True, **long
    )
    calibration, figures = result.metrics["calibration"], result.metrics["adapted"]
    assert adapt.load(out).answers.temperature == model.answers.temperature == calibration["temperature"] > 1.2
    assert calibration["images"] == len(scenes.val)
    truth, after = tasks.of(scenes.test).labels(scenes.test, scenes.class_names), logits_of(model, scenes.test)
    model.answers = replace(model.answers, temperature=1.0)
    before, plain = logits_of(model, scenes.test), evaluate(model, scenes.test).figures()
    assert torch.allclose(after, before / calibration["temperature"], atol=1e-4)
    entropies = [float(F.binary_cross_entropy_with_logits(each, truth.double())) for each in (before, after)]
    assert entropies[1] < 0.9 * entropies[0]
    assert torch.equal(after >= 0, before >= 0)
    assert figures["calibration_error"] < 0.8 * calibration["error_before"]
    assert calibration["error_before"] == pytest.approx(plain["calibration_error"])
    for name in ("mean_average_precision", "f1", "accuracy"):
        assert figures[name] == pytest.approx(plain[name])
    assert f"calibration error {100 * calibration['error_before']:.1f} → " in str(result)


def logits_of(model: adapt.AdaptedModel, items: tuple[Item, ...]) -> torch.Tensor:
    return Inference().all_logits(model, items).double()


def test_zero_shot_is_calibrated_by_folds(several: Split) -> None:
    """Only where it is asked for, unlike that of one class an image."""
    model = adapt.wrap(adapt.load_backbone("mini-clip"), ZeroShot(), several.class_names)
    assert "calibration" not in adapt.fit(model, several.train, progress=False).metrics
    assert model.answers.temperature == 1
    found = adapt.fit(model, several.train, progress=False, calibrate=True).metrics["calibration"]
    assert found["temperature"] == model.answers.temperature != 1
