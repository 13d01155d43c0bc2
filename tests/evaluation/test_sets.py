"""Sets of classes: their guarantee on drawn images, by groups and by class, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.data import Split
from adapt.data.decoding.files import file_id
from adapt.evaluation import sets
from adapt.formats.adapter import read_header
from adapt.models.prediction import Answers, Query, predictions
from adapt.models.sets import Score, Sets, strangeness

LEVEL = 0.8


def drawn(count: int, draw: torch.Generator, groups: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Return probabilities of five classes, of which images are more or less, labels, and the groups of the images."""
    labels = torch.multinomial(torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]), count, replacement=True, generator=draw)
    group = torch.arange(count) * max(groups, 1) // count
    shared = torch.randn(max(groups, 1), 5, generator=draw)[group] if groups else torch.zeros(count, 5)
    hard = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0])[labels, None]
    logits = (
        3 * torch.nn.functional.one_hot(labels, 5) + hard * (torch.randn(count, 5, generator=draw) + 1.5 * shared) / 2
    )
    return logits.softmax(-1), labels, [str(number) for number in (group if groups else range(count))]


def coverage(by_class: bool, score: Score, known: int, groups: int, draws: int) -> Tensor:
    """Return the coverage over images, and that of each class, averaged over draws of calibration and test images."""
    draw, held = torch.Generator().manual_seed(0), []
    for _ in range(draws):
        probabilities, labels, own = drawn(known, draw, groups)
        found = Sets.of(probabilities, labels, own, score, by_class, "")
        probabilities, labels, _ = drawn(2000, draw, 2000 if groups else 0)
        right = found.hold(probabilities, LEVEL).gather(1, labels[:, None])[:, 0].double()
        held.append(torch.stack([right.mean(), *(right[labels == label].mean() for label in range(5))]))
    return torch.stack(held).nanmean(0)


@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
def test_the_true_class_is_in_the_set_as_often_as_promised(score: Score) -> None:
    """Of 49 images, the share is (49 + 1) * 0.8 / 50 on average, up to equal scores; rare classes have less."""
    over_all, *of_classes = coverage(False, score, 49, 0, 300).tolist()
    assert over_all == pytest.approx(0.8, abs=0.01)
    assert min(of_classes) < 0.75
    by_class = coverage(True, score, 400, 0, 100).tolist()
    assert min(by_class) > 0.79


def test_images_of_a_group_are_not_taken_for_independent_ones() -> None:
    """Of 12 groups of five images, where a group is hard or easy."""
    held, naive = [], []
    draw = torch.Generator().manual_seed(1)
    for _ in range(300):
        probabilities, labels, own = drawn(60, draw, 12)
        new, label, _ = drawn(500, draw, 500)
        for kept, groups in ((held, own), (naive, list(map(str, range(60))))):
            found = Sets.of(probabilities, labels, groups, "lac", False, "")
            kept.append(found.hold(new, LEVEL).gather(1, label[:, None]).double().mean())
    assert float(torch.stack(held).mean()) > 0.79
    assert float(torch.stack(held).mean()) > float(torch.stack(naive).mean())


def test_scores_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.double)
    assert strangeness(probabilities, "lac").tolist() == [pytest.approx([0.5, 0.8, 0.7])]
    assert strangeness(probabilities, "aps").tolist() == [pytest.approx([0.5, 1.0, 0.8])]
    assert strangeness(probabilities, "raps").tolist() == [pytest.approx([0.5, 1.02, 0.81])]
    found = Sets("lac", False, ((0.1, 0.3, 0.6, 0.75),), ((1, 1, 1, 1),), "")
    assert [found.limits(level)[0] for level in (0.2, 0.4, 0.6, 0.8, 0.81)] == [0.1, 0.3, 0.6, 0.75, torch.inf]
    twice = Sets("lac", False, ((0.1, 0.3, 0.6, 0.75),), ((2, 2, 1, 1),), "")  # three groups
    assert [twice.limits(level)[0] for level in (0.25, 0.5, 0.75, 0.76)] == [0.3, 0.6, 0.75, torch.inf]


