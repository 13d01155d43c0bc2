"""Several labels an image on backbones of images alone: every method that learns them, thresholds, sets and exports."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny_vision
import torch
from PIL import Image

import adapt
from adapt import AdaptError, VisionModel, methods, tasks
from adapt.data import Item
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.inference import Inference
from adapt.evaluation.sets import calibrated, measured
from adapt.formats.export import export, forms

NAMES = ("blue", "green", "red")
COLOURS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}
STEPS: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 8,
    "optimizer": "adam",
    "lr": 0.01,
    "augment": "none",
    "workers": 0,
}
ON_VISION: dict[str, Any] = {"towers": ["vision"]}
LEARN: dict[str, dict[str, Any]] = {
    "nearest_mean": {},
    "knn": {},
    "linear_probe": {},
    "bitfit": ON_VISION,
    "clip_svd": ON_VISION,
    "das": {"skipped": ["vision.1"], "reduction": 2, **ON_VISION},
    "finetune": {},
    "ivlp": {"n_ctx_text": 0, "n_ctx_vision": 3, "depth_vision": 2},
    "ln_tuning": ON_VISION,
    "lora": {"dropout": 0.0, **ON_VISION},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """160 grey pictures with a patch of each of their colours: any of three, all or none, 20 of each."""
    folder, drawn = tmp_path_factory.mktemp("scenes"), torch.Generator().manual_seed(1)
    made = list[Item]()
    for number, there in enumerate(product((False, True), repeat=3)):
        for copy in range(20):
            pixels = torch.randint(100, 150, (32, 32, 3), generator=drawn, dtype=torch.uint8)
            picture = Image.fromarray(pixels.numpy())
            own = tuple(name for name, has in zip(NAMES, there, strict=True) if has)
            for place, name in enumerate(own):
                top = int(torch.randint(0, 20, (), generator=drawn))
                picture.paste(COLOURS[name], (10 * place, top, 10 * place + 10, top + 12))
            picture.save(path := folder / f"{number}-{copy}.png")
            made.append(Item.of(path=str(path), labels=own))
    return made


def part(scenes: list[Item], first: int, last: int) -> tuple[Item, ...]:
    """Copies `first` to `last` of each of the eight kinds of scenes."""
    return tuple(item for number, item in enumerate(scenes) if first <= number % 20 < last)


def learned(name: str, scenes: list[Item], **settings: Any) -> tuple[VisionModel, Any]:
    torch.manual_seed(0)
    model: VisionModel = adapt.wrap(tiny_vision.backbone("dinov2"), methods.find(name)(**LEARN[name]), NAMES)
    steps: dict[str, Any] = STEPS if model.method.takes_steps else {}
    result = adapt.fit(model, part(scenes, 0, 6), part(scenes, 6, 12), progress=False, **steps, **settings)
    return model, result


def test_whoever_learns_one_label_by_steps_or_shares_learns_several() -> None:
    labels = tasks.named("labels")
    able = {
        each.name
        for each in methods.classes()
        if "vision encoder" in each.serves and each.name != "compose" and labels.learned_by(each)
    }
    assert able == {*LEARN, "abmil"}  # which learns from bags alone


@pytest.mark.parametrize("name", LEARN)
def test_each_beats_the_base_rate(scenes: list[Item], name: str) -> None:
    model, result = learned(name, scenes)
    items = part(scenes, 6, 12)
    base = float(tasks.of(items).labels(items, NAMES).double().mean())
    assert base == 0.5
    adapted, before = result.metrics["adapted"], result.metrics["zero_shot"]
    assert result.metrics["baseline"] == "nearest mean"
    assert before["mean_average_precision"] > base + 0.1
    assert adapted["mean_average_precision"] > base + 0.1
    if name != "nearest_mean":
        assert adapted["mean_average_precision"] > before["mean_average_precision"] - 0.02
    assert model.answers.several
    odds = name in ("knn", "linear_probe")  # whose logits are log-odds
    assert (model.answers.logit_bias == 0) == odds
    assert not odds or adapted["f1"] > 0.6


@pytest.mark.parametrize("name", ["knn", "linear_probe", "nearest_mean"])
def test_the_file_says_several(scenes: list[Item], tmp_path: Path, name: str) -> None:
    model, _ = learned(name, scenes)
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), tiny_vision.backbone("dinov2"))
    paths = [item.path for item in part(scenes, 6, 8)]
    assert torch.equal(loaded.probabilities(paths), model.probabilities(paths))
    half, none, every = (loaded.predict(paths, threshold=threshold) for threshold in (None, 1.0, 0.0))
    assert len({each.class_names for each in half}) > 2
    assert all(set(each.class_names or ()) == {name for name, share in each.top if share >= 0.5} for each in half)
    assert {len(each.class_names or ()) for each in every} == {3}
    assert {each.class_name for each in none} <= {"none", *(each.class_name for each in none if each.probability == 1)}


def test_the_probe_is_one_logistic_regression_a_class(scenes: list[Item]) -> None:
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    method = methods.LinearProbe(strength=10.0)
    model = adapt.wrap(tiny_vision.backbone("dinov2"), method, NAMES)
    train, told = part(scenes, 0, 6), list[Any]()
    solve = method.solve
    method.solve = lambda *given: told.append(given) or solve(*given)  # type: ignore[method-assign,func-returns-value]
    adapt.fit(model, train, progress=False)
    truth = tasks.of(train).labels(train, NAMES)
    assert len(told) == 3
    for place, (features, labels, counts) in enumerate(told):
        assert torch.equal(labels[:-2], truth[:, place].long())
        assert labels[-2:].tolist() == [0, 1]  # half an image more without the class, and half with it
        assert counts.sum() == len(train) + 1
        assert not features[-2:].any()
        solver = LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000)
        expected = solver.fit(features.numpy(), labels.numpy(), counts.numpy()).decision_function(features.numpy())
        ours = method.scores(features)[:, place].detach().double()
        torch.testing.assert_close(ours, torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["knn", "linear_probe"])
def test_a_class_of_every_image_is_no_mistake(scenes: list[Item], name: str) -> None:
    always = [item for item in scenes if "red" in item.class_names]
    torch.manual_seed(0)
    model = adapt.wrap(tiny_vision.backbone("dinov2"), methods.find(name)(), NAMES)
    adapt.fit(model, always[::4], progress=False)
    told = model.probabilities([item.path for item in scenes[:4]])
    assert told.isfinite().all()
    assert float(told[:, NAMES.index("red")].min()) > 0.9


def test_neighbours_give_the_odds_of_each_class() -> None:
    method = methods.KNN(neighbours=2, rows=4, several=True)
    model = adapt.wrap(tiny_vision.backbone("dinov2"), method, ("a", "b", "c"))
    keys = torch.eye(model.backbone.embed_dim)[:4]
    truth = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).bool()
    method.hold({"features": keys}, truth, torch.device("cpu"))
    near = keys[0] * 0.8 + keys[1] * 0.6
    odds = method.scores(near[None])[0].exp()
    assert odds[0] > 2 / 0.06
    assert float(odds[1]) == pytest.approx(1, rel=1e-3)
    assert float(1 / odds[2]) == pytest.approx(float(odds[0]))


@pytest.mark.parametrize("name", ["knn", "linear_probe", "lora"])
def test_sets_hold_every_label_of_an_image(scenes: list[Item], name: str, tmp_path: Path) -> None:
    model, _ = learned(name, scenes)
    known, new = part(scenes, 6, 13), part(scenes, 13, 20)
    sets = calibrated(model, known)
    model.answers = replace(model.answers, sets=sets)
    probabilities, truth = (
        each.answers(model, known, Inference()) if last else each.labels(known, NAMES)
        for each, last in ((tasks.of(known), True), (tasks.of(known), False))
    )
    least = torch.where(truth, probabilities, torch.ones(())).amin(1)
    assert sets.scores[0] == pytest.approx(sorted((1 - least.double()).tolist()), abs=1e-6)
    found = measured(model, new, 0.8)
    held = [set(each.set or ()) for each in model.predict([item.path for item in new], sets=0.8)]
    assert found.coverage == sum(set(i.class_names) <= own for i, own in zip(new, held, strict=True)) / len(new)
    assert found.interval.high >= 0.8
    assert found.by_class.keys() == set(NAMES)
    assert found.size < 3
    assert "the set holds every true class for at least 80 %" in sets.promise(0.8, NAMES)
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), model.backbone)
    assert loaded.answers.sets == sets
    for unfit in ({"score": "aps"}, {"by_class": True}, {"together": True}):
        with pytest.raises(AdaptError, match="predicts several labels, whose sets are by the least probable one"):
            calibrated(model, known, **unfit)
    one = [Item.of(path=item.path, label="red") for item in known]
    with pytest.raises(AdaptError, match="one class per image, or both with several"):
        calibrated(model, one)


def test_the_page_has_the_probability_of_each(
    scenes: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "read_runtime", lambda folder: forms.Runtime(b"", b"", "1"))
    model, _ = learned("knn", scenes)
    model.answers = replace(model.answers, sets=calibrated(model, part(scenes, 6, 13)))
    page = (export(model, tmp_path / "page", "html", runtime=tmp_path) / "index.html").read_text()
    assert '"probabilities": "sigmoid"' in page
    assert '"score": "every"' in page
    assert "the set holds every true class" in page


def test_a_temperature_is_chosen_by_folds(scenes: list[Item]) -> None:
    model, result = learned("knn", scenes, calibrate=True)
    assert result.metrics["calibration"]["images"] == 48
    assert model.answers.temperature == result.metrics["calibration"]["temperature"] != 1


def test_settings_are_those_under_which_the_labels_are_likeliest(scenes: list[Item]) -> None:
    """Validation images, too, choose by likelihood: the most decisions right may be those of never saying a class."""
    model, result = learned("linear_probe", scenes, val_set=part(scenes, 12, 16))
    chosen = result.metrics["chosen"]
    assert chosen["how"] == "on 32 validation images"
    assert 0.5 < chosen["accuracy"] <= 1
    scores = evaluate(model, part(scenes, 12, 16))
    decided = (scores.probabilities >= 0.5) == scores.truth  # type: ignore[attr-defined]
    assert float(decided.double().mean()) == pytest.approx(chosen["accuracy"], abs=1e-6)
