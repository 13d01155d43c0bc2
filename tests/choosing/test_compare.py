"""What is compared, by which settings, and which of several is taken."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from selection import by_turns

import adapt
from adapt import Backbone
from adapt.choosing import compare as module
from adapt.choosing.candidates import Candidate, Cost, candidates
from adapt.choosing.compare import Compared, Comparison, take
from adapt.choosing.recommendation import Recommendation, rows_of
from adapt.cli import main
from adapt.cli import options as common
from adapt.data import Split
from adapt.evaluation.scores import Scores
from adapt.recipe import read_recipe
from adapt.recipe.file import pair
from adapt.training.result import Result
from adapt.training.run_recipe import run_recipe

CHANGES = {"data.shots": 4, "seed": 1, "backbone": "mini-clip"}
EYES = adapt.load_backbone("vision:mini-clip")
CLIP, TASK = adapt.load_backbone("mini-clip"), adapt.data.load("emoji").task


@pytest.fixture(scope="module")
def few() -> Split:
    return adapt.data.load("emoji").few_shot(4, 1)


def _listed(every: bool = False, source: str = "emoji", backbone: Backbone = CLIP) -> dict[str, Candidate]:
    return {each.name: each for each in candidates(source, CHANGES, every, backbone, TASK)}


@pytest.mark.full
def test_without_being_asked_no_step_passes_through_a_tower_but_coops() -> None:
    usual, every = _listed(), _listed(every=True)
    assert len(usual) >= 12
    assert {"zero_shot", "gda", "tip_adapter", "clap", "zs_lp", "task_res", "linear_probe", "coop"} <= usual.keys()
    for plain in ("linear_probe", "lda", "knn", "nearest_mean"):
        assert {plain, f"{plain}_words"} <= usual.keys()
    assert [name for name, each in usual.items() if each.cost is Cost.STEPS_THROUGH_TOWERS] == ["coop"]
    assert list(every)[: len(usual)] == list(usual)
    assert {"lora", "maple", "das", "two_stage", "prompt_src"} <= every.keys() - usual.keys()
    assert not {"tpt", "tda", "vlora", "projector", "compose/vlora_lora", "uniqa"} & every.keys()
    assert next(iter(usual)) == "lda_words"
    assert [name for name, each in every.items() if each.preferred] == ["lda_words"]
    assert [name for name, each in _listed(backbone=EYES).items() if each.preferred] == ["lda"]
    assert next(iter(_listed(backbone=EYES))) == "lda"
    assert usual["zs_lp"].recipe.method["constraint"] == "none"


def test_on_a_vision_encoder_methods_need_no_class_names_and_no_text_tower() -> None:
    names = _listed(every=True, backbone=adapt.load_backbone("vision:mini-clip")).keys()
    assert {"nearest_mean", "linear_probe", "knn", "lda", "gda", "tip_adapter", "lora/vision", "das"} <= names
    assert not {"zero_shot", "lda_words", "coop", "lora", "ln_tuning", "ivlp"} & names
    assert not {name for name in _listed(every=True) if name.endswith("/vision")}


def test_methods_that_pool_images_are_compared_if_an_item_has_several() -> None:
    with_items = {each.name for each in candidates("emoji", CHANGES, False, CLIP, TASK, {"bags"})}
    assert with_items - _listed().keys() == {"abmil"}


def test_photos_of_ones_own_are_encoded_once(tmp_path: Path) -> None:
    """As they are; of a published set a recipe that crops afresh takes ten views of each, encoded once."""
    own = {
        each.name: each.recipe for each in candidates(str(tmp_path), CHANGES | {"data.shots": None}, False, CLIP, TASK)
    }
    on_features = [recipe.train for recipe in own.values() if recipe.train is not None]
    assert len(on_features) >= 6
    assert {(train.augment, train.views) for train in on_features} == {("none", None)}
    assert {recipe.method.get("views", 0) for recipe in own.values()} == {0}
    published = {each.name: each.recipe for each in candidates("eurosat", CHANGES, True, CLIP, TASK)}
    assert published["task_res"].train is not None
    assert published["task_res"].train.views == 10
    assert published["lora"].train is not None
    assert published["lora"].train.views is None


@pytest.mark.parametrize("name", ["zs_lp", "gda", "coop"])
def test_the_command_trains_what_was_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = _listed()[name]
    found = []
    read = common.read
    monkeypatch.setattr(common, "read", lambda *given: found.append(read(*given)) or pytest.exit("read"))
    CliRunner().invoke(main, shlex.split(candidate.command)[1:], catch_exceptions=True)
    assert found == [candidate.recipe]


@by_turns("root", ["/data/my photos #2", "123", "/d/a: b", "null", "true", "plain/path", "it's"], take=2)
def test_the_command_keeps_odd_paths(root: str) -> None:
    [gda] = [
        each for each in candidates("emoji", CHANGES | {"data.root": root}, False, CLIP, TASK) if each.name == "gda"
    ]
    words = [word.removeprefix("--set=") for word in shlex.split(gda.command) if word.startswith("--set=data.root")]
    assert pair(words[0]) == ("data.root", root)


@pytest.mark.full
def test_images_are_answered_by_models_that_have_not_seen_them(few: Split) -> None:
    """A table of training images knows their labels by heart; of images held back it is right about half the time."""
    candidate = _listed()["tip_adapter"]
    backbone = adapt.load_backbone("mini-clip")
    found = Comparison(few, {"mini-clip": backbone}, 3, seed=1).run(candidate)
    whole = run_recipe(candidate.recipe, None, progress=False)
    assert found.answers.shape == (96, 24)
    assert torch.allclose(found.answers.sum(-1), torch.ones(96), atol=1e-4)
    assert found.merit == found.merits.double().mean()
    assert abs(found.merit - whole.accuracy) < 2 * found.error < 0.2
    assert found.size > 24 * 4
    again = Comparison(few, {"mini-clip": backbone}, 3, seed=1).run(candidate)
    assert torch.equal(again.merits, found.merits)
    assert not torch.equal(Comparison(few, {"mini-clip": backbone}, 3, seed=2).run(candidate).merits, found.merits)


@pytest.mark.full
def test_the_time_is_estimated_from_a_few_steps(few: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one fold, as if each step took half a second."""
    listed = _listed(every=True)
    comparison = Comparison(few, {"mini-clip": adapt.load_backbone("mini-clip")}, 3, seed=1)
    assert comparison.estimate(listed["gda"]) == 0
    trained, seen = module._trained, []

    def slow(*given: Any) -> Any:
        model, result = trained(*given)
        seen.append(len(result.history))
        rate = 2.0 * min(given[0].recipe.train.batch_size, len(given[1].train))
        return model, replace(result, history=[entry | {"images_per_second": rate} for entry in result.history])

    monkeypatch.setattr(module, "_trained", slow)
    lora = listed["lora"].recipe.train
    assert lora is not None
    assert comparison.estimate(listed["lora"]) == lora.at(4).iterations * 0.5  # type: ignore[operator]
    clap = listed["clap"].recipe.train
    assert clap is not None
    assert comparison.estimate(listed["clap"]) == clap.epochs * 0.5  # type: ignore[operator]  # full batches
    assert seen == [5, 5]
    assert comparison.trainings == 4