def test_a_set_lists_its_classes_the_most_probable_first_and_may_be_empty() -> None:
    limits = Sets("lac", False, ((0.3, 0.4, 0.65, 0.9),), ((1, 1, 1, 1),), "")
    logits = torch.tensor([[0.3, 0.36, 0.34], [0.34, 0.33, 0.33], [0.1, 0.1, 0.8]]).log()
    answers = Answers(sets=limits)
    found = [each.set for each in predictions(logits, "abc", Query(sets=0.6), answers)]
    assert found == [("b",), (), ("c",)]
    assert next(predictions(logits, "abc", Query(sets=0.8), answers)).set == ("b", "c", "a")
    assert next(predictions(logits, "abc", Query(), answers)).set is None
    assert next(predictions(logits, "abc", Query(sets=0.6), answers)).plain()["set"] == ["b"]


@pytest.fixture
def model(open_clip: Backbone, tiny_split: Split) -> AdaptedModel:
    found = adapt.wrap(open_clip, methods.NearestMean(), tiny_split.class_names)
    adapt.fit(found, tiny_split.train, progress=False)
    return found


def test_sets_are_those_of_the_file_until_something_changes(
    model: AdaptedModel, open_clip: Backbone, tiny_split: Split, tmp_path: Path
) -> None:
    items = tiny_split.train + tiny_split.test  # whatever they are
    with pytest.raises(AdaptError, match="has no calibrated sets: calibrate them with `adapt sets"):
        model.predict(items, sets=0.9)
    assert read_header(model.save(tmp_path / "without.safetensors")).format == (2, 0)
    model.answers = replace(model.answers, sets=sets.calibrated(model, items))
    expected = [each.set for each in model.predict(items, sets=0.9)]
    assert any(expected)
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), open_clip)
    assert read_header(tmp_path / "a.safetensors").format == (2, 1)
    assert [each.set for each in loaded.predict(items, sets=0.9)] == expected
    found = sets.measured(loaded, items, 0.9)
    held = [item.answer in each for item, each in zip(items, expected, strict=True)]
    assert (found.coverage, found.size) == (sum(held) / 18, sum(map(len, expected)) / 18)
    assert found.coverage >= 0.9
    with pytest.raises(AdaptError, match=r"sets at 0\.99 need 99 or more calibration images .* has 18 in all"):
        loaded.predict(items, sets=0.99)
    other = loaded.blended(0.5)
    with pytest.raises(AdaptError, match="calibrated with other settings"):
        other.predict(items, sets=0.9)
    with pytest.raises(AdaptError, match="leave out together, explain and threshold"):
        loaded.predict(items, sets=0.9, threshold=0.5)
    with pytest.raises(AdaptError, match="sets is 1; expected the level of sets of classes, such as "):
        loaded.predict(items, sets=1)
    adapt.fit(loaded, tiny_split.train, progress=False)
    assert loaded.answers.sets is None


def test_images_that_were_learned_from_are_refused(model: AdaptedModel, tiny_split: Split) -> None:
    learned = {file_id(item.path) for item in tiny_split.train}
    with pytest.raises(AdaptError, match="has learned from 12 of these 18 images, such as "):
        sets.calibrated(model, tiny_split.train + tiny_split.test, learned=learned)
    assert sets.calibrated(model, tiny_split.test, learned=learned).images == 6


def test_by_class_says_which_classes_have_too_few(model: AdaptedModel, tiny_split: Split) -> None:
    found = sets.calibrated(model, tiny_split.train + tiny_split.test, by_class=True)
    assert [len(each) for each in found.scores] == [6, 6, 6]
    with pytest.raises(AdaptError, match=r"sets at 0\.9 need 9 or more calibration images .* of a class"):
        found.check(model, 0.9)
    names = model.class_names
    assert "for at least 80 % of the images of each class" in found.promise(0.8, names)
    assert f"in every set, with too few images: {names[0]}, " in found.promise(0.9, names)
    assert "for at least 90 %" in replace(found, by_class=False).promise(0.9, names)
