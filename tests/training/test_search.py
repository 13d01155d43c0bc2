"""The search before training: what it updates, what it leaves, and that a killed run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import adapt
from adapt import AdaptError
from adapt.data import Split
from adapt.methods.das import updated_gates
from adapt.training import search as module

SEARCH: dict[str, Any] = {"skip": 1, "search_epochs": 3, "warmup_epochs": 1, "turn": 2, "draws": 2}


@pytest.fixture
def searched(train, make_model, tiny_split: Split, tmp_path: Path) -> tuple[Any, Path]:
    """A trained DAS of three batches an epoch, and its run directory."""
    model = make_model("das", **SEARCH)
    train(model, val_set=tiny_split.val, out=tmp_path / "run")
    return model, tmp_path / "run"


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
    assert model.method.config.skipped == tuple(found["chosen"])


def test_the_metrics_say_what_it_chose_and_cost(searched: tuple[Any, Path]) -> None:
    _, run = searched
    found, metrics = (json.loads((run / name).read_text()) for name in ("search.json", "metrics.json"))
    summary = metrics["search"]
    assert (summary["chosen"], summary["updates"], summary["seconds"]) == (found["chosen"], 3, found["seconds"])
    assert summary["gates"] == dict(zip(found["blocks"], found["trace"][-1]["gates"]))
    whole = found["seconds"] + metrics["seconds"]
    assert summary["share_of_training"] == pytest.approx(found["seconds"] / whole, abs=1e-2)
    assert metrics["steps"] == 9  # of the training alone


def test_the_adapter_needs_no_search(searched: tuple[Any, Path], images: torch.Tensor) -> None:
    model, run = searched
    loaded = adapt.load(run / "adapter.safetensors", model.backbone)
    assert not loaded.method.searches
    assert torch.equal(loaded(images), model.eval()(images))


def test_a_killed_training_goes_on_with_the_same_blocks(
    searched: tuple[Any, Path], train, make_model, tiny_split: Split, at_step, tmp_path: Path, monkeypatch: Any
) -> None:
    model, _ = searched
    again, out = make_model("das", **SEARCH), tmp_path / "killed"

    def stop() -> None:
        raise RuntimeError("killed")

    at_step(5, stop)
    with pytest.raises(RuntimeError, match="killed"):
        train(again, val_set=tiny_split.val, out=out)
    monkeypatch.setattr(module, "Search", None)  # it is not done again
    resumed = make_model("das", **SEARCH)
    train(resumed, val_set=tiny_split.val, out=out, resume=True)
    state, expected = resumed.method.state_dict(), model.method.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_named_blocks_need_no_search_and_no_held_back_images(train, make_model, tmp_path: Path) -> None:
    result = train(make_model("das", skip=1, skipped=["vision.1"]), out=tmp_path / "run")
    assert "search" not in result.metrics
    assert not (tmp_path / "run/search.json").exists()


def test_without_validation_images_it_is_refused(train, make_model) -> None:
    with pytest.raises(AdaptError, match="validation images, and there are none: give some, or name the blocks"):
        train(make_model("das", **SEARCH))


def test_more_draws_than_subsets_are_refused(train, make_model, tiny_split: Split) -> None:
    with pytest.raises(AdaptError, match="4 draws of different subsets are asked for; there are 3"):
        train(make_model("das", **SEARCH | {"draws": 4}), val_set=tiny_split.val)