def _scores(right: list[bool]) -> Scores:
    words = ("yes",) * len(right)
    return Scores(words, words, tuple("yes" if each else "no" for each in right), (1.0,) * len(right))


def _compared(name: str, right: list[int], cost: Cost = Cost.NO_STEP, preferred: bool = False) -> Compared:
    scores = _scores([bool(each) for each in right])
    candidate = Candidate(name, read_recipe("gda", data="emoji"), cost, True, "", preferred)
    return Compared(
        candidate, torch.zeros(len(right), 2), scores, tuple(map(str, range(len(right)))), 1.0, 1, 10**9, 1.25
    )


def test_of_those_alike_the_preferred_one_is_taken_or_the_cheapest() -> None:
    best = _compared("best", [1] * 70 + [0] * 30, Cost.STEPS_ON_FEATURES)
    close = _compared("close", [1] * 68 + [0] * 32)
    closer = _compared("closer", [1] * 69 + [0] * 30 + [1])
    far = _compared("far", [1] * 50 + [0] * 50, preferred=True)
    chosen, alike = take([far, close, best, closer])
    assert [each.candidate.name for each in alike] == ["best", "closer", "close"]
    assert chosen is closer
    assert take([far, best])[0] is best
    preferred = _compared("preferred", [1] * 67 + [0] * 33, preferred=True)
    assert take([best, closer, preferred])[0] is preferred
    # three images of a hundred, all on one side, are 1.74 standard errors; five are 2.28
    assert take([best, _compared("behind", [1] * 65 + [0] * 35)])[0] is best


