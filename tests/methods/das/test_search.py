"""The search before training: what it updates, what it leaves, and that a killed run goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stopping import stopped_at

import adapt
from adapt import AdaptedModel, AdaptError, methods, wrap
from adapt.data import Split
from adapt.evaluation.flops import image_flops, text_flops
from adapt.methods import das as module
from adapt.methods.das.search import Search, number_of_subsets, updated_gates
from adapt.training.run import Run

pytestmark = pytest.mark.by_turns("new")
SEARCH: dict[str, Any] = {"skip": 1, "search_epochs": 3, "warmup_epochs": 1, "turn": 2, "draws": 2}


COMPOSED = {"methods": [{"name": "das", **SEARCH}, {"name": "lora", "rank": 2}]}


@pytest.fixture(params=[("das", SEARCH), ("compose", COMPOSED)], ids=["das", "compose"])
def new(request: pytest.FixtureRequest, make_model) -> Callable[[], AdaptedModel]:
    """A model whose blocks are to be searched, always with the same initial values."""
    name, config = request.param
    return lambda: make_model(name, **config)


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[Any, Path]]:
    """What `searched` has made, by the method's name."""
    return {}


@pytest.fixture
def searched(found: dict[str, tuple[Any, Path]], train, new, tiny_split: Split, tmp_path: Path) -> tuple[Any, Path]:
    """Such a model trained with three batches an epoch, and its run directory; not to be changed."""
    model = new()
    if model.method.name not in found:
        train(model, val_set=tiny_split.val, out=tmp_path / "run")
        found[model.method.name] = model, tmp_path / "run"
    return found[model.method.name]


def test_gates_are_updated_in_turn_after_the_warm_up(searched: tuple[Any, Path]) -> None:
    model, run = searched
    found = json.loads((run / "search.json").read_text())
    # 9 steps; counting goes on through the warm-up's 3, as published, so the first update is at once
    assert [entry["step"] for entry in found["trace"]] == [4, 6, 8]
    gates = torch.zeros(3, dtype=torch.float64)
    for entry in found["trace"]:
        assert len({tuple(subset) for subset in entry["subsets"]}) == 2
        gates = updated_gates(gates, entry["subsets"], entry["losses"], 1.0)
        assert entry["gates"] == gates.tolist()
    assert found["chosen"] == [f"vision.{int(gates.argmax())}"]
    assert model.method.skipped == set(found["chosen"])


def test_gates_that_went_far_still_leave_subsets_to_compare(
    train, make_model, tiny_split: Split, tmp_path: Path
) -> None:
    train(make_model("das", **SEARCH | {"draws": 3, "gate_lr": 1e6}), val_set=tiny_split.val, out=tmp_path / "run")
    trace = json.loads((tmp_path / "run/search.json").read_text())["trace"]
    assert max(map(abs, trace[0]["gates"])) > 100
    assert [len({tuple(subset) for subset in entry["subsets"]}) for entry in trace] == [3, 3, 3]


def test_the_metrics_say_what_it_chose_and_cost(searched: tuple[Any, Path]) -> None:
    _, run = searched
    found, metrics = (json.loads((run / name).read_text()) for name in ("search.json", "metrics.json"))
    summary = metrics["search"]
    assert (summary["chosen"], summary["updates"], summary["seconds"]) == (found["chosen"], 3, found["seconds"])
    assert summary["kept_flops"] == found["kept_flops"]
    assert summary["gates"] == dict(zip(found["blocks"], found["trace"][-1]["gates"]))
    whole = found["seconds"] + metrics["seconds"]
    assert summary["share_of_training"] == pytest.approx(found["seconds"] / whole, abs=1e-2)
    assert metrics["steps"] == 9  # of the training alone


def test_the_adapter_needs_no_search(searched: tuple[Any, Path], images: torch.Tensor) -> None:
    model, run = searched
    loaded = adapt.load(run / "adapter.safetensors", model.backbone)
    assert "searches" not in repr(loaded.method.config)
    assert torch.equal(loaded(images), model.eval()(images))


