"""A run that was stopped and goes on ends exactly as one that was not."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import at_step, interrupt, kill, stopped_at

from adapt import AdaptError
from adapt.common.interrupt import stop_elsewhere
from adapt.formats import tensor_file
from adapt.formats.adapter import read_tensors
from adapt.methods.base.step import Step, Terms

_CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "features": ("coop", {"n_ctx": 4}, {}),
    "views": ("coop", {"n_ctx": 4}, {"views": 3, "augment": "published"}),
    "augmented": ("coop", {"n_ctx": 4}, {"augment": "published", "workers": 1}),
    "dropout": ("lora", {"dropout": 0.5, "projections": "v"}, {"augment": "published", "optimizer": "adamw"}),
    "accumulated": ("coop", {"n_ctx": 4}, {"accumulate": 2, "epochs": 4}),
}


def _log(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "images_per_second"} for entry in entries]


def _assert_same_run(one: Path, other: Path) -> None:
    expected, found = (read_tensors(folder / "adapter.safetensors") for folder in (one, other))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert _log(one) == _log(other)


@pytest.mark.usefixtures("in_workers")
@pytest.mark.parametrize("case", _CASES)
def test_a_run_killed_within_an_epoch_goes_on_exactly(train, make_model, tmp_path: Path, case: str) -> None:
    method, config, settings = _CASES[case]
    train(make_model(method, **config), out=tmp_path / "whole", **settings)
    settings |= {"checkpoint_minutes": 0, "out": tmp_path / "cut"}
    with stopped_at(5):
        train(make_model(method, **config), **settings)
    assert not (tmp_path / "cut/adapter.safetensors").exists()
    train(make_model(method, **config), resume=True, **settings)
    _assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_training_in_another_thread_is_stopped_and_goes_on_exactly(train, make_model, tmp_path: Path) -> None:
    train(make_model(n_ctx=4), out=tmp_path / "whole")
    with ThreadPoolExecutor(1) as pool, at_step(3, stop_elsewhere):
        stopped = pool.submit(train, make_model(n_ctx=4), out=tmp_path / "cut")
        with pytest.raises(KeyboardInterrupt):
            stopped.result()
    assert len(_log(tmp_path / "cut")) == 3
    train(make_model(n_ctx=4), resume=True, out=tmp_path / "cut")
    _assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("step", "stop"),
    [
        pytest.param(2, kill, id="before the first checkpoint"),
        pytest.param(5, kill, id="after an epoch's checkpoint"),
        pytest.param(5, interrupt, id="Ctrl-C"),
        pytest.param(9, interrupt, id="Ctrl-C at the last step"),
    ],
)
def test_wherever_a_run_is_stopped(train, tmp_path: Path, step: int, stop: Any) -> None:
    train(out=tmp_path / "whole")
    with stopped_at(step, stop):
        train(out=tmp_path / "cut")
    train(out=tmp_path / "cut", resume=True)
    _assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_log_line_cut_short_is_written_again(train, tmp_path: Path) -> None:
    train(out=tmp_path / "whole")
    with stopped_at(4):
        train(out=tmp_path / "cut")
    log = tmp_path / "cut/log.jsonl"
    log.write_text(log.read_text()[:-20])
    train(out=tmp_path / "cut", resume=True)
    _assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(("nohup", "steps"), [(False, 5), (True, 9)])
def test_a_closed_terminal_ends_a_run_unless_it_is_under_nohup(train, tmp_path: Path, nohup: bool, steps: int) -> None:
    stopping = at_step if nohup else stopped_at
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        with stopping(5, lambda: signal.raise_signal(signal.SIGHUP)):
            train(out=tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(_log(tmp_path / "run")) == steps


def test_ctrl_c_keeps_the_step_that_it_met(train, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopped_at(5, interrupt):
        train(out=tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    assert len(_log(tmp_path / "run")) == 5
    steps: list[int] = []
    with at_step(6, lambda: steps.extend(entry["step"] for entry in _log(tmp_path / "run"))):
        train(out=tmp_path / "run", resume=True)
    assert steps == [1, 2, 3, 4, 5, 6]


def _fail_from(monkeypatch: pytest.MonkeyPatch, call: int, broken: Any) -> None:
    """The cross-entropy is `broken(loss, logits)` from its `call`-th call on."""
    task_loss, calls = Step.task_loss, []

    def failing(step: Step) -> Terms:
        calls.append(1)
        terms = task_loss(step)
        return {"cross_entropy": broken(terms["cross_entropy"], step.logits)} if len(calls) >= call else terms

    monkeypatch.setattr(Step, "task_loss", failing)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        pytest.param(lambda loss, logits: loss * float("nan"), 5, id="loss"),
        # finite itself, with a gradient that is not: the values break in step 5, the loss in the next
        pytest.param(lambda loss, logits: loss + (0 * logits.sum()).sqrt(), 6, id="gradient"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: Any, named: int
) -> None:
    train(out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        _fail_from(patch, 5, broken)
        message = rf"the loss is nan at step {named}; the last good state is in \S+checkpoint.safetensors"
        with pytest.raises(AdaptError, match=message):
            train(out=tmp_path / "run", checkpoint_minutes=0)
    assert not (tmp_path / "run/adapter.safetensors").exists()
    train(out=tmp_path / "run", checkpoint_minutes=0, resume=True)
    _assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_without_a_run_directory_a_bad_loss_just_stops(train, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_from(monkeypatch, 2, lambda loss, logits: loss * float("nan"))
    with pytest.raises(AdaptError, match=r"the loss is nan at step 2: lower the learning rate"):
        train()


@pytest.mark.parametrize("out", [True, False])
def test_values_that_the_last_step_breaks_are_named(train, tmp_path: Path, out: bool) -> None:
    options: dict[str, Any] = {"lr": 3e38, "optimizer": "sgd", "epochs": None, "iterations": 1, "schedule": "constant"}
    if out:
        options["out"] = tmp_path / "run"
    with pytest.raises(AdaptError, match=r"after the last step, 1, trained values are not finite: lower the"):
        train(**options)
    assert not (tmp_path / "run/adapter.safetensors").exists()


@pytest.mark.parametrize("part", ["position", "optimizer", "scaler", "recipe", "rng.cpu", "method.ctx"])
def test_a_checkpoint_that_is_damaged_is_refused(train, tmp_path: Path, part: str) -> None:
    with stopped_at(5, interrupt):
        train(out=tmp_path / "run")
    path = tmp_path / "run/checkpoint.safetensors"
    tensors, metadata = tensor_file.read(path), tensor_file.describe(path).metadata
    if part in tensors:
        tensors[part] = tensors[part][:1].clone()
    else:
        metadata[part] = '{"step": -1}' if part == "position" else "{"
    tensor_file.write(tensors, path, metadata)
    with pytest.raises(AdaptError, match=r"checkpoint\.safetensors") as caught:
        train(out=tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_of_a_checkpoint_is_found(train, tmp_path: Path) -> None:
    with stopped_at(5, interrupt):
        train(out=tmp_path / "run")
    path = tmp_path / "run/checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdaptError, match="do not match its checksum"):
        train(out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("value", [-5, True, "much", [1]])
def test_parts_of_no_size_are_refused(train, tmp_path: Path, value: Any) -> None:
    with stopped_at(5, interrupt):
        train(out=tmp_path / "run")
    path = tmp_path / "run/environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"text_memory": value}))
    with pytest.raises(
        AdaptError, match=r"environment\.json is damaged \(text_memory is .*; expected a whole number of bytes"
    ):
        train(out=tmp_path / "run", resume=True)


@pytest.mark.full
def test_a_run_goes_on_in_the_parts_that_it_began_with(
    train, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of the classes draw their own dropout: another machine's free memory must not cut others."""
    settings: dict[str, Any] = {"checkpoint_minutes": 0}
    free = [2**21]  # bytes: a class at a time
    monkeypatch.setattr("adapt.models.dual_encoder.free_bytes", lambda device: free[0])
    method = ("lora", {"dropout": 0.5, "towers": ["text"], "projections": "v"})
    train(make_model(method[0], **method[1]), out=tmp_path / "whole", **settings)
    with stopped_at(5):
        train(make_model(method[0], **method[1]), out=tmp_path / "cut", **settings)
    free[0] = 2**34
    model = make_model(method[0], **method[1])
    train(model, out=tmp_path / "cut", resume=True, **settings)
    assert model.text_memory == 2**20
    _assert_same_run(tmp_path / "whole", tmp_path / "cut")
    train(make_model(method[0], **method[1]), out=tmp_path / "roomy", **settings)
    with pytest.raises(AssertionError):
        _assert_same_run(tmp_path / "whole", tmp_path / "roomy")
