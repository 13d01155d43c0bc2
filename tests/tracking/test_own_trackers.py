"""Trackers that users write: what they are told, and that no run is lost for one that fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from stopping import Killed, stopped_at

import adapt
from adapt import AdaptError
from adapt.data import Split
from adapt.recipe import build_recipe
from adapt.tracking import TrackedRun
from adapt.training.run_recipe import run_recipe


class Notes(adapt.Tracker):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.runs: list[TrackedRun] = []
        self.parts: list[list[int]] = []
        self.entries: list[dict[str, Any]] = []
        self.ends: list[Any] = []

    def started(self, run: TrackedRun) -> None:
        self.runs.append(run)

    def steps(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self.parts.append([entry["step"] for entry in entries])
        self.entries += map(dict, entries)

    def finished(self, metrics: Mapping[str, Any]) -> None:
        self.ends.append(metrics)

    def stopped(self, error: BaseException) -> None:
        self.ends.append(type(error))


class Failing(adapt.Tracker):
    """Fails where it is told to."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, list[str]()

    def _told(self, of: str) -> None:
        self.calls.append(of)
        if of == self.at:
            raise ConnectionError(f"no answer\nat {of}")

    def started(self, run: TrackedRun) -> None:
        self._told("started")

    def steps(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self._told("steps")

    def finished(self, metrics: Mapping[str, Any]) -> None:
        self._told("finished")


@pytest.mark.parametrize("directory", [True, False])
def test_a_tracker_is_told_of_every_step_and_of_the_end(train, tiny_split, tmp_path: Path, directory: bool) -> None:
    notes = Notes()
    out = tmp_path / "runs/one" if directory else None
    result = train(out=out, test_set=tiny_split.test, track=notes)
    (run,) = notes.runs
    assert (run.name, run.folder, run.resumed, run.step) == ("runs/one" if directory else "coop", out, False, 0)
    assert run.settings["method"]["name"] == "coop"
    assert run.settings["train"]["batch_size"] == 4
    assert notes.parts == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]  # at the end of each epoch
    assert notes.entries == result.history
    assert notes.ends == [result.metrics]
    assert [path.name for path in tmp_path.rglob("tracking.json")] == ["tracking.json"] * directory


def test_a_resumed_run_is_the_same_one_and_a_tracker_that_joins_hears_all(train, tmp_path: Path) -> None:
    first, later = Notes(), Failing("nowhere")
    out = tmp_path / "run"
    with stopped_at(5):
        train(out=out, track=first)
    assert (first.parts, first.ends) == ([[1, 2, 3]], [Killed])
    second, joined = Notes(), type("Joined", (Notes,), {})()
    result = train(out=out, resume=True, track=[second, joined, later])
    assert second.runs[0].id == joined.runs[0].id == first.runs[0].id
    assert [(run.resumed, run.step) for run in (*second.runs, *joined.runs)] == [(True, 3), (False, 0)]
    assert first.entries[:3] + second.entries == result.history == joined.entries
    assert joined.parts == [[1, 2, 3, 4, 5, 6], [7, 8, 9]]


def test_a_refusal_after_the_trackers_were_told_leaves_nothing(train, tmp_path: Path) -> None:
    notes, out = Notes(), tmp_path / "run"
    with pytest.raises(AdaptError, match=r"train.average gives a weight of zero to all 1 epochs"):
        train(out=out, track=notes, average={"swa": {"start": 3}}, epochs=None, iterations=2, schedule="constant")
    assert notes.ends == [AdaptError]
    assert not out.exists()


@pytest.mark.parametrize("at", ["started", "steps", "finished"])
def test_a_tracker_that_fails_does_not_lose_the_run(
    train, tiny_split, tmp_path: Path, caplog: pytest.LogCaptureFixture, at: str
) -> None:
    failing, notes = Failing(at), Notes()
    with caplog.at_level(logging.WARNING, "adapt"):
        result = train(out=tmp_path / "run", test_set=tiny_split.test, track=[failing, notes])
    said = [record.getMessage() for record in caplog.records if "Failing" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("tracker Failing failed and no longer follows this run: ConnectionError('no answer")
    assert "\n" not in said[0]
    assert failing.calls.count(at) == 1
    assert failing.calls[-1] == at
    assert notes.entries == result.history
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == result.metrics


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("tensorbord", "there is no tracker 'tensorbord'; did you mean 'tensorboard'"),
        ([Notes], "Notes is not a tracker: give an object of a class derived from adapt.Tracker"),
        ([Notes(), Notes()], "Notes would track a run twice"),
    ],
)
def test_what_is_no_tracker_is_refused(train, tmp_path: Path, track: Any, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        train(out=tmp_path / "run", track=track)
    assert not (tmp_path / "run").exists()


def test_a_damaged_tracking_file_is_refused_by_name(train, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with stopped_at(5):
        train(out=out, track=Notes())
    (out / "tracking.json").write_text('{"id": "../..", "told": {}}')
    with pytest.raises(AdaptError, match=r"tracking.json contains no valid trackers of a run: id"):
        train(out=out, resume=True, track=Notes())


def test_a_recipe_is_what_a_tracked_run_has_as_its_settings(model_folder: Path, tiny_split: Split) -> None:
    raw = {
        "method": {"name": "coop", "n_ctx": 2},
        "backbone": str(model_folder),
        "data": {"source": "tiny", "shots": None},
        "train": {"epochs": 1, "batch_size": 4, "augment": "none", "workers": 0},
    }
    notes, recipe = Notes(), build_recipe(raw, "here")
    run_recipe(recipe, None, progress=False, split=tiny_split, track=[notes])
    assert notes.runs[0].settings == recipe.model_dump(mode="json")
    assert len(notes.entries) == notes.ends[0]["steps"]
