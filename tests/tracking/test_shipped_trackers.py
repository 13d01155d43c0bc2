"""TensorBoard, Weights & Biases and MLflow hold the numbers of log.jsonl and metrics.json, each of them once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stored_numbers
import yaml
from filelock import FileLock, Timeout
from stopping import stopped_at

from adapt import AdaptError, fit
from adapt.cli import train as command
from adapt.tracking import SHIPPED, TrackedRun
from adapt.tracking.mlflow import MLflow
from adapt.tracking.tensorboard import TensorBoard


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-settings"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def _flat(values: dict[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name != "by_class":
            found |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = value
    return found


def _logged(out: Path) -> stored_numbers.Numbers:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {
        (name, entry["step"]): value
        for entry in entries
        for name, value in _flat(entry, "train/").items()
        if name != "train/step"
    }


@pytest.mark.full
def test_a_run_that_was_killed_and_went_on_is_tracked_as_one(train, make_model, tiny_split, tmp_path: Path) -> None:
    """Killed at step 5, with a checkpoint of step 3: steps 4 and 5 are taken again, and told once."""
    out = tmp_path / "runs/one"
    options = {"out": out, "track": list(SHIPPED), "test_set": tiny_split.test, "terms": {"distill": 0.5}}
    with stopped_at(5):
        train(make_model("lora"), **options)
    assert json.loads((out / "tracking.json").read_text())["told"] == dict.fromkeys(SHIPPED.values(), 3)
    train(make_model("lora"), resume=True, **options)

    logged = _logged(out)
    assert {name for name, _ in logged} == {
        *(f"train/{name}" for name in ("loss", "accuracy", "epoch", "lr", "images_per_second")),
        *(f"train/terms/{name}" for name in ("cross_entropy", "distill")),
    }
    assert len(logged) == 7 * 9
    final = _flat(json.loads((out / "metrics.json").read_text()), "")
    assert {"adapted/accuracy", "zero_shot/accuracy", "final_loss", "adapter_bytes"} <= final.keys()
    at_the_end = {(name, 9): value for name, value in final.items()}

    assert stored_numbers.tensorboard(out) == {
        key: stored_numbers.single(value) for key, value in (logged | at_the_end).items()
    }

    numbers, run = stored_numbers.mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert numbers == logged | at_the_end
    assert (run.info.run_name, run.info.status) == ("runs/one", "FINISHED")
    assert run.data.params["method.name"] == "lora"
    assert run.data.params["train.terms.distill"] == "0.5"

    numbers, summary, ids = stored_numbers.wandb(out)
    assert numbers == logged
    assert summary.items() >= final.items()
    assert ids == {json.loads((out / "tracking.json").read_text())["id"]}


def test_settings_are_tracked_where_no_step_is_taken(train, make_model, tiny_split, tmp_path: Path) -> None:
    out = tmp_path / "runs/gda"
    result = fit(make_model("gda"), tiny_split.train, tiny_split.test, out=out, track="tensorboard", progress=False)
    told = {(name, 0): stored_numbers.single(value) for name, value in _flat(result.metrics, "").items()}
    assert stored_numbers.tensorboard(out) == told
    assert yaml.safe_load((out / "recipe.yaml").read_text())["method"]["name"] == "gda"


@pytest.mark.full
def test_settings_whose_keys_mlflow_refuses_are_tracked_all_the_same(tmp_path: Path) -> None:
    """Keys of descriptions are names of classes, whatever is in them."""
    names = ("goldfish", "red_panda", "sea cucumber")
    phrases = {"descriptions": {name: [f"a {name} {'!' * 600}"] for name in names} | {"caf\u00e9 (new)": ["?"]}}
    tracker = MLflow()
    run = TrackedRun("0123456789ab", "runs/one", {"method": phrases}, None, False, 0)
    tracker.started(run)
    tracker.finished({"seconds": 1.5})
    numbers, found = stored_numbers.mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert numbers == {("seconds", 0): 1.5}
    assert found.data.params["method.descriptions.caf\u00e9 _new_"] == "['?']"
    assert len(found.data.params["method.descriptions.goldfish"]) == 500


@pytest.mark.full
def test_runs_that_start_at_once_make_the_tables_of_a_file_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    held: list[bool] = []

    def look(self: object, name: str) -> SimpleNamespace:
        with pytest.raises(Timeout):
            FileLock(tmp_path / "mlflow.db.lock").acquire(timeout=0)
        held.append(True)
        return SimpleNamespace(experiment_id="1")

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", look)
    made = SimpleNamespace(info=SimpleNamespace(run_id="a"))
    monkeypatch.setattr(mlflow.MlflowClient, "create_run", lambda *_, **__: made)
    MLflow().started(TrackedRun("0123456789ab", "runs/one", {}, None, False, 0))
    assert held == [True]
    FileLock(tmp_path / "mlflow.db.lock").acquire(timeout=0).lock.release()


@pytest.mark.parametrize(
    ("name", "module", "library"),
    [
        ("tensorboard", "torch.utils.tensorboard", "TensorBoard"),
        ("wandb", "wandb", "Weights & Biases"),
        ("mlflow", "mlflow", "MLflow"),
    ],
)
def test_a_missing_extra_is_found_before_work_starts(
    train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, module: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = rf'^{name} as a tracker needs {library}: pip install "adapt-vlm\[{name}\]"$'
    with pytest.raises(AdaptError, match=message):
        train(out=tmp_path / "run", track=name)
    assert not (tmp_path / "run").exists()


def test_event_files_need_a_folder(train, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"TensorBoard writes into the run directory, but this run has no directory"):
        train(track="tensorboard")
    train(track=TensorBoard(tmp_path / "events"), epochs=1)
    assert ("train/loss", 3) in stored_numbers.tensorboard(tmp_path / "events")


def test_the_command_lists_the_shipped_ones() -> None:
    """It lists them itself, as its help imports no tracker."""
    [option] = [each for each in command.train.params if each.name == "track"]
    assert option.type.choices == tuple(SHIPPED)
