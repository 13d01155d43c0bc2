"""Sets of classes and intervals: their guarantee on drawn images, by groups, by class, together; what is refused."""

from __future__ import annotations

import math
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.data import Split
from adapt.data.decoding.files import file_id
from adapt.evaluation import sets
from adapt.formats.adapter import read_header, read_tensors
from adapt.models.prediction import Answers, Query, predictions
from adapt.models.sets import Calibration, Score, Sets, scores_of
from adapt.tasks.targets import Graded

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


@pytest.mark.parametrize("score", ["lac", "aps", "raps", "aps_random", "margin"])
def test_the_true_class_is_in_the_set_as_often_as_promised(score: Score) -> None:
    """Of 49 images, the share is (49 + 1) * 0.8 / 50 on average, up to equal scores; rare classes have less."""
    over_all, *of_classes = coverage(False, score, 49, 0, 300).tolist()
    assert over_all == pytest.approx(0.8, abs=0.01)
    assert min(of_classes) < 0.75
    by_class = coverage(True, score, 400, 0, 100).tolist()
    assert min(by_class) > 0.79


@pytest.mark.full
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


EQUAL, UNEQUAL = (0.2,) * 5, (0.4, 0.3, 0.15, 0.1, 0.05)


@pytest.mark.parametrize(("shares", "by_class"), [(EQUAL, False), (EQUAL, True), (UNEQUAL, False)])
def test_images_answered_together_keep_the_promise(shares: tuple[float, ...], by_class: bool) -> None:
    """Of 49 images, or by class of 250 (about 50 of each); with smaller sets where classes are equally frequent."""
    held, sizes, alone, expected = [], [], [], []
    draw = torch.Generator().manual_seed(2)
    for _ in range(100 if by_class else 300):
        count = 250 if by_class else 49
        labels = torch.multinomial(torch.tensor(shares), count + 200, replacement=True, generator=draw)
        logits = 2 * torch.nn.functional.one_hot(labels, 5) + 1.5 * torch.randn(count + 200, 5, generator=draw)
        logits = logits + torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])  # a model that prefers some classes
        known = Calibration(logits[:count], labels[:count], torch.arange(count))
        found, answers = Sets("lac", by_class, (), (), "", calibration=known).beside(logits[count:])
        inside = found.hold(answers.exp(), LEVEL)
        plain = Sets.of(logits[:count].softmax(-1), labels[:count], range(count), "lac", by_class, "")
        alone.append(plain.hold(logits[count:].softmax(-1), LEVEL).sum(1).double().mean())
        right = inside.gather(1, labels[count:, None])[:, 0].double()
        held.append(torch.stack([right.mean(), *(right[labels[count:] == label].mean() for label in range(5))]))
        sizes.append(inside.sum(1).double().mean())
        parts = (torch.bincount(labels[:count]) if by_class else torch.tensor([count])) + 1
        expected.append(((parts * LEVEL - 1e-5).ceil() / parts).mean())
    over_all, *of_classes = torch.stack(held).nanmean(0).tolist()
    assert over_all == pytest.approx(float(torch.stack(expected).mean()), abs=0.01)
    assert (float(torch.stack(sizes).mean()) < float(torch.stack(alone).mean())) == (shares == EQUAL)
    if by_class:
        assert min(of_classes) > 0.79


