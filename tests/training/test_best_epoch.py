"""The best epoch: how it is found and kept, when training ends after it, and which items are held back to find it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import tiny_fusion
import torch
from pydantic import ValidationError
from selection import by_turns
from small_trainings import SETTINGS, MakeModel, Train
from stopping import Killed, interrupt, kill, stopped_at

import adapt
from adapt import AdaptError, fit, methods
from adapt.data import Item, Split
from adapt.data.split import held_back
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.multi_label import MultiLabelScores
from adapt.evaluation.numbers import GradedScores
from adapt.evaluation.scores import Scores
from adapt.formats.adapter import read_tensors
from adapt.recipe import read_recipe
from adapt.recipe.settings import TrainSettings
from adapt.tasks.targets import Graded
from adapt.tracking import step_numbers
from adapt.training.dry_run import planned
from adapt.training.loop import Trainer
from adapt.training.run_recipe import listed_data

BEST: dict[str, Any] = {"keep": "best", "schedule": "constant"}
Script = Callable[[Callable[[int], Scores]], list[bool]]


def right(count: int) -> Scores:
    """Twenty answers, of which so many are right."""
    return Scores(("-",) * 20, ("a",) * 20, ("a",) * count + ("b",) * (20 - count), (1.0,) * 20)


def off(error: float) -> Scores:
    """Four numbers that are wrong by so much."""
    words = ("-",) * 4, ("a",) * 4, ("a",) * 4, (1.0,) * 4
    return GradedScores(*words, targets=(1.0, 2.0, 3.0, 4.0), numbers=tuple(each + error for each in (1.0, 2, 3, 4)))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """`script(scores)`: an epoch, counted from 0, has the score `scores(epoch)`; of a call, whether it trains then."""
    trainers, init, trains = list[Trainer](), Trainer.__init__, list[bool]()

    def watched(self: Trainer, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        trainers.append(self)

    def follow(scores: Callable[[int], Scores]) -> list[bool]:
        def scored(model: Any, items: Sequence[Item], **options: Any) -> Scores:
            trains.append(model.method.training)
            torch.rand(3)
            return scores(trainers[-1].position.epoch)

        monkeypatch.setattr("adapt.training.fit.evaluate", scored)
        return trains

    monkeypatch.setattr(Trainer, "__init__", watched)
    return follow


def of(*counts: int) -> Callable[[int], Scores]:
    return lambda epoch: right(counts[epoch])


UP_TO_NINE = of(5, 8, 8, 11, 9, 12, 10, 13, 15, 15, 14, 12)  # the ninth, of two equal ones the first
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "coop": ({"n_ctx": 4}, {}),
    "lora": ({"dropout": 0.5, "projections": "v"}, {"augment": "published"}),
    "clap": ({"constraint": "adaptive"}, {}),  # with tensors that only training has
}


@pytest.mark.parametrize("method", METHODS)
def test_fifty_epochs_that_end_at_twelve_leave_the_ninth(
    method: str, make_model: MakeModel, train: Train, tiny_split: Split, script: Script, tmp_path: Path
) -> None:
    config, settings = METHODS[method]
    trains = script(UP_TO_NINE)
    model, nine, twelve = (make_model(method, **config) for _ in range(3))
    settings |= {"val_set": tiny_split.val}
    result = train(model, out=tmp_path / "run", epochs=50, patience=3, **BEST | settings)
    train(nine, epochs=9, schedule="constant", **settings)
    train(twelve, epochs=12, schedule="constant", **settings)
    found, expected, last = (each.method.state_dict() | each.method.training_state() for each in (model, nine, twelve))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not all(torch.equal(found[name], tensor) for name, tensor in last.items())
    assert trains == [False] * 12
    kept = {"epoch": 9, "of": 12, "figure": "accuracy", "value": 0.75}
    assert json.loads((tmp_path / "run/metrics.json").read_text())["kept"] == kept
    assert result.metrics["steps"] == 36
    assert "\nkept       epoch 9 of 12: accuracy 0.75 on validation items\n" in str(result)
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [entry["val"] for entry in entries[2::3]] == [
        {"accuracy": count / 20} for count in (5, 8, 8, 11, 9, 12, 10, 13, 15, 15, 14, 12)
    ]
    assert not any("val" in entry for place, entry in enumerate(entries) if place % 3 < 2)
    assert step_numbers(entries[2])["train/val/accuracy"] == 0.25  # for trackers


def test_without_patience_all_epochs_are_trained(
    make_model: MakeModel, train: Train, tiny_split: Split, script: Script
) -> None:
    script(of(5, 8, 8, 7, 6))
    model, two = make_model(n_ctx=4), make_model(n_ctx=4)
    result = train(model, val_set=tiny_split.val, epochs=5, **BEST)
    train(two, epochs=2, schedule="constant")
    assert torch.equal(model.method.ctx, two.method.ctx)
    assert (result.metrics["kept"]["epoch"], result.metrics["kept"]["of"], result.metrics["steps"]) == (2, 5, 15)


def test_a_last_epoch_that_is_cut_is_scored(
    make_model: MakeModel, train: Train, tiny_split: Split, script: Any
) -> None:
    script(of(5, 6, 9))
    model, whole = make_model(n_ctx=4), make_model(n_ctx=4)
    settings = {"epochs": None, "iterations": 7, "schedule": "constant"}
    result = train(model, val_set=tiny_split.val, **BEST | settings)
    train(whole, **settings)
    assert torch.equal(model.method.ctx, whole.method.ctx)
    assert [("val" in entry) for entry in result.history] == [False, False, True, False, False, True, True]
    assert result.metrics["kept"]["epoch"] == 3


def test_the_last_epoch_is_kept_by_default_and_nothing_is_scored(
    make_model: MakeModel, train: Train, tiny_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What scoring leaves behind would show in the best epoch, where it is the last, with dropout in every step."""
    method = {"dropout": 0.5, "projections": "v"}
    settings = {"val_set": tiny_split.val, "augment": "published", "lr": 0.02}
    scored, plain = make_model("lora", **method), make_model("lora", **method)
    monkeypatch.setattr("adapt.training.fit.evaluate", lambda model, items, **options: _later(model, items, options))
    train(scored, **BEST | settings)
    monkeypatch.setattr("adapt.training.fit.evaluate", lambda *args, **options: pytest.fail("an epoch was scored"))
    result = train(plain, schedule="constant", **settings)
    for name, tensor in plain.method.state_dict().items():
        assert torch.equal(scored.method.state_dict()[name], tensor), name
    assert "kept" not in result.metrics
    assert not any("val" in entry for entry in result.history)


