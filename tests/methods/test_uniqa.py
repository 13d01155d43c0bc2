"""Numbers from words: how words are ordered, which range targets have, and what is measured and said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch

import adapt
from adapt import AdaptedModel, AdaptError, fit, methods
from adapt.data import Item, Split, load
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.numbers import GradedScores
from adapt.tasks.targets import Graded

STEPS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "warmup_epochs": 0, "augment": "none", "workers": 0}
STEPS |= {"optimizer": "adam", "lr": 0.01, "progress": False}
NUMBERS = {"goldfish": 30.0, "red_panda": 10.0, "sea cucumber": 20.0}  # whose order is not that of the names


def made(**config: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(tiny_backbones.backbone("open_clip"), methods.UniQA(**config), tuple(NUMBERS))


def graded(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Targets near the number of the class, each a little above the one before."""
    return tuple(
        item.labelled(Graded(item.answer, NUMBERS[item.answer] + place / 10)) for place, item in enumerate(items)
    )


@pytest.fixture
def numbers(tiny_split: Split) -> Split:
    parts = {part: graded(getattr(tiny_split, part)) for part in ("train", "val", "test")}
    return replace(tiny_split, **parts)


def test_words_start_in_the_order_of_their_targets(numbers: Split) -> None:
    model = made()
    fit(model, numbers.train, **STEPS | {"lr": 1e-9})
    assert model.method.score_level.tolist() == pytest.approx([1.0, 1 / 3, 2 / 3])
    targets = [item.label.value for item in numbers.train]
    assert model.method.config.between == (min(targets), max(targets))


@pytest.mark.full
def test_it_learns_saves_and_says_numbers(numbers: Split, tmp_path: Path) -> None:
    model = made()
    first = fit(model, numbers.train, numbers.test, out=tmp_path / "run", **STEPS | {"epochs": 30})
    assert first.history[-1]["loss"] < 0.5 * first.history[0]["loss"]
    figures = first.metrics["adapted"]
    scores = evaluate(adapt.load(tmp_path / "run", model.backbone), numbers.test)
    assert isinstance(scores, GradedScores)
    assert scores.targets == tuple(item.label.value for item in numbers.test)
    wrong = [abs(number - right) for number, right in zip(scores.numbers, scores.targets, strict=True)]
    assert figures["mean_absolute_error"] == pytest.approx(sum(wrong) / len(wrong), abs=1e-4)
    assert "Spearman" in str(first)
    numbers = [each.number for each in model.predict([item.path for item in numbers.test])]
    assert numbers == pytest.approx(scores.numbers, abs=1e-3)


def test_the_cache_and_fresh_images_give_the_same_targets(numbers: Split) -> None:
    losses = [fit(made(), numbers.train, cache=cache, **STEPS).history[0]["loss"] for cache in (True, False)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_data_without_numbers_are_refused_before_work(tiny_split: Split, numbers: Split) -> None:
    with pytest.raises(
        AdaptError,
        match="contains images with one class each, but uniqa learns targets: give a list ",
    ):
        fit(made(), tiny_split.train, **STEPS)
    alike = [replace(item, label=replace(item.label, value=1.0)) for item in numbers.train]
    with pytest.raises(AdaptError, match="all training images have the target 1; expected different targets"):
        fit(made(), alike, **STEPS)
    with pytest.raises(AdaptError, match=r"labelled for the task targets .* for the task classes .* Label all items"):
        replace(numbers, val=tiny_split.val)


def test_other_methods_learn_the_words_of_such_data(numbers: Split) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.CoOp(n_ctx=2), tuple(NUMBERS))
    result = fit(model, numbers.train, numbers.test, **STEPS)
    assert "spearman" not in result.metrics["adapted"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("numbers", "pearson", "spearman"),
    [
        ((1.0, 2.0, 2.0, 9.0), 1.0, 1.0),
        ((-1.0, -2.0, -2.0, -9.0), -1.0, -1.0),
        ((2.0, 4.0, 5.0, 30.0), 0.9988, 0.9487),
        ((1.0, 1.0, 1.0, 1.0), 0.0, 0.0),
    ],
)
def test_correlations(numbers: tuple[float, ...], pearson: float, spearman: float) -> None:
    words = ("a", "b", "c", "d")
    figures = GradedScores(words, words, words, (1.0,) * 4, targets=(1.0, 2.0, 2.0, 9.0), numbers=numbers).figures()
    assert (figures["pearson"], figures["spearman"]) == pytest.approx((pearson, spearman), abs=1e-4)


def csv(folder: Path, text: str) -> Split:
    for name in "abcde":
        (folder / f"{name}.png").touch()
    (folder / "grades.csv").write_text(text)
    return load(folder / "grades.csv")


def test_a_csv_of_numbers_alone_has_five_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "adapt"):
        split = csv(
            tmp_path, "path,target,split\na.png,0,train\nb.png,4.9,train\nc.png,10,train\nd.png,2,val\ne.png,7,test\n"
        )
    assert caplog.messages == ["words are fifths of these targets, from 0 to 10: bad, poor, fair, good, perfect"]
    assert {item.path[-5:]: (item.label.name, item.label.value) for item in split.items()} == {
        "a.png": ("bad", 0.0), "b.png": ("fair", 4.9), "c.png": ("perfect", 10.0),
        "d.png": ("poor", 2.0), "e.png": ("good", 7.0),
    }  # fmt: skip


def test_words_of_some_targets_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="1 of 3 targets have no label: give each a word, or none"):
        csv(tmp_path, "path,target,label\na.png,0,low\nb.png,4.9,\nc.png,10,high\n")


@pytest.mark.parametrize("number", ["", "much", "nan", "inf"])
def test_what_is_no_number_is_refused_by_line(tmp_path: Path, number: str) -> None:
    with pytest.raises(AdaptError, match=f"line 2: the target is {number!r}; expected a number"):
        csv(tmp_path, f"path,target\na.png,{number}\n")


def test_the_bundled_counts() -> None:
    split = load("emoji-counts")
    assert split.class_names == ("one", "two", "three", "four")
    assert [len(part) for part in (split.train, split.val, split.test)] == [450, 45, 90]
    assert all(item.label.value == split.class_names.index(item.label.name) + 1 for item in split.items())