def test_the_true_number_is_in_the_interval_as_often_as_promised() -> None:
    """Of 49 images, with errors that are skewed and as large as the numbers, and of 12 groups that share an error."""
    draw = torch.Generator().manual_seed(3)
    for groups, images in ((49, 49), (49, 147)):
        held, widths = [], []
        for _ in range(400):
            truth = torch.randn(images + 500, generator=draw).exp().double()
            shared = torch.randn(groups, generator=draw)[torch.arange(images) * groups // images]
            errors = torch.cat([shared, torch.randn(500, generator=draw)]) + torch.randn(images + 500, generator=draw)
            numbers = truth + truth * errors.exp()
            own = [str(number * groups // images) for number in range(images)]
            found = Sets.of(numbers[:images], truth[:images], own, "residual", False, "")
            ends = torch.tensor(found.around(numbers[images:], LEVEL))
            held.append(((ends[:, 0] <= truth[images:]) & (truth[images:] <= ends[:, 1])).double().mean())
            widths.append(ends[:, 1] - ends[:, 0])
        assert float(torch.stack(held).mean()) == pytest.approx(0.8, abs=0.01)
        assert torch.stack(widths).isfinite().all()


MEANS = torch.randn(5, 4, generator=torch.Generator().manual_seed(7)).double()


def nearest_means(features: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Return the probabilities `(n, 5)` of `others` by their distances to the means of the classes."""
    means = torch.stack([features[labels == label].sum(0) / max(1, int((labels == label).sum())) for label in range(5)])
    return (-torch.cdist(others, means).square()).softmax(-1)


def crossed_coverage(folds: int, images: int, groups: int, draws: int, score: Score = "lac") -> tuple[Tensor, float]:
    """Return means over draws of training and test images, and the bound of crossed sets, at 0.9.

    Means are the coverage and the size of crossed sets, and the coverage of sets that a head of all training images has
    of these.
    """
    draw, found = torch.Generator().manual_seed(4), []
    for _ in range(draws):
        labels = torch.randint(5, (images + 500,), generator=draw)
        group = torch.cat([torch.arange(images) * groups // images, groups + torch.arange(500)])
        shared = torch.randn(groups + 500, 4, generator=draw).double()[group] * (images > groups)
        features = MEANS[labels] + 0.7 * shared + torch.randn(images + 500, 4, generator=draw).double()
        left_out = torch.randperm(groups, generator=draw)[group[:images]] % folds
        (x, new), (y, label) = features.tensor_split([images]), labels.tensor_split([images])
        heads = torch.stack([nearest_means(x[left_out != k], y[left_out != k], features) for k in range(folds)])
        own, test = heads.tensor_split([images], 1)
        held_out = own[left_out, torch.arange(images)]
        names = group[:images].tolist()
        by_folds = Sets.of(held_out, y, names, score, False, "", folds=left_out.tolist())
        inside = by_folds.hold(test, 0.9)
        naive = Sets.of(nearest_means(x, y, x), y, names, score, False, "").hold(nearest_means(x, y, new), 0.9)
        right = [each.gather(1, label[:, None]).double().mean() for each in (inside, naive)]
        found.append(torch.stack([right[0], inside.sum(1).double().mean(), right[1]]))
    return torch.stack(found).mean(0), by_folds.least(0.9)


@pytest.mark.parametrize(
    ("folds", "images", "groups", "bound"),
    [
        (4, 20, 20, 0.8 - 0.16),
        (8, 20, 20, 0.8 - 0.5),  # of unequal folds
        (20, 20, 20, 0.8),  # jackknife+
        (4, 60, 20, 0.8 - 0.25),  # groups of three images
    ],
)
def test_sets_without_images_held_back_keep_their_promise(folds: int, images: int, groups: int, bound: float) -> None:
    """A head that is calibrated on its own images does not; classes may have no image in the training of a head."""
    (coverage, size, naive), promised = crossed_coverage(folds, images, groups, 200)
    assert promised == pytest.approx(bound)
    assert promised < coverage
    assert 0.9 < coverage < 0.98
    assert size < 4.9
    assert naive < coverage - 0.05


@pytest.mark.parametrize("score", ["aps", "raps"])
def test_crossed_sets_of_other_scores(score: Score) -> None:
    (coverage, size, _), _ = crossed_coverage(4, 40, 40, 100, score)
    assert coverage > 0.9
    assert size < 4.9


def test_crossed_sets_by_hand() -> None:
    """Of five images in two folds, one of them in a group of two."""
    found = Sets("lac", False, ((0.1, 0.5), (0.2, 0.4, 0.6)), ((1, 1), (1, 2, 2)), "")
    assert (found.crossed, found.images, found.groups) == (True, 5, [2, 2])
    # strangeness by the first and by the second member: 1 and 0 groups below, 2 and 1.5, 1 and 1
    members = torch.tensor([[[0.7, 0.4, 0.6]], [[0.9, 0.5, 0.7]]])
    assert [found.hold(members, level)[0].tolist() for level in (0.2, 0.4, 0.5, 0.7, 0.75)] == [
        [False, False, False],
        [True, False, False],
        [True, False, True],
        [True, False, True],
        [True, True, True],
    ]
    assert found.least(0.9) == pytest.approx(0.8 - 2 * 1 / (4 + 2))
    found.check(0.8, "")
    with pytest.raises(AdaptError, match=r"sets at 0\.9 need 9 or more calibration groups of images, and .* has 4: "):
        found.check(0.9, "")
    with pytest.raises(
        AdaptError, match=r"sets of 2 folds of 4 images or groups of images promise nothing at 0\.6: ask for more"
    ):
        found.check(0.6, "")
    assert "at least 26.7 % (in practice some 80 %) of images of new groups like those of the 5 training images" in (
        found.promise(0.8, ())
    )


def test_the_chance_of_images_is_uniform_and_makes_sets_no_larger_than_promised() -> None:
    probabilities, labels, own = drawn(4000, torch.Generator().manual_seed(3), 0)
    chance = (scores_of(probabilities, "aps") - scores_of(probabilities, "aps_random")) / probabilities
    torch.testing.assert_close(chance, chance[:, :1].expand_as(chance), rtol=0, atol=1e-6)
    shares = torch.histc(chance[:, 0], 10, 0, 1) / len(chance)
    assert (shares - 0.1).abs().max() < 0.03
    sizes = {}
    for score in ("aps", "aps_random"):
        found = Sets.of(probabilities[:2000], labels[:2000], own[:2000], score, False, "")
        sizes[score] = float(found.hold(probabilities[2000:], LEVEL).sum(-1).double().mean())
    assert sizes["aps_random"] < sizes["aps"]


def test_scores_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.double)
    assert scores_of(probabilities, "lac").tolist() == [pytest.approx([0.5, 0.8, 0.7])]
    assert scores_of(probabilities, "aps").tolist() == [pytest.approx([0.5, 1.0, 0.8])]
    assert scores_of(probabilities, "raps").tolist() == [pytest.approx([0.5, 1.02, 0.81])]
    assert scores_of(probabilities, "margin").tolist() == [pytest.approx([0.8, 1.3, 1.2])]
    assert scores_of(probabilities, "top_k").tolist() == [[0, 2, 1]]
    chance = 1e4 * math.sin(500 + 2 * 300 + 3 * 200) % 1
    assert scores_of(probabilities, "raps_random").tolist() == [
        pytest.approx([0.5 * (1 - chance), 1.02 - 0.2 * chance, 0.81 - 0.3 * chance])
    ]
    assert scores_of(torch.ones(2, 1), "margin").tolist() == [[1], [1]]
    found = Sets("lac", False, ((0.1, 0.3, 0.6, 0.75),), ((1, 1, 1, 1),), "")
    assert [found.limits(level)[0] for level in (0.2, 0.4, 0.6, 0.8, 0.81)] == [0.1, 0.3, 0.6, 0.75, torch.inf]
    twice = Sets("lac", False, ((0.1, 0.3, 0.6, 0.75),), ((2, 2, 1, 1),), "")  # three groups
    assert [twice.limits(level)[0] for level in (0.25, 0.5, 0.75, 0.76)] == [0.3, 0.6, 0.75, torch.inf]
    numbers = Sets.of(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.5, 2.0, 5.0]), "abc", "residual", False, "")
    assert numbers.scores == ((0.0, 0.5, 2.0),)
    assert numbers.around(torch.tensor([10.0]), 0.5) == [(9.5, 10.5)]


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
    with pytest.raises(AdaptError, match=r"sets at 0\.99 need 99 or more calibration images, and the adapter has 18: "):
        loaded.predict(items, sets=0.99)
    other = loaded.blended(0.5)
    with pytest.raises(AdaptError, match="calibrated with other settings"):
        other.predict(items, sets=0.9)
    with pytest.raises(AdaptError, match="leave out threshold, explain and at_a_time, or"):
        loaded.predict(items, sets=0.9, threshold=0.5)
    with pytest.raises(AdaptError, match="sets is 1; expected the level of sets of classes, such as "):
        loaded.predict(items, sets=1)
    adapt.fit(loaded, tiny_split.train, progress=False)
    assert loaded.answers.sets is None


def test_a_folder_is_answered_together_as_its_file_says(
    model: AdaptedModel, open_clip: Backbone, tiny_split: Split, tmp_path: Path
) -> None:
    items = tiny_split.train + tiny_split.test  # whatever they are
    model.answers = replace(model.answers, sets=sets.calibrated(model, items, together=True))
    expected = model.predict_together(items, sets=0.9)
    assert sum(dict(each.top)[item.answer] for item, each in zip(items, expected, strict=True)) > 9
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), open_clip)
    assert loaded.predict_together(items, sets=0.9) == expected
    assert [each.set for each in loaded.predict_together([items[0]], sets=0.9)] != [()]
    assert loaded.predict_together([], sets=0.9) == []
    assert sets.measured(loaded, items, 0.9).size == sum(len(each.set or ()) for each in expected) / 18
    assert "answered together as one batch (not one after another)" in loaded.sets_at(0.9, together=True).promise(
        0.9, ()
    )
    with pytest.raises(
        AdaptError,
        match="calibrated for images answered together, and promise nothing for an image by itself: give --tog",
    ):
        loaded.predict(items, sets=0.9)
    with pytest.raises(AdaptError, match="leave out threshold, explain and at_a_time, or"):
        loaded.predict_together(items, sets=0.9, at_a_time=9)
    with pytest.raises(AdaptError, match="answers each image by itself"):
        loaded.predict_together(items)
    assert read_tensors(tmp_path / "a.safetensors").keys() == model.method.state_dict().keys()
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors["calibration.logits"].shape == (18, 3)
    model.answers = replace(model.answers, sets=sets.calibrated(model, items))
    with pytest.raises(
        AdaptError, match="calibrated for an image by itself, and promise nothing for images answered tog"
    ):
        model.predict_together(items, sets=0.9)


def test_a_file_without_the_logits_of_its_calibration_images_is_refused(
    model: AdaptedModel, open_clip: Backbone, tiny_split: Split, tmp_path: Path
) -> None:
    found = sets.calibrated(model, tiny_split.test, together=True)
    assert found.calibration is not None
    wrong = found.calibration._replace(labels=found.calibration.labels + 3)
    model.answers = replace(model.answers, sets=replace(found, calibration=wrong))
    with pytest.raises(AdaptError, match="lacks logits or labels of the 6 images that its sets were calibrated on"):
        adapt.load(model.save(tmp_path / "a.safetensors"), open_clip)


def test_methods_that_answer_a_set_by_themselves_are_refused_together(open_clip: Backbone, tiny_split: Split) -> None:
    model = adapt.wrap(open_clip, methods.StatA(), tiny_split.class_names)
    with pytest.raises(
        AdaptError, match="by the logits of single images, each by itself: leave together out for stata"
    ):
        sets.calibrated(model, tiny_split.test, together=True)


def test_a_number_has_its_interval(open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    items = [
        item.labelled(Graded("good" if number % 2 else "bad", float(number)))
        for number, item in enumerate(tiny_split.train + tiny_split.test)
    ]
    model = adapt.wrap(open_clip, methods.Ridge(alpha=1.0), ["bad", "good"])
    adapt.fit(model, items[:6], progress=False)
    with pytest.raises(
        AdaptError, match="ridge predicts a number, and the data has none: use data with a column target"
    ):
        sets.calibrated(model, tiny_split.test)
    with pytest.raises(AdaptError, match=r"ridge predicts a number, .* leave out score, by_class and together"):
        sets.calibrated(model, items, "aps")
    model.answers = replace(model.answers, sets=sets.calibrated(model, items[6:]))
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), open_clip)
    predicted = loaded.predict([item.path for item in items[6:]], sets=0.9)
    errors = [abs(each.number - item.label.value) for each, item in zip(predicted, items[6:], strict=True)]  # type: ignore[operator, attr-defined]
    for each in predicted:
        assert each.interval == pytest.approx((each.number - sorted(errors)[11], each.number + sorted(errors)[11]))  # type: ignore[operator]
        assert each.set is None
        assert each.plain()["interval"] == list(each.interval or ())
    found = sets.measured(loaded, items[6:], 0.9)
    assert (found.coverage, found.size) == (pytest.approx(1), pytest.approx(2 * max(errors)))
    assert found.by_class == {}
    promise = loaded.sets_at(0.9).promise(0.9, ())
    assert promise.startswith("the interval holds the true number for at least 90 % of images like the 12 calibration")
    with pytest.raises(AdaptError, match=r"sets at 0\.95 need 19 .* has 12: every number would be inside"):
        loaded.predict(items[0].path, sets=0.95)


def test_images_that_were_learned_from_are_refused(model: AdaptedModel, tiny_split: Split) -> None:
    learned = {file_id(item.path) for item in tiny_split.train}
    with pytest.raises(AdaptError, match="has learned from 12 of these 18 images, such as "):
        sets.calibrated(model, tiny_split.train + tiny_split.test, learned=learned)
    assert sets.calibrated(model, tiny_split.test, learned=learned).images == 6


def test_by_class_says_which_classes_have_too_few(model: AdaptedModel, tiny_split: Split) -> None:
    found = sets.calibrated(model, tiny_split.train + tiny_split.test, by_class=True)
    assert [len(each) for each in found.scores] == [6, 6, 6]
    with pytest.raises(AdaptError, match=r"sets at 0\.9 need 9 or more calibration images of a class, and .* has 6: "):
        found.check(0.9, model.settings_id)
    names = model.class_names
    assert "for each class, the set holds it for at least 80 % of its images like the 18 calib" in found.promise(
        0.8, names
    )
    assert f"in every set, with too few images: {names[0]}, " in found.promise(0.9, names)
    assert "for at least 90 %" in sets.calibrated(model, tiny_split.train).promise(0.9, names)


def test_images_and_items_of_several_images_are_two_kinds(model: AdaptedModel, tiny_split: Split) -> None:
    items = tiny_split.train + tiny_split.test
    bags = [replace(item, paths=(item.path, other.path)) for item, other in zip(items[::2], items[1::2], strict=True)]
    for own in (items, bags):
        model.answers = replace(model.answers, sets=sets.calibrated(model, own))
        assert sets.measured(model, own, 0.9).coverage >= 0.9
        with pytest.raises(
            AdaptError, match=r"were calibrated on (single images|items of several images), and promise"
        ):
            sets.measured(model, items if own is bags else bags, 0.9)
    with pytest.raises(AdaptError, match="were calibrated on items of several images, and promise nothing for si"):
        model.predict([item.path for item in items], sets=0.9)


def test_copies_of_a_file_are_one_image(model: AdaptedModel, tiny_split: Split, tmp_path: Path) -> None:
    [first, *_] = tiny_split.test
    copies = [replace(first, paths=(str(shutil.copy(first.path, tmp_path / f"{n}.png")),)) for n in range(12)]
    found = sets.calibrated(model, copies)
    assert (found.images, found.groups) == (12, [1])
    with pytest.raises(AdaptError, match="need 9 or more calibration groups of images, and the adapter has 1: "):
        found.check(0.9, model.settings_id)
    assert "images of new groups like those of the 12 calibration images, one from each group" in found.promise(0.4, ())


def test_images_are_known_again_in_an_archive_and_as_regions(tiny_split: Split, tmp_path: Path) -> None:
    path = tiny_split.test[0].path
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(path, "inside.png")
    expected = file_id(path)
    assert len(expected) == 32
    assert file_id(str(shutil.copy(path, tmp_path / "other.png"))) == expected
    assert file_id(f"{tmp_path}/some.zip!inside.png") == file_id(f"{path}#xywh=0,0,5,5") == expected
    assert file_id(tiny_split.test[1].path) != expected
    assert file_id(f"{tmp_path}/nothing.png") == ""


@pytest.mark.parametrize("level", [0, 1, 1.5, float("nan")])
def test_a_level_lies_between_0_and_1(level: float, model: AdaptedModel, tiny_split: Split) -> None:
    model.answers = replace(model.answers, sets=sets.calibrated(model, tiny_split.test))
    with pytest.raises(AdaptError, match="expected the level of sets of classes, such as "):
        sets.measured(model, tiny_split.test, level)


def test_what_was_calibrated_on_is_no_measurement(
    model: AdaptedModel, tiny_split: Split, caplog: pytest.LogCaptureFixture
) -> None:
    items = tiny_split.train + tiny_split.test
    model.answers = replace(model.answers, sets=sets.calibrated(model, items))
    sets.measured(model, items, 0.9)
    assert "the sets were calibrated on these 18 images, so that their coverage says nothing" in caplog.text
    caplog.clear()
    sets.measured(model, tiny_split.test, 0.9)
    assert "says nothing" not in caplog.text


@pytest.mark.parametrize("scores", [(0.5, 0.1), (-5.0, 0.1), (0.1, 99.0), (0.1,)])
def test_scores_that_no_calibration_gives_are_refused(
    scores: tuple[float, ...], model: AdaptedModel, tmp_path: Path
) -> None:
    model.answers = replace(model.answers, sets=Sets("lac", False, (scores,), ((1, 1),), ""))
    with pytest.raises(AdaptError, match="sets: expected"):
        model.save(tmp_path / "a.safetensors")


def test_pictures_that_differ_in_their_middle_alone_are_not_one(tmp_path: Path) -> None:
    """As drawings on white, saved uncompressed: equal sizes, heads and tails."""
    ids = set()
    for number in range(4):
        picture = Image.new("RGB", (128, 128), "white")
        picture.putpixel((64, 64), (number, 0, 0))
        picture.save(tmp_path / f"{number}.bmp")
        ids.add(file_id(str(tmp_path / f"{number}.bmp")))
    assert len(ids) == 4
