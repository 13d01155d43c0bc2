"""Run directories: what they hold, and what is refused with nothing lost."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from stopping import at_step, stopped_at

import adapt
from adapt import AdaptError
from adapt.data import open_image
from adapt.data.decoding.files import file_id
from adapt.formats import tensor_file
from adapt.formats.adapter import read_header, read_tensors
from adapt.training.run import Run
from adapt.training.start import start_from


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs/one"


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.name != ".lock" and path.is_file()}


def test_what_a_run_leaves(train, tiny_split, out: Path) -> None:
    result = train(test_set=tiny_split.test, out=out)
    assert {path.name for path in out.iterdir()} - {".lock"} == {
        "adapter.safetensors",
        "environment.json",
        "log.jsonl",
        "metrics.json",
        "predictions.csv",
        "recipe.yaml",
        "seen_images.csv",
        "train_images.csv",
    }
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == result.metrics
    assert 0 <= metrics["zero_shot"]["accuracy"] <= 1
    assert 0 <= metrics["adapted"]["accuracy"] <= 1
    assert metrics["adapted"]["images"] == len(tiny_split.test)
    assert metrics["seconds"] > 0
    assert metrics["steps"] == 9
    assert metrics["trainable_parameters"] == 4 * 128
    assert metrics["train_images"] == 12
    assert metrics["adapter_bytes"] == (out / "adapter.safetensors").stat().st_size
    environment = json.loads((out / "environment.json").read_text())
    assert environment["versions"]["adapt"] == adapt.__version__
    assert {"torch", "torchvision", "pillow"} <= environment["versions"].keys()
    assert {"python", "platform", "threads", "accelerator"} <= environment.keys()


def test_the_log_has_a_line_for_every_step(train, out: Path) -> None:
    result = train(out=out)
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert entries == result.history
    assert [entry["step"] for entry in entries] == list(range(1, 10))
    assert [entry["epoch"] for entry in entries] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert entries[0].keys() == {"step", "epoch", "loss", "accuracy", "lr", "images_per_second"}


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_agree_with_the_metrics(train, tiny_split, out: Path) -> None:
    test_set = tiny_split.test[1:] + tiny_split.val  # three, four and four of the classes
    train(test_set=test_set, out=out, epochs=1)
    rows = _read_csv(out / "predictions.csv")
    metrics = json.loads((out / "metrics.json").read_text())["adapted"]
    assert [(row["path"], row["class"]) for row in rows] == [(item.path, item.answer) for item in test_set]
    right = np.array([row["class"] == row["predicted"] for row in rows])
    of_class = {name: right[[row["class"] == name for row in rows]] for name in tiny_split.class_names}
    assert {len(hits) for hits in of_class.values()} == {3, 4}
    assert metrics["accuracy"] == right.mean() != metrics["mean_class_accuracy"]
    assert metrics["by_class"] == {name: pytest.approx(hits.mean()) for name, hits in of_class.items()}
    assert metrics["mean_class_accuracy"] == pytest.approx(np.mean([hits.mean() for hits in of_class.values()]))
    confidence = np.array([float(row["confidence"]) for row in rows])
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs((confidence - right)[bins == each].sum()) for each in range(15)]
    answered = confidence >= 0.4
    by_threshold = {row["threshold"]: row for row in metrics["by_threshold"]}
    assert by_threshold[0]["accuracy"] == metrics["accuracy"]
    assert by_threshold[0.4]["answered"] == answered.sum() > 0
    assert by_threshold[0.4]["accuracy"] == pytest.approx(right[answered].mean())
    assert metrics["calibration_error"] == pytest.approx(sum(gaps) / len(rows), abs=1e-6)  # six digits are kept


def test_predictions_are_those_of_the_adapter(train, make_model, tiny_split, out: Path) -> None:
    model = make_model(n_ctx=4)
    train(model, test_set=tiny_split.test, out=out)
    loaded = adapt.load(out / "adapter.safetensors", model.backbone).eval()
    transform = model.backbone.transform(train=False)
    with torch.inference_mode():
        chances = loaded(torch.stack([transform(open_image(item)) for item in tiny_split.test])).softmax(-1)
    rows = _read_csv(out / "predictions.csv")
    assert [row["predicted"] for row in rows] == [tiny_split.class_names[i] for i in chances.argmax(-1)]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(chances.max(-1).values.tolist(), abs=1e-5)


def test_without_test_images_there_are_no_predictions(train, out: Path) -> None:
    train(out=out, epochs=1)
    assert not (out / "predictions.csv").exists()
    assert "adapted" not in json.loads((out / "metrics.json").read_text())


def test_what_grows_with_the_classes_stays_out_of_the_adapter(train, tiny_split, out: Path) -> None:
    kept = read_header(train(test_set=tiny_split.test, out=out, epochs=1).adapter).metrics["adapted"]
    assert kept.keys() == {"accuracy", "images", "mean_class_accuracy", "calibration_error", "intervals", "groups"}
    assert kept["intervals"].keys() == {"accuracy", "mean_class_accuracy"}


def test_images_that_a_run_has_seen_are_known_by_their_ids(train, tiny_split, out: Path) -> None:
    train(out=out, epochs=1)
    rows = [{"image": file_id(item.path), "part": "train", "path": item.path} for item in tiny_split.train]
    assert _read_csv(out / "seen_images.csv") == rows


def test_the_picks_are_the_training_images_in_order(train, tiny_split, out: Path) -> None:
    train(out=out, epochs=1)
    rows = [{"path": item.path, "class": item.answer} for item in tiny_split.train]
    assert _read_csv(out / "train_images.csv") == rows


def test_the_adapter_of_a_run_is_the_trained_model(train, make_model, tiny_split, out: Path) -> None:
    model = make_model(n_ctx=4)
    result = train(model, test_set=tiny_split.test, out=out)
    loaded = adapt.load(result.adapter, model.backbone)
    assert adapt.evaluation.evaluate.evaluate(loaded, tiny_split.test).accuracy == result.accuracy
    assert loaded.metadata["metrics"]["adapted"]["accuracy"] == result.accuracy


def _truncate(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])


def _of_another_recipe(checkpoint: Path) -> None:
    metadata = tensor_file.describe(checkpoint).metadata
    tensor_file.write(tensor_file.read(checkpoint), checkpoint, metadata | {"recipe": "0" * 16})


_REFUSALS: dict[str, tuple[Callable[[Path], None] | None, dict[str, object], str]] = {
    "exists": (
        None,
        {},
        r"already contains a run: choose another --out \(out=\), or continue the run with --resume \(resume=True\)",
    ),
    "another recipe": (None, {"resume": True, "lr": 0.5}, r"was started with another recipe \(.*recipe\.yaml\)"),
    "a truncated checkpoint": (_truncate, {"resume": True}, "is truncated or damaged.*start a new run with another"),
    "a checkpoint of another recipe": (_of_another_recipe, {"resume": True}, "belongs to another recipe"),
}


def test_other_images_under_the_same_names_are_another_run(train, tiny_split, out: Path) -> None:
    with stopped_at(5):
        train(out=out)
    first, *_, last = (Path(item.path) for item in tiny_split.train)
    first.write_bytes(last.read_bytes())
    with pytest.raises(AdaptError, match="belongs to another recipe, to other images"):
        train(out=out, resume=True)


def test_another_adapter_under_the_name_of_the_start_is_another_run(train, make_model, out: Path) -> None:
    start = out.parent / "start.safetensors"
    made = make_model(n_ctx=4)
    for moved in (0.0, 0.1):
        with torch.no_grad():
            next(made.method.parameters()).add_(moved)
        start.unlink(missing_ok=True)
        made.save(start)
        model = make_model(n_ctx=4)
        start_from(model, start)
        if not moved:
            with stopped_at(5):
                train(model, out=out)
    with pytest.raises(AdaptError, match=r"belongs to .*or to another adapter as the start"):
        train(model, out=out, resume=True)


def test_a_run_that_goes_on_under_other_versions_says_so(train, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    with stopped_at(5):
        train(out=out)
    begun = json.loads((out / "environment.json").read_text())
    begun["versions"]["torch"] = "1.0"
    (out / "environment.json").write_text(json.dumps(begun))
    train(out=out, resume=True)
    [message] = [message for message in caplog.messages if "was begun with" in message]
    assert message.startswith(f"this run was begun with torch 1.0, and continues with {version('torch')}: ")
    recorded = json.loads((out / "environment.json").read_text())
    assert recorded["versions"]["torch"] == "1.0"
    assert [each["versions"]["torch"] for each in recorded["resumed_in"]] == [version("torch")]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_training_learns_where_gradients_are_off(train, make_model, context: Any, tmp_path: Path) -> None:
    train(make_model(n_ctx=4), out=tmp_path / "one")
    model = make_model(n_ctx=4)
    with context():
        train(model, out=tmp_path / "other")
    one, other = (read_tensors(tmp_path / name / "adapter.safetensors") for name in ("one", "other"))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


@pytest.mark.parametrize("case", _REFUSALS)
def test_an_interrupted_run_is_not_lost_by(train, out: Path, case: str) -> None:
    damage, options, message = _REFUSALS[case]
    with stopped_at(5):
        train(out=out)
    if damage is not None:
        damage(out / "checkpoint.safetensors")
    before = _contents(out)
    with pytest.raises(AdaptError, match=message):
        train(out=out, **options)
    assert _contents(out) == before


@pytest.mark.parametrize(
    ("resume", "message"), [(False, "already contains a run"), (True, "is complete and cannot be")]
)
def test_a_complete_run_is_neither_overwritten_nor_resumed(train, out: Path, resume: bool, message: str) -> None:
    train(out=out, epochs=1)
    before = _contents(out)
    with pytest.raises(AdaptError, match=message):
        train(out=out, epochs=1, resume=resume)
    assert _contents(out) == before


def test_a_directory_in_use_is_refused(train, out: Path) -> None:
    with Run(out, "recipe", resume=False):
        before = _contents(out)
        with pytest.raises(AdaptError, match="is in use by another run"):
            train(out=out)
        assert _contents(out) == before


def test_the_lock_is_free_again_after_a_refusal(train, out: Path) -> None:
    train(out=out, epochs=1)
    with pytest.raises(AdaptError, match="already contains a run"):
        train(out=out, epochs=1)
    with FileLock(out / ".lock", timeout=0):
        pass


def test_nothing_to_resume(train, out: Path) -> None:
    with pytest.raises(AdaptError, match="contains no run to resume: leave out --resume"):
        train(out=out, resume=True)


def test_a_run_that_ended_before_its_first_file_begins(train, out: Path) -> None:
    out.mkdir(parents=True)
    (out / ".lock").touch()
    assert train(out=out, resume=True).adapter.is_file()


def test_a_file_is_no_run_directory(train, out: Path) -> None:
    out.parent.mkdir()
    out.write_text("precious")
    with pytest.raises(AdaptError, match="is a file, but a run needs a directory"):
        train(out=out)
    assert out.read_text() == "precious"


def test_a_run_refused_before_training_leaves_its_directory_free(train, out: Path) -> None:
    with pytest.raises(AdaptError, match="fp16 needs a CUDA device"):
        train(out=out, precision="fp16")
    assert train(out=out, epochs=1).adapter == out / "adapter.safetensors"


def test_a_full_disk_keeps_the_last_checkpoint(train, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    breaks = at_step(5, lambda: monkeypatch.setattr("safetensors.torch.save_file", full))
    with breaks, pytest.raises(AdaptError, match="No space left on device"):
        train(out=out)
    monkeypatch.undo()
    assert list(out.glob(".*.tmp")) == []
    assert train(out=out, resume=True).metrics["steps"] == 9


@pytest.mark.parametrize(
    ("file", "damage"), [("log.jsonl", b"[]"), ("log.jsonl", b'{"epoch": 1'), ("log.jsonl", b"\xff")]
)
def test_a_log_that_was_changed_is_refused_by_name(train, out: Path, file: str, damage: bytes) -> None:
    with stopped_at(5):
        train(out=out)
    lines = (out / file).read_bytes().splitlines()
    (out / file).write_bytes(b"\n".join([damage, *lines[1:]]) + b"\n")
    with pytest.raises(AdaptError, match=rf"{file} is damaged .*: train again with another --out"):
        train(out=out, resume=True)
