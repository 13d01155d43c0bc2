"""Trainings in processes forked from a warm one, that can be killed; and whether two runs are the same."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_backbones
import torch

from adapt import AdaptError, fit, methods, wrap
from adapt.data import Split
from adapt.formats.adapter import read_tensors

INTERRUPTED = 130
_SETTINGS = {"epochs": 4, "batch_size": 4, "warmup_epochs": 0, "augment": "none", "workers": 0}

# method, its config, settings of the training
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "coop": ("coop", {"n_ctx": 4}, {"epochs": 6, "checkpoint_minutes": 0}),
    "views": ("coop", {"n_ctx": 4}, {"views": 3, "augment": "published", "epochs": 12}),
    "lora": (
        "lora",
        {"dropout": 0.5, "projections": "v"},
        {"augment": "published", "optimizer": "adamw", "checkpoint_minutes": 0},
    ),
    "maple": ("maple", {"n_ctx": 2, "depth": 2}, {"augment": "published", "accumulate": 2}),
    "worker": ("ivlp", {"depth_text": 2, "depth_vision": 2}, {"augment": "published", "workers": 1}),
}


def train(case: str, split: Split, out: Path, resume: bool = False) -> None:
    """The run of `case` in `out`, always from the same start."""
    method, config, settings = CASES[case]
    torch.manual_seed(0)
    model = wrap(tiny_backbones.backbone("open_clip"), methods.find(method)(**config), split.class_names)
    fit(model, split.train, split.test, out=out, resume=resume, progress=False, **_SETTINGS | settings)


def fork(action: Callable[[], None], errors: Path) -> int:
    """The id of a process that runs `action`: it ends with 0, `INTERRUPTED`, or 1 and a traceback in `errors`."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ray, where a test before this one began it, has one of its own
        action()
        code = 0
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:  # noqa: BLE001  # told to the parent, whose stack this process must not unwind
        errors.write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(code)


def join(pid: int) -> int:
    """The exit code of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stopped(case: str, split: Split, out: Path, number: int, after: float) -> int:
    """Runs `case` in a process that gets the signal `number` after so many seconds; how it ended, as `join` says."""
    pid = fork(lambda: train(case, split, out), out.with_suffix(".error"))
    time.sleep(after)
    os.kill(pid, number)
    code = join(pid)
    assert code != 1, out.with_suffix(".error").read_text()
    return code


def refused(case: str, split: Split, out: Path, size: int) -> str:
    """What `case` says where no file may become larger than `size` bytes, as on a full disk: one line, no traceback."""
    told = out.with_suffix(".told")

    def run() -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            train(case, split, out, (out / "recipe.yaml").exists())
        except AdaptError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            told.write_text(str(error))

    errors = out.with_suffix(".error")
    code = join(fork(run, errors))
    assert code == 0, errors.read_text() if errors.exists() else code
    return told.read_text()


def finish(case: str, split: Split, out: Path) -> None:
    """Goes on with a run in a process of its own, or starts it where it had not begun."""
    if (out / "metrics.json").exists():
        return
    error = out.with_suffix(".error")
    code = join(fork(lambda: train(case, split, out, (out / "recipe.yaml").exists()), error))
    assert code == 0, error.read_text() if error.exists() else code


def assert_same(one: Path, other: Path) -> None:
    """The same tensors, bit for bit, the same log and the same predictions; nothing half written is left."""
    expected, found = (read_tensors(folder / "adapter.safetensors") for folder in (one, other))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert _log(one) == _log(other)
    assert (one / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes()
    assert list(other.glob(".*.tmp")) == []


def _log(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "images_per_second"} for entry in entries]
