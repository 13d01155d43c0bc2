"""A folder of images, and a run over it: what the commands are given."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from adapt.cli import main

Run = Callable[..., Result]

_COLOURS = {"goldfish": (230, 60, 40), "lime tree": (40, 200, 70), "sky": (50, 80, 220)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/`, `val/` and `test/` with two images of each of three classes."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for number, part in enumerate(("train", "val", "test")):
        for name, colour in _COLOURS.items():
            for i in range(2):
                path = folder / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 32), tuple(value + 5 * number + i for value in colour)).save(path)
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, photos: Path) -> Path:
    """A CoOp recipe of two steps."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(
        f"method: {{name: coop, n_ctx: 2}}\nbackbone: {model_folder}\ndata: {{source: {photos}, shots: 2}}\n"
        "train: {epochs: 2, augment: none, workers: 0}\n"
    )
    return path


@pytest.fixture
def run() -> Run:
    """`run(*arguments)`: the command line, in this process."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Callable[[str], Path]:
    """`trained(method)`: the run directory of `coop` or `lora`, trained once."""
    runs: dict[str, Path] = {}
    lora = ("method={name: lora, projections: v}", "train.optimizer=adamw", "train.lr=0.1", "train.warmup_epochs=0")
    methods = {"coop": [], "lora": [f"--set={override}" for override in lora]}

    def get(method: str) -> Path:
        if method not in runs:
            out = tmp_path_factory.mktemp("runs") / method
            result = CliRunner().invoke(main, ["train", str(recipe), "--out", str(out), "--quiet", *methods[method]])
            assert result.exit_code == 0, result.stderr
            runs[method] = out
        return runs[method]

    return get


@pytest.fixture
def adapter(trained: Callable[[str], Path]) -> Path:
    """A trained CoOp adapter."""
    return trained("coop") / "adapter.safetensors"


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The real command, as a user runs it."""
    command = [sys.executable, "-m", "adapt", *map(str, arguments)]
    shown = "default,ignore:Implicitly cleaning up:ResourceWarning"  # folders that torch 2.6 leaves until the end
    environment = os.environ | {"PYTHONWARNINGS": shown, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


@pytest.fixture
def real() -> Callable[..., subprocess.Popen[str]]:
    return start


def refused(result: Result, *words: str) -> None:
    """A user's mistake: exit code 2 and one line on stderr that says so, perhaps below the backbone's and the run's."""
    assert result.exit_code == 2, result.output
    said = re.sub(r"\Abackbone   .*\n(?: {11}.*\n)?(?:run        .*\n)?", "", result.stderr)
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert "Traceback" not in result.output
    for word in words:
        assert word in said


@pytest.fixture(name="refused")
def _refused() -> Callable[..., None]:
    return refused
