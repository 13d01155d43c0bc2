"""Run directories: what they hold, and what is refused with nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import adapt
from adapt import AdaptError
from adapt.training.run import Run


class Killed(BaseException):
    pass


def _kill() -> None:
    raise Killed


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
    assert {"python", "platform", "threads", "cuda"} <= environment.keys()


def test_the_log_has_a_line_for_every_step(train, out: Path) -> None:
    result = train(out=out)
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert entries == result.history
    assert [entry["step"] for entry in entries] == list(range(1, 10))
    assert [entry["epoch"] for entry in entries] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert entries[0].keys() == {"step", "epoch", "loss", "accuracy", "lr", "images_per_second"}


def test_the_adapter_of_a_run_is_the_trained_model(train, make_model, tiny_split, out: Path) -> None:
    model = make_model(n_ctx=4)
    result = train(model, test_set=tiny_split.test, out=out)
    loaded = adapt.load(result.adapter, model.backbone)
    assert adapt.evaluation.evaluate.evaluate(loaded, tiny_split.test).accuracy == result.accuracy
    assert loaded.metadata["metrics"]["adapted"]["accuracy"] == result.accuracy


def _start(train, at_step, out: Path) -> None:
    """A run that was killed at step 5."""
    at_step(5, _kill)
    with pytest.raises(Killed):
        train(out=out)


_REFUSALS: dict[str, tuple[dict[str, object], str]] = {
    "exists": ({}, r"already holds a run: choose another --out, or go on with it by --resume"),
    "another recipe": ({"resume": True, "lr": 0.5}, r"was started with another recipe \(.*recipe\.yaml\)"),
}


@pytest.mark.parametrize("case", _REFUSALS)
def test_an_interrupted_run_is_not_lost_by(train, at_step, out: Path, case: str) -> None:
    options, message = _REFUSALS[case]
    _start(train, at_step, out)
    before = _contents(out)
    with pytest.raises(AdaptError, match=message):
        train(out=out, **options)
    assert _contents(out) == before


@pytest.mark.parametrize(("resume", "message"), [(False, "already holds a run"), (True, "is complete: nothing to")])
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
    with pytest.raises(AdaptError, match="already holds a run"):
        train(out=out, epochs=1)
    with FileLock(out / ".lock", timeout=0):
        pass


def test_nothing_to_resume(train, out: Path) -> None:
    with pytest.raises(AdaptError, match="holds no run to resume; leave out --resume"):
        train(out=out, resume=True)


def test_a_file_is_no_run_directory(train, out: Path) -> None:
    out.parent.mkdir()
    out.write_text("precious")
    with pytest.raises(AdaptError, match="is a file; a run needs a directory"):
        train(out=out)
    assert out.read_text() == "precious"


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _of_another_recipe(content: bytes) -> bytes:
    at = content.index(b'"recipe":"') + len('"recipe":"')
    return content[:at] + b"0" * 16 + content[at + 16 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_truncate, "is truncated or damaged"), (_of_another_recipe, "is of another recipe")],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    train, at_step, out: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    _start(train, at_step, out)
    checkpoint = out / "checkpoint.safetensors"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    before = _contents(out)
    with pytest.raises(AdaptError, match=message):
        train(out=out, resume=True)
    assert _contents(out) == before


def test_a_run_refused_before_training_leaves_its_directory_free(train, out: Path) -> None:
    with pytest.raises(AdaptError, match="fp16 needs a CUDA device"):
        train(out=out, precision="fp16")
    assert train(out=out, epochs=1).adapter == out / "adapter.safetensors"


def test_a_full_disk_keeps_the_last_checkpoint(train, at_step, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        at_step(5, lambda: patch.setattr("safetensors.torch.save_file", full))
        with pytest.raises(AdaptError, match="No space left on device"):
            train(out=out)
    assert list(out.glob(".*.tmp")) == []
    assert train(out=out, resume=True).metrics["steps"] == 9