def test_a_killed_training_goes_on_with_the_same_blocks(
    searched: tuple[Any, Path], train, new, tiny_split: Split, tmp_path: Path, monkeypatch: Any
) -> None:
    model, _ = searched
    again, out = new(), tmp_path / "killed"
    with stopped_at(5):
        train(again, val_set=tiny_split.val, out=out)
    monkeypatch.setattr(module, "Search", None)  # it is not done again
    resumed = new()
    train(resumed, val_set=tiny_split.val, out=out, resume=True)
    state, expected = resumed.method.state_dict(), model.method.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_a_training_that_fails_at_once_goes_on_from_its_search(
    train, new, tiny_split: Split, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "failed"

    def fail(self: Run, entry: dict[str, Any]) -> None:
        raise RuntimeError("a worker died")

    with monkeypatch.context() as patched:
        patched.setattr(Run, "log", fail)
        with pytest.raises(RuntimeError, match="a worker died"):
            train(new(), val_set=tiny_split.val, out=out)
    found = (out / "search.json").read_text()
    monkeypatch.setattr(module, "Search", None)  # it is not done again
    result = train(new(), val_set=tiny_split.val, out=out, resume=True)
    assert result.metrics["search"]["chosen"] == json.loads(found)["chosen"]


def test_named_blocks_need_no_search_and_no_held_back_images(train, make_model, tmp_path: Path) -> None:
    result = train(make_model("das", skip=1, skipped=["vision.1"]), out=tmp_path / "run")
    assert "search" not in result.metrics
    assert not (tmp_path / "run/search.json").exists()


def test_without_validation_images_it_is_refused(train, make_model) -> None:
    with pytest.raises(AdaptError, match="chooses skipped on validation images, but there are no"):
        train(make_model("das", **SEARCH))


def _kept(model: AdaptedModel, skipped: Sequence[str]) -> float:
    """The share of the searched towers' operations that is left, by the counter."""
    towers = model.method.config.towers
    count = {"vision": image_flops, "text": text_flops}

    def operations(names: Sequence[str]) -> float:
        method = methods.DAS(skipped=names, towers=towers)
        other = wrap(model.backbone, method, model.class_names)
        return sum(count[tower](other) for tower in towers)

    return operations(skipped) / operations([])


@pytest.mark.parametrize(("share", "blocks"), [(0.85, 1), (0.5, 2)])
def test_a_budget_chooses_how_many_blocks(
    train, make_model, tiny_split: Split, tmp_path: Path, share: float, blocks: int
) -> None:
    model = make_model("das", **SEARCH | {"skip": None, "keep_flops": share})
    result = train(model, val_set=tiny_split.val, out=tmp_path / "run")
    config, search = model.method.config, result.metrics["search"]
    assert (config.skip, config.keep_flops, list(config.skipped)) == (blocks, None, search["chosen"])
    assert search["kept_flops"] == pytest.approx(_kept(model, config.skipped), abs=1e-4)
    assert _kept(model, config.skipped) <= share < _kept(model, config.skipped[1:])
    assert adapt.load(result.adapter, model.backbone).method.config == config


class _Even(SimpleNamespace):
    """A method and its training in one: ten blocks are all that a forward pass computes."""

    blocks, most = tuple(f"vision.{i}" for i in range(10)), {"vision": 9}

    def select(self, names: Sequence[str]) -> None:
        self.selected = names

    def flops(self, towers: Sequence[str]) -> float:
        return 1234567.0 * (10 - len(self.selected))

    def held_back(self) -> None:
        return None


@pytest.mark.parametrize("count", range(1, 9))
def test_a_budget_that_blocks_meet_exactly_takes_no_further_block(count: int) -> None:
    """Of ten blocks three save 0.3, which is less than 1 - 0.7 by its rounding."""
    share, skipped = round(1 - count / 10, 1), []
    for keep_flops in (share - 1e-6, share, share + 1e-6):
        method = _Even(config=SimpleNamespace(keep_flops=keep_flops, draws=1), seed=1)
        skipped.append(len(Search(method, method)._enough(range(10))))
    assert skipped == [count + 1, count, count]


@pytest.mark.full
def test_subsets_of_two_towers_meet_a_budget_too(train, make_model, tiny_split: Split, tmp_path: Path) -> None:
    share = 0.7
    model = make_model("das", **SEARCH | {"skip": None, "keep_flops": share, "towers": ["text", "vision"]})
    train(model, val_set=tiny_split.val, out=tmp_path / "run")
    found = json.loads((tmp_path / "run/search.json").read_text())
    assert found["kept_flops"] <= share
    blocks = found["blocks"]
    drawn = [[blocks[i] for i in subset] for entry in found["trace"] for subset in entry["subsets"]]
    for subset in [found["chosen"], *drawn]:
        assert _kept(model, subset) <= share
        assert any(_kept(model, [name for name in subset if name != last]) > share for last in subset)


def test_a_budget_below_the_last_block_is_refused(train, make_model, tiny_split: Split) -> None:
    model = make_model("das", **SEARCH | {"skip": None, "keep_flops": 0.2})
    with pytest.raises(
        AdaptError,
        match=r"is 0\.2, but a larger fraction remains with 2 vision blocks .*: set keep_flops to at least (0\.\d+)",
    ) as refusal:
        train(model, val_set=tiny_split.val)
    least = float(str(refusal.value).split()[-1])
    assert least == round(least, 3)
    assert least - 1e-3 <= _kept(model, ["vision.0", "vision.1"]) <= least


def test_the_number_of_subsets() -> None:
    assert number_of_subsets([("vision", 1.0)] * 6, 2.0, {"vision": 5}) == 15
    # one of three dear blocks and any of two cheap ones, in the orders that need them: d, cd, ccd
    blocks = [("vision", gain) for gain in (5.0, 5.0, 5.0, 1.0, 1.0)]
    assert number_of_subsets(blocks, 5.0, {"vision": 4}) == 3 + 2 * 3 + 3
    assert number_of_subsets([("vision", 5.0), ("vision", 1.0)], 7.0, {"vision": 1}) == 0
    # three of two towers of two, each of which has to keep one: none; two of them: one of each
    towers = [("text", 1.0)] * 2 + [("vision", 1.0)] * 2
    assert number_of_subsets(towers, 3.0, {"text": 1, "vision": 1}) == 0
    assert number_of_subsets(towers, 2.0, {"text": 1, "vision": 1}) == 4


def test_no_draw_leaves_a_tower_without_a_block(train, make_model, tiny_split: Split, tmp_path: Path) -> None:
    model = make_model("das", **SEARCH | {"skip": 4, "towers": ["text", "vision"], "draws": 3})
    train(model, val_set=tiny_split.val, out=tmp_path / "run")
    found = json.loads((tmp_path / "run/search.json").read_text())
    drawn = [[found["blocks"][i] for i in subset] for entry in found["trace"] for subset in entry["subsets"]]
    for subset in [found["chosen"], *drawn]:
        assert len(subset) == 4
        assert Counter(name.partition(".")[0] for name in subset) == {"text": 2, "vision": 2}
    with pytest.raises(AdaptError, match="skip is 5, but there are 6 blocks, of which 4 may be skipped"):
        make_model("das", **SEARCH | {"skip": 5, "towers": ["text", "vision"]})


def test_more_draws_than_subsets_are_refused(train, make_model, tiny_split: Split) -> None:
    with pytest.raises(AdaptError, match="draws is 4; expected at most 3, the number of subsets"):
        train(make_model("das", **SEARCH | {"draws": 4}), val_set=tiny_split.val)


def test_a_search_that_was_changed_is_refused_by_name(train, new, tiny_split: Split, tmp_path: Path) -> None:
    with stopped_at(1):
        train(new(), val_set=tiny_split.val, out=tmp_path / "run")
    (tmp_path / "run" / "search.json").write_text('{"chosen": [3]}')
    with pytest.raises(AdaptError, match=r"search\.json contains no valid search: chosen\.0"):
        train(new(), val_set=tiny_split.val, out=tmp_path / "run", resume=True)


def test_a_search_inside_compose_names_its_key(make_model, tiny_split: Split) -> None:
    with pytest.raises(AdaptError, match=r"compose chooses methods\.0\.skipped on validation images"):
        adapt.fit(make_model("compose", **COMPOSED), tiny_split.train, epochs=1)