@pytest.mark.full
def test_a_method_with_steps_has_to_keep_up_from_the_first_part(few: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, backbone = _listed(every=True), adapt.load_backbone("mini-clip")
    comparison = Comparison(few, {"mini-clip": backbone}, 3, seed=1)
    best, trained = comparison.run(listed["gda"]), []
    tried = comparison._tried

    def seen(candidate: Candidate, *given: Any) -> Any:
        trained.append((candidate.name, len(given) > 2))
        return tried(candidate, *given)

    monkeypatch.setattr(comparison, "_tried", seen)
    truth = few.task.numbers(comparison.items, few.class_names)
    perfect = replace(best, answers=torch.eye(24)[truth])
    given_up = comparison.raced(listed["coop"], perfect)
    assert trained == [("coop", True)]
    assert isinstance(given_up, str)
    assert given_up.endswith("points behind gda on the first fold after 3 of 30 epochs")
    trained.clear()
    assert str(comparison.raced(listed["clap"], perfect)).endswith("points behind gda on the first fold")
    assert trained == [("clap", False)]
    trained.clear()
    hopeless = replace(best, answers=torch.eye(24)[(truth + 1) % 24])
    kept = comparison.raced(listed["clap"], hopeless)
    assert isinstance(kept, Compared)
    assert trained == [("clap", False)] * 3
    assert torch.equal(kept.merits, Comparison(few, {"mini-clip": backbone}, 3, seed=1).run(listed["clap"]).merits)


class _Planned:
    """A comparison on five folds of about 24 images, in which candidates answer as planned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        split = adapt.data.load("emoji").few_shot(5, 1)
        self.comparison = Comparison(split, {"mini-clip": adapt.load_backbone("mini-clip")}, 5, seed=1)
        self.truth = split.task.numbers(self.comparison.items, split.class_names)
        self.rights: list[float] = []  # the share of each fold
        self.fold, self.folds_tried = 0, 0
        numbers = {place: number for number, place in enumerate(self.comparison._places)}

        def tried(candidate: Candidate, part: Split, held: list[int], changes: object = None) -> Any:
            own = self.truth[[numbers[place] for place in held]]
            wrong = torch.arange(len(own)) >= len(own) * (1 if changes else self.rights[self.folds_tried])
            self.folds_tried += not changes
            answers = torch.eye(24)[(own + wrong.long()) % 24]
            return module._Fold(held, answers, 0.0, 1, True, 1, candidate.name)

        monkeypatch.setattr(self.comparison, "_tried", tried)

    def best(self, rights: list[float]) -> Compared:
        self.rights, self.folds_tried = rights, 0
        return self.comparison.run(_listed()["gda"])

    def race(self, name: str, rights: list[float], best: Compared, share: float | None = None) -> Any:
        """The outcome, and the number of folds."""
        self.rights, self.folds_tried = rights, 0
        return self.comparison.raced(_listed()[name], best, share), self.folds_tried


@pytest.mark.full
def test_a_method_is_dropped_once_it_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = _Planned(monkeypatch)
    half, all_right = planned.best([0.5] * 5), planned.best([1.0] * 5)

    def dropped(name: str, *rights: float) -> str:
        said, folds = planned.race(name, [*rights, *[1.0] * (5 - len(rights))], half)
        assert folds == len(rights)
        return re.sub("[0-9.]+ points", "some points", said)

    assert dropped("clap", 0.4) == "some points behind gda on the first fold"
    assert dropped("clap", 0.6, 0.3) == "some points behind gda on the first 2 folds"
    assert dropped("clap", 0.6, 0.5, 0.47) == "only some points better than gda on the first 3 folds"
    assert isinstance(planned.race("clap", [0.7, 0.7, 0.8, 0.7, 0.7], half)[0], Compared)
    assert planned.race("clap", [1.0] * 5, all_right) == ("gda is right about every image", 0)
    # without steps it may be behind by two standard errors
    assert isinstance(planned.race("lda", [0.45, 0.45, 0.5, 0.5, 0.5], half)[0], Compared)
    assert dropped("lda", 0.45, 0.2) == "some points behind gda on the first 2 folds"
    assert dropped("clap", 0.6, 0.4) == "no better than gda on the first 2 folds"


@pytest.mark.full
def test_one_training_takes_no_more_than_a_share_of_all_before(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = _Planned(monkeypatch)
    best = planned.best([0.5] * 5)
    planned.comparison._spent, planned.comparison.estimates = 20.0, {"coop": 6.0}
    said, folds = planned.race("coop", [1.0] * 5, best, share=0.25)
    assert (said.split(":")[0], folds) == ("a training takes 6 s, more than 25% of the 20 s of all before", 0)
    assert isinstance(planned.race("coop", [1.0] * 5, best, share=0.3)[0], Compared)
    assert isinstance(planned.race("coop", [1.0] * 5, best)[0], Compared)


@pytest.mark.full
def test_a_variant_is_named_as_its_recipe_where_the_data_choose_the_same() -> None:
    """Where the data leave class names out, `lda_words` is `lda`, and in a comparison if they do in every fold."""

    def called(name: str, **chosen: float) -> str:
        return _listed()[name].called(Result({"chosen": {"settings": chosen}}, [], None))

    assert [called("lda_words", ridge=1.0, words=each) for each in (0.0, 1.0)] == ["lda", "lda_words"]
    assert (called("lda", ridge=1.0), called("lda_words")) == ("lda", "lda_words")
    compared = _compared("lda_words", [1])
    assert replace(compared, names=("lda", "lda")).name == "lda"
    assert replace(compared, names=("lda", "lda_words")).name == "lda_words"


def test_the_name_is_that_of_the_final_training() -> None:
    """Not if another method of the comparison has that name."""
    figures = {"lda_words": [1, 1], "gda": [1, 0], "lda": [0, 0]}
    for without, chosen in (({"lda"}, "lda"), (set(), "lda_words")):
        compared = [_compared(name, right) for name, right in figures.items() if name not in without]
        names = [each.name for each in compared]
        found = Recommendation("lda_words", Scores.compared_by, rows_of(compared), names, {}, [], None, {}).trained(  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            "lda",
        )
        assert (found.chosen, found.alike[0], found.rows[0]["method"]) == (chosen, chosen, chosen)
        assert [row["accuracy"] for row in found.rows] == [1.0, 0.5, 0.0][: len(compared)]


def test_few_images_are_not_sure() -> None:
    """Nobody is sure of twelve right of twelve; of many the standard error is that of the mean."""
    every = _compared("every", [1] * 12)
    assert every.error == pytest.approx(1.5 * 0.0827, abs=2e-4)  # of five parts: half as much again
    assert _compared("none", [0] * 12).error == every.error
    assert _compared("many", [1] * 1200).error < 0.003
    assert _compared("half", [1, 0] * 200).error == pytest.approx(1.5 * 0.0250, abs=1e-4)
    in_groups = replace(_compared("groups", [1] * 48), groups=tuple(str(place // 4) for place in range(48)))
    assert in_groups.error == pytest.approx(every.error)  # images of one group are no more than one image


@pytest.mark.full
def test_the_error_is_that_of_as_many_models_as_learned_from_the_images(few: Split) -> None:
    """Of twenty folds no more than eight have one of the eight images, and zero-shot learns from none."""
    names = few.class_names[:2]
    train = tuple(item for item in few.train if item.answer in names)
    split = replace(few, class_names=names, train=train, val=(), test=())
    comparison = Comparison(split, {"mini-clip": adapt.load_backbone("mini-clip")}, 20, seed=1)
    models, listed = comparison.trainings - 1, _listed()
    assert len(comparison.items) == 8
    assert 2 <= models <= 8
    learned = comparison.run(listed["nearest_mean"])
    assert learned.held_back == pytest.approx(models / (models - 1))
    frozen = comparison.run(listed["zero_shot"])
    assert frozen.held_back == 0
    right = int(frozen.merits.sum())
    few_images = ((right + 2) * (10 - right) / 12**3) ** 0.5
    plain = (right * (8 - right) / 8**2 / 7) ** 0.5
    assert frozen.error == pytest.approx(max(few_images, plain))


def test_the_noise_is_that_of_the_difference() -> None:
    """Two methods that err on the same images can be told apart where each alone is uncertain."""
    one = _compared("one", [1, 0] * 50)
    other = _compared("other", [1, 0] * 40 + [0, 0] * 10)
    behind, error = other.behind(one)
    assert behind == pytest.approx(0.1)
    assert error == pytest.approx(0.0302, abs=1e-4)
    assert one.error == pytest.approx(1.5 * 0.0503, abs=1e-4)
    assert take([one, other])[0] is one
