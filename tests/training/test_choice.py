"""Settings that are left to the data: chosen on validation images as published, or by cross-validation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import adapt
from adapt import fit
from adapt.methods.base import Choice
from adapt.recipe import read_recipe
from adapt.training import choice as module
from adapt.training.choice import _log_probabilities, _nearest_to_usual, _shares, _weights
from adapt.training.fitting import FOLDS
from adapt.training.plan import TrainingPlan
from adapt.training.run_recipe import with_validation


@pytest.fixture
def probe(open_clip: adapt.Backbone, tiny_split: adapt.data.Split) -> Any:
    def made(name: str, **config: Any) -> adapt.AdaptedModel:
        return adapt.wrap(open_clip, adapt.methods.find(name)(**config), tiny_split.class_names)

    return made


def test_each_training_image_is_held_back_once_and_then_all_are_learned(probe: Any, tiny_split: Any) -> None:
    seen: list[tuple[int, int]] = []
    gda = probe("gda", views=0)
    prepare = gda.method.prepare

    def spied(training: Any) -> None:
        seen.append((len(training.items("train")), len(training.items("val"))))
        prepare(training)

    gda.method.prepare = spied
    result = fit(gda, tiny_split.train, calibrate=False, progress=False)
    images = len(tiny_split.train)
    assert len(seen) == FOLDS + 1
    assert sum(held for _, held in seen) == images
    assert all(kept + held == images for kept, held in seen[:-1])
    assert seen[-1] == (images, 0)
    chosen = result.metrics["chosen"]
    assert chosen["how"] == f"by cross-validation over {images} training images"
    assert chosen["settings"]["alpha"] == gda.method.config.alpha
    assert chosen["among"]["alpha"] == list(adapt.methods.gda.ALPHAS)


def test_the_final_fit_is_that_of_all_images(probe: Any, tiny_split: Any) -> None:
    """The same head as that of the chosen strength, fitted directly."""
    chosen = probe("linear_probe")
    fit(chosen, tiny_split.train, progress=False)
    direct = probe("linear_probe", strength=chosen.method.config.strength)
    fit(direct, tiny_split.train, progress=False)
    assert torch.equal(chosen.method.weight, direct.method.weight)
    assert chosen.method._tolerance == adapt.methods.linear_probe.EXACT


def test_with_validation_images_the_first_of_the_most_right_is_taken(probe: Any, tiny_split: Any) -> None:
    result = fit(probe("linear_probe"), tiny_split.train, val_set=tiny_split.val, progress=False)
    right = {}
    for strength in adapt.methods.linear_probe.STRENGTHS:
        other = fit(probe("linear_probe", strength=strength), tiny_split.train, tiny_split.val, progress=False)
        right[strength] = other.accuracy
    chosen = result.metrics["chosen"]
    assert chosen["settings"] == {"strength": max(right, key=right.__getitem__)}
    assert chosen["accuracy"] == max(right.values())


def test_groups_are_held_back_whole(probe: Any, tiny_split: Any) -> None:
    """Each class's images are of two groups, so that one of five folds has some and three have none."""
    items = [replace(item, group=f"{item.answer}{place % 2}") for place, item in enumerate(tiny_split.train)]
    parts: list[tuple[set[str], set[str]]] = []
    lda = probe("lda", words=None)
    prepare = lda.method.prepare

    def spied(training: Any) -> None:
        parts.append(tuple({item.group for item in training.items(part)} for part in ("train", "val")))
        prepare(training)

    lda.method.prepare = spied
    fit(lda, items, progress=False)
    assert len(parts) > 2
    assert all(not kept & held for kept, held in parts)


def test_one_image_a_class_takes_the_usual_values(probe: Any, tiny_split: Any) -> None:
    one_each = list({item.answer: item for item in tiny_split.train}.values())
    model = probe("linear_probe", words=None)
    chosen = fit(model, one_each, progress=False).metrics["chosen"]
    assert chosen["settings"] == {"strength": 10.0, "words": 0.0}
    assert (chosen["how"], chosen["accuracy"]) == ("by default, because there are too few images to choose on", None)


def _likely(**means: float) -> dict[tuple[float], Tensor]:
    """Log-probabilities at one temperature of forty images, whose differences are noise of about 0.1."""
    noise = torch.randn(len(means), 40, generator=torch.Generator().manual_seed(1)) * 0.1
    return {
        (float(name[1:]),): (mean + noise[row] - noise[row].mean())[None]
        for row, (name, mean) in enumerate(means.items())
    }


