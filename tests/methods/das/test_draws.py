"""The search's draws: how likely a block is, how many are taken, and what an update compares."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapt import AdaptError
from adapt.methods.base import ImageStep
from adapt.methods.das import search as module
from adapt.methods.das.search import LEAST_CHANCE, Search, number_of_subsets, updated_gates


@pytest.fixture
def searching(make_model, training_of) -> Any:
    """`searching(**config)`: a search among the three blocks of the vision tower, with no step taken."""

    def new(**config: Any) -> Search:
        settings = {"search_epochs": 3, "warmup_epochs": 1, "turn": 2, "draws": 2}
        model = make_model("das", **settings | config)
        return Search(model.method, training_of(model))

    return new


def test_a_block_is_drawn_the_likelier_the_larger_its_gate(searching) -> None:
    search = searching(skip=1)
    search.gates = torch.tensor([50.0, 0.0, -50.0], dtype=torch.float64)
    torch.manual_seed(0)
    drawn = Counter(search._draw() for _ in range(3000))
    assert set(drawn) <= {(0,), (1,), (2,)}
    assert drawn[0,] / 3000 == pytest.approx(1 / 1.5, abs=0.03)
    assert drawn[1,] / 3000 == pytest.approx(0.5 / 1.5, abs=0.03)
    assert 0 < LEAST_CHANCE < 0.001


def test_a_block_whose_gate_is_far_down_is_drawn_at_times(searching) -> None:
    search = searching(skip=2)
    search.gates = torch.tensor([-900.0, -900.0, 0.0], dtype=torch.float64)
    torch.manual_seed(0)
    drawn = Counter(search._draw() for _ in range(300))
    assert drawn[0, 2] + drawn[1, 2] > 290
    assert min(drawn[0, 2], drawn[1, 2]) > 100  # both are as likely, though sigmoid has made zeros of them


@pytest.mark.parametrize(
    ("order", "taken"),
    [
        ((1, 2, 3, 0), (1, 2, 3)),  # 1 + 1 + 3
        ((3, 1, 0), (1, 3)),  # 3 + 1 is just the goal
        ((0, 1), (0,)),
        ((1, 2), (1, 2)),  # all there are
    ],
)
def test_blocks_are_taken_until_they_reach_the_goal(order: Any, taken: Any, searching) -> None:
    search = searching(skip=1)
    search.gains, search.goal = [5.0, 1.0, 1.0, 3.0], 4.0
    search.towers, search.most = ["vision"] * 4, {"vision": 4}
    assert search._enough(order) == taken


@pytest.mark.parametrize(("order", "taken"), [((0, 1, 3, 2), (0, 3)), ((2, 3, 1, 0), (1, 2))])
def test_no_more_blocks_of_a_tower_are_taken_than_may_be_skipped(order: Any, taken: Any, searching) -> None:
    search = searching(skip=1)
    search.gains, search.goal = [1.0] * 4, 2.0
    search.towers, search.most = ["text", "text", "vision", "vision"], {"text": 1, "vision": 1}
    assert search._enough(order) == taken


def test_a_budget_may_ask_for_all_that_can_be_saved_and_for_no_more(searching) -> None:
    """The dearest block of one tower and the dearest two of the other save 299 + 500 of 2,000."""
    search = searching(skip=1)
    search.towers, search.most = ["text", "text", "vision", "vision", "vision"], {"text": 1, "vision": 2}
    search.saved, search.operations = [100.0, 299.0, 150.0, 200.0, 300.0], 2000.0
    search.goal = 799.0
    search._check_goal()
    search.goal = 800.5
    with pytest.raises(AdaptError, match=r"1 text blocks and 2 vision blocks skipped, .* to at least 0\.601$"):
        search._check_goal()


def test_an_update_compares_different_subsets_on_one_batch(searching, monkeypatch: pytest.MonkeyPatch) -> None:
    search = searching(skip=1, draws=3, gate_lr=0.5)
    images, labels = torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    search.held_back = iter([search.training.model.step(images, labels)])
    compared = []

    def loss(subset: Any, step: ImageStep) -> float:
        compared.append((subset, step.images is images))
        return float(subset[0])

    monkeypatch.setattr(search, "_loss", loss)
    clock = iter((10.0, 12.5))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    search._update(step=7)
    assert compared == [((i,), True) for i in range(3)]
    expected = updated_gates(torch.zeros(3, dtype=torch.float64), [(0,), (1,), (2,)], [0.0, 1.0, 2.0], 0.5)
    assert torch.equal(search.gates, expected)
    made = module.Update(step=7, gates=expected.tolist(), subsets=[[0], [1], [2]], losses=[0.0, 1.0, 2.0])
    assert search.trace == [made]
    assert search.updating == 2.5


def test_updates_come_in_turn_after_the_warm_up_and_draws_at_every_step(
    searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine steps in three epochs, by a trainer that trains nothing."""
    search = searching(skip=1, turn=2, warmup_epochs=1)
    updated, drawn = [], []

    def train(title: str, *, before: Any, epochs: int) -> float:
        assert epochs == 3
        for step in range(1, 10):
            before((step - 1) // 3, step)
        return 2.0

    def update(step: int) -> None:
        updated.append(step)
        search.updating += 0.125

    monkeypatch.setattr(search.training, "train", train)
    monkeypatch.setattr(search, "_update", update)
    monkeypatch.setattr(search.method, "select", drawn.append)
    search.gates = torch.tensor([0.0, 5.0, 5.0], dtype=torch.float64)
    found = search.run()
    assert updated == [4, 6, 8]  # counted from the first batch on
    assert len(drawn) == 9
    assert found.chosen == ["vision.1"]  # the first of equals
    assert found.seconds == 2.375
    assert found.kept_flops == round(1 - search.saved[1] / search.operations, 4)


@pytest.mark.parametrize(
    ("gains", "goal", "count"),
    [
        ([1.0] * 6, 2.0, 15),
        ([5.0, 5.0, 5.0, 1.0, 1.0], 5.0, 12),
        ([5.0, 1.0], 7.0, 0),
        ([2.0, 1.0], 1.0, 2),
        ([3.0, 2.0, 2.0], 6.0, 0),  # all three would, but one has to stay
    ],
)
def test_the_subsets_that_reach_a_goal_are_counted(gains: list[float], goal: float, count: int) -> None:
    assert number_of_subsets([("vision", gain) for gain in gains], goal, {"vision": len(gains) - 1}) == count