def _later(model: Any, items: Sequence[Item], options: Any, counts: list[int] = []) -> Scores:  # noqa: B006
    """Scores as they are measured, but better from epoch to epoch."""
    counts.append(len(counts))
    evaluate(model, items, **options)
    return right(counts[-1])


# three steps an epoch, of which the third is the best, and the sixth the last
@by_turns(
    ("step", "stop"),
    [(4, kill), (8, kill), (9, kill), (9, interrupt), (11, kill), (14, interrupt), (17, kill), (18, interrupt)],
)
def test_a_run_that_was_stopped_keeps_the_same_epoch(
    make_model: MakeModel, train: Train, tiny_split: Split, script: Script, tmp_path: Path, step: int, stop: Any
) -> None:
    script(of(8, 12, 15, 9, 15, 10))
    settings = BEST | {"epochs": 20, "patience": 3, "val_set": tiny_split.val, "checkpoint_minutes": 0}
    settings |= {"augment": "published", "optimizer": "adamw"}

    def run(name: str, **options: Any) -> None:
        train(make_model("lora", dropout=0.5, projections="v"), out=tmp_path / name, **settings | options)

    run("whole")
    with stopped_at(step, stop):
        run("cut")
    run("cut", resume=True)
    _assert_alike(tmp_path / "whole", tmp_path / "cut")


def _assert_alike(one: Path, other: Path) -> None:
    expected, found = (read_tensors(folder / "adapter.safetensors") for folder in (one, other))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    logs = [[json.loads(line) for line in (each / "log.jsonl").read_text().splitlines()] for each in (one, other)]
    assert [(entry["step"], entry.get("val")) for entry in logs[0]] == [
        (entry["step"], entry.get("val")) for entry in logs[1]
    ]
    kept = [json.loads((folder / "metrics.json").read_text())["kept"] for folder in (one, other)]
    assert kept[0] == kept[1] == {"epoch": 3, "of": 6, "figure": "accuracy", "value": 0.75}