@pytest.mark.parametrize(
    ("means", "chosen"),
    [
        ({"_1": -1.0, "_2": -1.01, "_3": -1.02}, 2.0),  # all alike: the usual one
        ({"_1": -0.5, "_2": -1.0, "_3": -1.0}, 1.0),  # surely better
        ({"_1": -1.0, "_2": -2.0, "_3": -0.99}, 3.0),  # two are alike, as far from the usual one: the likelier
    ],
)
def test_the_usual_value_unless_another_is_surely_better(means: dict[str, float], chosen: float) -> None:
    choices = {"level": Choice((1.0, 2.0, 3.0), usual=2.0)}
    assert _nearest_to_usual(_likely(**means), choices, [str(place) for place in range(40)]) == (chosen,)


def test_a_combination_is_not_judged_by_how_sure_it_is() -> None:
    """Ten times the logits are as likely at a temperature ten times as high."""
    labels = torch.arange(30) % 4
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(2)) + torch.eye(4)[labels]
    one, ten = (_log_probabilities(scale * logits, labels).mean(1).max() for scale in (1.0, 10.0))
    assert float(one) == pytest.approx(float(ten), abs=1e-5)
    expected = (logits / module.TEMPERATURES[7]).log_softmax(-1)[torch.arange(30), labels]
    assert torch.allclose(_log_probabilities(logits, labels)[7], expected, atol=1e-5)


def test_images_are_scored_in_parts_where_there_are_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = torch.randn(30, 4), torch.arange(30) % 4
    whole = _log_probabilities(logits, labels)
    monkeypatch.setattr(module, "AT_ONCE", 4 * len(module.TEMPERATURES) * 7)
    assert torch.allclose(_log_probabilities(logits, labels), whole, atol=1e-6)


def test_a_long_grid_is_thinned_for_cross_validation(probe: Any, tiny_split: Any) -> None:
    chosen = fit(probe("tip_adapter", views=0), tiny_split.train, progress=False).metrics["chosen"]
    assert (len(chosen["among"]["beta"]), len(chosen["among"]["alpha"])) == (20, 20)
    chosen = fit(probe("tip_adapter", views=0), tiny_split.train, val_set=tiny_split.val, progress=False).metrics[
        "chosen"
    ]
    assert (len(chosen["among"]["beta"]), len(chosen["among"]["alpha"])) == (200, 20)


def test_trained_keys_choose_before_the_steps_without_validation_images(probe: Any, tiny_split: Any) -> None:
    model = probe("tip_adapter", views=0, train=True)
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 4, "augment": "none"}
    result = fit(model, tiny_split.train, progress=False, **settings)
    assert "cross-validation" in result.metrics["chosen"]["how"]
    assert model.method.config.alpha == result.metrics["chosen"]["settings"]["alpha"]
    assert model.method.keys.shape[0] == len(tiny_split.train)


def test_the_end_of_the_range_is_said(
    caplog: pytest.LogCaptureFixture, probe: Any, tiny_split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = probe("gda", views=0)
    monkeypatch.setattr(type(model.method), "grid", lambda *_: {"alpha": Choice((1.0, 10.0), usual=1.0)})
    model.method.trials = _fixed
    training = module.Fitting(TrainingPlan(model, tiny_split.train, tiny_split.val, cache=False))
    with caplog.at_level("INFO", "adapt"):
        module.choose(training)
    images = len(tiny_split.val)
    assert caplog.messages == [
        f"gda: alpha 10, chosen on {images} validation images (100.0 % right)",
        "gda: the setting alpha was tried from 1 to 10, and the chosen value is at an end of this range: set "
        "method.alpha to try values outside the range",
    ]


def _fixed(
    training: Any, choices: Mapping[str, Choice], learned: bool = False
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Nothing right at 1, all right at 10."""
    labels = training.labels("val")
    right = torch.nn.functional.one_hot(labels, len(training.model.class_names)).float()
    yield from (({"alpha": alpha}, sign * right) for alpha, sign in ((1.0, -1.0), (10.0, 1.0)))


def test_the_temperature_is_chosen_by_folds_too(probe: Any, tiny_split: Any) -> None:
    """From answers to all training images by models that had not seen them, and no image is given away."""
    model = probe("lda")
    result = fit(model, tiny_split.train, tiny_split.test, progress=False)
    assert result.metrics["calibration"]["images"] == len(tiny_split.train) == result.metrics["train_images"]
    assert model.answers.temperature == result.metrics["calibration"]["temperature"]
    uncalibrated = probe("lda")
    fit(uncalibrated, tiny_split.train, calibrate=False, progress=False)
    assert uncalibrated.answers.temperature == 1
    assert torch.equal(model.method.weight, uncalibrated.method.weight)


def test_two_images_of_two_classes_take_the_usual_where_nothing_can_be_tried(probe: Any, tiny_split: Any) -> None:
    """GDA needs images that differ within a class, which a part of these may have none of."""
    few = [item for item in tiny_split.few_shot(2, 1).train if item.answer in tiny_split.class_names[:2]]
    backbone = probe("gda").backbone
    for seed in range(4):
        model = adapt.wrap(backbone, adapt.methods.GDA(views=0), tiny_split.class_names[:2])
        chosen = fit(model, few, progress=False, seed=seed).metrics["chosen"]
        assert chosen["accuracy"] is not None or chosen["settings"] == {"alpha": 10.0}


def test_a_refusal_amid_the_trials_leaves_the_settings_as_they_were(probe: Any, tiny_split: Any) -> None:
    model = probe("linear_probe")

    def refused(training: Any, choices: Any, learned: bool = False) -> Any:
        model.method.config = model.method.config.model_copy(update={"strength": 0.001})
        raise KeyboardInterrupt

    model.method.trials = refused
    with pytest.raises(KeyboardInterrupt):
        fit(model, tiny_split.train, progress=False)
    assert model.method.config.strength is None


def test_calibrating_again_gives_the_same_temperature(probe: Any, tiny_split: Any) -> None:
    model = probe("nearest_mean")
    found = [fit(model, tiny_split.train, calibrate=True, progress=False).metrics["calibration"] for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["temperature"] == pytest.approx(1.8315, rel=0.03)  # not 1, which would be found again whatever was


def test_one_image_a_class_cannot_be_calibrated_on(probe: Any, tiny_split: Any, monkeypatch: Any) -> None:
    one_each = list({item.answer: item for item in tiny_split.train}.values())
    model = probe("lda")
    monkeypatch.setattr(model.backbone, "encode_image", lambda images: pytest.fail("an image was encoded"))
    with pytest.raises(adapt.AdaptError, match="calibrate needs a class with at least two images"):
        fit(model, one_each, calibrate=True, progress=False)


def test_where_no_image_can_be_held_out_probabilities_are_said_to_be_uncalibrated(
    probe: Any, tiny_split: Any, caplog: Any
) -> None:
    """Neither with one image a class, nor where a fold's images are too few for the method."""
    one_each = list({item.answer: item for item in tiny_split.train}.values())
    assert "calibration" not in fit(probe("lda"), one_each, progress=False).metrics
    assert "the probabilities are not calibrated, which needs a class with at least two images" in caplog.text
    caplog.clear()
    gda = probe("gda", views=0)
    prepare = gda.method.prepare
    gda.method.prepare = lambda training: refuse() if len(training.items("train")) < 12 else prepare(training)
    assert "calibration" not in fit(gda, tiny_split.train, progress=False).metrics
    assert "the probabilities are not calibrated, because no image can be held out: too few" in caplog.text


def refuse() -> None:
    raise adapt.AdaptError("too few")


def test_a_method_does_not_see_the_images_that_its_temperature_is_chosen_on(probe: Any, tiny_split: Any) -> None:
    """LP++ would choose its epoch by them."""
    model, seen = probe("lp_plus_plus", views=0, epochs=5), []
    prepare = model.method.prepare
    model.method.prepare = lambda training: (seen.append(len(training.items("val"))), prepare(training))
    assert "calibration" in fit(model, tiny_split.train, progress=False).metrics
    assert set(seen) == {0}


def test_of_epochs_that_are_equally_right_the_last_is_taken(probe: Any, tiny_split: Any) -> None:
    """As the published code compares accuracies; each epoch is right about this image, or none is."""
    [image] = tiny_split.val[:1]
    result = fit(probe("lp_plus_plus", views=0, epochs=5), tiny_split.train, val_set=[image] * 2, progress=False)
    assert result.metrics["solver"] == {"epoch": 5, "val_accuracy": 1.0}


def test_a_temperature_ends_with_the_training_that_it_was_chosen_for(probe: Any, tiny_split: Any) -> None:
    model = probe("nearest_mean")
    fit(model, tiny_split.train, progress=False)
    assert model.answers.temperature != 1
    fit(model, tiny_split.train, calibrate=False, progress=False)
    assert model.answers.temperature == 1


def test_nothing_is_said_of_an_end_where_nothing_was_tried(caplog: Any, probe: Any, tiny_split: Any) -> None:
    one_each = list({item.answer: item for item in tiny_split.train}.values())
    with caplog.at_level("INFO", "adapt"):
        fit(probe("knn"), one_each, progress=False)
    assert [line for line in caplog.messages if "chosen" in line or " end" in line] == [
        "knn: neighbours 1, chosen by default, because there are too few images to choose on"
    ]


def test_images_count_by_their_class_where_that_is_asked_for() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    for weights, expected in (("balanced", [2 / 3, 2 / 3, 2 / 3, 2.0]), ("equal", [1.0] * 4)):
        assert _weights(adapt.methods.LinearProbe(class_weights=weights), labels).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("errors", "chosen"), [(0.8, 2.0), (1.2, 1.0)])
def test_two_standard_errors_are_what_the_usual_value_may_be_behind(errors: float, chosen: float) -> None:
    """Of 40 images, half of which are a tenth better and half a tenth worse than the mean."""
    apart = torch.tensor([0.1, -0.1]).repeat(20)
    behind = errors * 2 * float(apart.double().std()) / 40**0.5
    likely = {(1.0,): torch.zeros(1, 40), (2.0,): (apart - apart.mean() - behind)[None]}
    choices = {"level": Choice((1.0, 2.0), usual=2.0)}
    assert _nearest_to_usual(likely, choices, [str(place) for place in range(40)]) == (chosen,)


def test_each_combination_is_judged_at_its_own_best_temperature() -> None:
    low, high = torch.full((40,), -3.0), torch.full((40,), -1.0)
    likely = {(1.0,): torch.stack([low, high]), (2.0,): torch.stack([low + 1, low + 1])}
    choices = {"level": Choice((1.0, 2.0), usual=2.0)}
    assert _nearest_to_usual(likely, choices, [str(place) for place in range(40)]) == (1.0,)


def test_values_that_are_averaged_count_by_their_likelihoods() -> None:
    """By exp((l - best) / sqrt(n)) at each one's best temperature, by which its logits are divided."""
    groups, noise = [str(place // 4) for place in range(36)], torch.linspace(-1, 1, 36)
    means = {(0.0, 1.0): (-3.0, -1.5), (0.2, 1.0): (-1.2, -2.0), (1.0, 1.0): (-1.0, -9.0), (0.0, 2.0): (-0.99, -0.99)}
    likely: dict[tuple[float, ...], Tensor] = {
        values: torch.stack([mean + values[1] * noise for mean in own]) for values, own in means.items()
    }
    choices = {"ridge": Choice((0.0, 0.2, 1.0), usual=0.2, averaged=True), "words": Choice((1.0, 2.0), usual=1.0)}
    chosen = _nearest_to_usual(likely, choices, groups)
    assert chosen == (1.0, 1.0)  # the likeliest with the usual words, however far its ridge is from the usual one
    cold, less_cold = module.TEMPERATURES[:2].tolist()
    units, behind = 9, {0.0: (0.5, less_cold), 0.2: (0.2, cold), 1.0: (0.0, cold)}  # four images share their luck
    counts = {ridge: math.exp(-units * each / units**0.5) / by for ridge, (each, by) in behind.items()}
    found = _shares(likely, choices, groups, chosen)
    assert found == {
        (ridge, 1.0): pytest.approx(count / sum(counts.values()), abs=6e-4) for ridge, count in counts.items()
    }
    likely[(0.0, 1.0)] = likely[(0.0, 1.0)] - 5
    assert _shares(likely, choices, groups, chosen).keys() == {(0.2, 1.0), (1.0, 1.0)}  # none is below 0.0005
    plain = {name: choice._replace(averaged=False) for name, choice in choices.items()}
    assert _shares(likely, plain, groups, (0.2, 1.0)) == {(0.2, 1.0): 1.0}


def test_ridges_are_averaged_on_validation_images_and_by_folds(probe: Any, tiny_split: Any, tmp_path: Path) -> None:
    """And what is fitted anew with the recorded shares, which a file keeps, is the same classifier."""
    for val_set in ((), tiny_split.val):
        model = probe("lda", words=None)
        settings = fit(model, tiny_split.train, val_set=val_set, progress=False).metrics["chosen"]["settings"]
        assert set(settings["ridge"]) <= {0.0, 0.2, 1.0}
        assert len(settings["ridge"]) > 1
        assert sum(settings["ridge"].values()) == pytest.approx(1, abs=2e-3)
        assert isinstance(settings["words"], float)
        stored = json.loads(json.dumps(settings))
        again = probe("lda", **stored)
        assert "chosen" not in fit(again, tiny_split.train, progress=False).metrics
        assert torch.equal(again.method.weight, model.method.weight)
        loaded = adapt.load(model.save(tmp_path / "adapter.safetensors"), model.backbone)
        assert loaded.method.config == again.method.config


@pytest.mark.parametrize(("balanced", "chosen", "right"), [(False, "often", 3 / 4), (True, "both", 2 / 3)])
def test_on_validation_images_classes_count_the_same_too(balanced: bool, chosen: str, right: float) -> None:
    labels = torch.tensor([0, 0, 0, 1])
    answers = {"often": [0, 0, 0, 0], "both": [0, 1, 1, 1]}
    tried = [({"kind": kind}, torch.eye(2)[own]) for kind, own in answers.items()]
    grid: Any = SimpleNamespace(balanced=balanced, trials=lambda *_: tried)
    training: Any = SimpleNamespace(labels=lambda part: labels)
    choices = {"kind": Choice(tuple(answers), usual="often")}
    assert module._most_accurate(training, grid, choices, learned=False) == ({"kind": chosen}, pytest.approx(right))


@pytest.mark.parametrize(("name", "by_accuracy"), [("nearest_mean", False), ("knn", False), ("linear_probe", True)])
def test_validation_images_choose_by_accuracy_only_where_it_is_published(
    probe: Any, tiny_split: Any, monkeypatch: pytest.MonkeyPatch, name: str, by_accuracy: bool
) -> None:
    rules = []
    for rule in ("_most_accurate", "_likeliest"):
        original = getattr(module, rule)
        monkeypatch.setattr(module, rule, lambda *a, o=original, r=rule, **k: (rules.append(r), o(*a, **k))[1])
    result = fit(probe(name, words=None), tiny_split.train, val_set=tiny_split.val, progress=False)
    assert rules == ["_most_accurate" if by_accuracy else "_likeliest"]
    assert result.metrics["chosen"]["how"] == f"on {len(tiny_split.val)} validation images"


def test_of_a_long_list_every_so_many_are_tried_and_the_last() -> None:
    for count, expected in ((20, list(range(20))), (45, list(range(2, 45, 3))), (200, list(range(9, 200, 10)))):
        assert list(module._thinned(Choice(tuple(range(count)), usual=0)).values) == expected


@pytest.mark.parametrize(("balanced", "chosen", "right"), [(False, 0.0, 3 / 4), (True, 1.0, 2 / 3)])
def test_in_cross_validation_classes_count_the_same_too(balanced: bool, chosen: float, right: float) -> None:
    """One value always answers the frequent class; the other is right for the rare one, and for a third of the rest."""
    labels = torch.tensor([0, 0, 0, 1] * 10)
    often = torch.tensor([2.0, 0.0]).expand(40, 2)
    rarely = torch.tensor([[0.4, 0.0], [-0.4, 0.0], [-0.4, 0.0], [-2.0, 0.0]]).repeat(10, 1)
    tried = [({"kind": 0.0}, often), ({"kind": 1.0}, rarely)]
    grid: Any = SimpleNamespace(balanced=balanced, trials=lambda *_: tried)
    items = [SimpleNamespace(kept_with=str(place)) for place in range(40)]
    fold: Any = SimpleNamespace(labels=lambda part: labels, items=lambda part: items)
    choices = {"kind": Choice((0.0, 1.0), usual=0.0)}
    assert module._likeliest(grid, [fold] * 4, choices) == ({"kind": chosen}, pytest.approx(right), 160)


@pytest.mark.parametrize("method", ["task_res", "clip_adapter"])
def test_a_method_that_takes_steps_reserves_images_for_the_temperature(method: str, caplog: Any) -> None:
    """Also one whose tensors, and with them its steps, are there only once it is built."""
    recipe = read_recipe(method, ["calibrate=true", "train.epochs=1", "backbone=mini-clip"], "emoji")
    split = replace(recipe.data.load(), val=())
    assert with_validation(split, recipe).val
    assert "needs validation images to choose the temperature" in caplog.text