def test_a_run_that_was_stopped_when_it_was_measured_trains_no_further(
    train: Train, tiny_split: Split, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(of(8, 12, 15, 9, 15, 10))
    settings = BEST | {"epochs": 20, "patience": 3, "val_set": tiny_split.val}
    train(out=tmp_path / "whole", **settings)

    def killed(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("adapt.training.measures.after", killed)
        with pytest.raises(Killed):
            train(out=tmp_path / "cut", **settings)
    train(out=tmp_path / "cut", resume=True, **settings)
    _assert_alike(tmp_path / "whole", tmp_path / "cut")


# figures and tasks


def numbers(items: tuple[Item, ...]) -> tuple[Item, ...]:
    return tuple(item.labelled(Graded(item.answer, place / 2)) for place, item in enumerate(items))


def test_of_errors_the_smallest_is_the_best(tiny_split: Split, script: Script, tmp_path: Path) -> None:
    errors = (4.0, 1.5, 2.0, 3.0, 1.25)
    script(lambda epoch: off(errors[epoch]))
    settings = {"progress": False} | SETTINGS | {"schedule": "constant"}
    models = []
    for changes in ({"epochs": 50, "keep": "best", "patience": 2, "val_set": numbers(tiny_split.val)}, {"epochs": 2}):
        torch.manual_seed(0)
        models.append(adapt.wrap(tiny_backbones.backbone("open_clip"), methods.UniQA(), tiny_split.class_names))
        fit(models[-1], numbers(tiny_split.train), out=tmp_path / str(len(models)), **settings | changes)
    best, two = (model.method.state_dict() for model in models)
    assert all(torch.equal(best[name], tensor) for name, tensor in two.items())
    kept = json.loads((tmp_path / "1/metrics.json").read_text())["kept"]
    assert kept == {"epoch": 2, "of": 4, "figure": "mean_absolute_error", "value": 1.5}


def several(items: tuple[Item, ...], names: tuple[str, ...]) -> tuple[Item, ...]:
    cells = [names[:1], names[:2], names[1:], ()]
    return tuple(item.labelled(Item.of(path="-", labels=cells[place % 4]).label) for place, item in enumerate(items))


def asked(items: tuple[Item, ...]) -> tuple[Item, ...]:
    return tuple(
        Item.of(path=item.path, question="what is it ?", label=tiny_fusion.ANSWERS[place % 3])
        for place, item in enumerate(items)
    )


@pytest.mark.parametrize(
    ("task", "figure"),
    [("targets", "mean_absolute_error"), ("labels", "mean_average_precision"), ("questions", "accuracy")],
)
def test_epochs_are_compared_by_the_main_score_of_any_task(task: str, figure: str, tiny_split: Split) -> None:
    torch.manual_seed(0)
    names = tiny_split.class_names
    if task == "questions":
        lora = methods.LoRA(rank=2, towers=("fusion",))
        model: Any = adapt.wrap(tiny_fusion.vilt(None), lora, tiny_fusion.ANSWERS)
        train_set, val_set = asked(tiny_split.train), asked(tiny_split.val)
    else:
        method = methods.UniQA() if task == "targets" else methods.CoOp(n_ctx=4)
        model = adapt.wrap(tiny_backbones.backbone("open_clip"), method, names)
        label = numbers if task == "targets" else lambda items: several(items, names)
        train_set, val_set = label(tiny_split.train), label(tiny_split.val)
    settings = {"progress": False} | SETTINGS | BEST | {"epochs": 5, "lr": 0.5 if task == "questions" else 0.05}
    result = fit(model, train_set, val_set=val_set, **settings)
    values = [entry["val"][figure] for entry in result.history if "val" in entry]
    best = min(values) if figure == "mean_absolute_error" else max(values)
    kept = {"epoch": 1 + values.index(best), "of": 5, "figure": figure, "value": best}
    assert result.metrics["kept"] == kept
    assert result.metrics["val"][figure] == pytest.approx(best)
    assert len(set(values)) > 1


def test_labels_of_equal_precision_are_a_tie() -> None:
    """Pseudo-values of single images, of which the score is the mean, cancel out."""
    truth = torch.tensor([[True, False], [False, True], [True, True]])
    items = [Item.of(path=str(place), labels="a|b") for place in range(3)]
    scores = MultiLabelScores.of(items, torch.tensor([[0.9, 0.3], [0.2, 0.8], [0.1, 0.7]]), truth, ["a", "b"])
    assert float(scores.merits.mean()) == pytest.approx(scores.mean_average_precision, abs=1e-12)


# what is held back


@pytest.fixture
def grouped_items() -> list[Item]:
    """Ten images of one class, twenty of another in groups of two, and a class whose images are one group."""
    cat = [Item.of(path=f"cat{number}", label="cat") for number in range(10)]
    dog = [Item.of(path=f"dog{number}", label="dog", group=f"dog {number // 2}") for number in range(20)]
    return cat + dog + [Item.of(path=f"owl{number}", label="owl", group="owl") for number in range(3)]


@pytest.mark.parametrize(("share", "counts"), [(0.3, (3, 6)), (0.25, (2, 6)), (0.05, (1, 2)), (0.99, (9, 18))])
def test_a_share_of_each_class_is_held_back(share: float, counts: tuple[int, int], grouped_items: list[Item]) -> None:
    kept, held = held_back(grouped_items, share, 1)
    assert Counter(item.answer for item in held) == dict(zip(("cat", "dog"), counts, strict=True))
    assert not {item.kept_with for item in kept} & {item.kept_with for item in held}
    assert sorted([*kept, *held], key=grouped_items.index) == grouped_items
    assert held_back(grouped_items, share, 1) == (kept, held)
    assert len({tuple(held_back(grouped_items, share, seed)[1]) for seed in range(5)}) > 1


def test_what_is_held_back_is_the_validation_part(
    make_model: MakeModel, train: Train, tiny_split: Split, tmp_path: Path
) -> None:
    model = make_model(n_ctx=4)
    result = train(model, holdout=0.25, seed=3, calibrate=True, out=tmp_path / "run", **BEST)
    kept, held = held_back(tiny_split.train, 0.25, 3)
    with (tmp_path / "run/seen_images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows if row["part"] == "val"] == [item.path for item in held]
    with (tmp_path / "run/train_images.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [item.path for item in kept]
    assert Counter(item.answer for item in held) == dict.fromkeys(tiny_split.class_names, 1)
    assert result.metrics["train_images"] == 9
    assert result.metrics["calibration"]["images"] == result.metrics["val"]["images"] == 3


def test_a_recipe_holds_back_of_what_it_samples(five_classes: Path) -> None:
    """Before it samples, it would hold back images to choose a temperature on, if the training did not."""
    words = ["train.holdout=0.25", "train.keep=best", "calibrate=true", "backbone=mini-clip", "data.shots=4"]
    recipe = read_recipe("coop", words, str(five_classes))
    listed = listed_data(recipe)
    assert (len(listed.train), len(listed.val)) == (20, 0)
    told = "\n".join(planned(recipe))
    assert "data       15 training, 5 validation, 20 test images" in told
    assert "on 15 images each" in told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": "best"}, "train.keep is best, but no labelled validation items tell which"),
        ({"holdout": 0.25, "val": True}, "train.holdout is 0.25, but there are validation items: leave out train.hold"),
        ({"holdout": 0.25, "few": True}, "train.holdout needs a class with at least two images"),
        ({"patience": 3, "val": True}, "patience ends training some epochs after the best, but keep is last: set keep"),
        ({"keep": "best", "val": True, "average": {"swa": {}}}, "average joins epochs, of which keep: best keeps one"),
        ({"keep": "best", "val": True, "patience": 0}, "patience"),
        ({"holdout": 1.0}, "holdout"),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_is_trained(
    settings: dict[str, Any], message: str, make_model: MakeModel, tiny_split: Split
) -> None:
    model = make_model(n_ctx=4)
    model.method.prepare = lambda training: pytest.fail("it began")
    val_set = tiny_split.val if settings.pop("val", False) else ()
    train_set = tiny_split.train[::4] if settings.pop("few", False) else tiny_split.train
    with pytest.raises(AdaptError, match=message):
        fit(model, train_set, val_set=val_set, **{"progress": False} | SETTINGS | settings)


def test_epochs_cannot_be_compared_without_labels(tiny_split: Split) -> None:
    images = [Item.of(path=item.path) for item in tiny_split.train]
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.Locality(rank=2, decoder_width=12), ())
    with pytest.raises(AdaptError, match="no labelled validation items"):
        fit(model, images, holdout=0.25, **{"progress": False} | SETTINGS | BEST)


def test_a_method_without_steps_has_no_epochs(make_model: MakeModel, tiny_split: Split) -> None:
    with pytest.raises(AdaptError, match="gda is not trained by gradient steps: leave out holdout, keep"):
        fit(make_model("gda"), tiny_split.train, keep="best", holdout=0.25)


def test_a_stage_of_a_method_keeps_its_last_epoch(make_model: MakeModel, training_of: Any, tiny_split: Split) -> None:
    ends = []
    for settings in ({"keep": "best", "patience": 1}, {}):
        torch.manual_seed(0)
        model = make_model(n_ctx=4)
        batches: list[tuple[int, int]] = []
        training_of(model, **settings).train(
            "a stage", before=lambda *place, batches=batches: batches.append(place), epochs=4
        )
        assert batches == [(step // 3, step + 1) for step in range(12)]
        ends.append(model.method.ctx.detach())
    assert torch.equal(*ends)


def test_the_curve_shows_the_scores_and_the_kept_epoch(train: Train, tiny_split: Split, script: Script) -> None:
    pytest.importorskip("matplotlib")
    script(of(5, 12, 10))
    _, axes = train(val_set=tiny_split.val, **BEST).plot().axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["validation items, accuracy"].get_xydata().tolist() == [[1, 25], [2, 60], [3, 50]]
    assert lines["epoch 2, which is kept"].get_xdata() == [2, 2]
    assert axes.get_xlabel() == "epoch"


def test_settings_are_checked_when_a_recipe_is_read() -> None:
    with pytest.raises(ValidationError, match="set keep to best"):
        TrainSettings(epochs=1, patience=2)
    assert TrainSettings(epochs=1).keep == "last"
