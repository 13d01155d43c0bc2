"""What a plain command enters: code that is added for one feature must not run for all others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from adapt.cli import main
from adapt.data import load
from adapt.data.decoding.files import read_bytes

# as last measured; the test allows five per cent more
TRAIN = {"files": 102, "functions": 830, "calls": 632, "modules": 125}
PREDICT = {"files": 55, "functions": 424, "calls": 286, "modules": 71}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six classes with eight pictures each."""
    folder = tmp_path_factory.mktemp("photos")
    split = load("emoji").few_shot(8, 1)
    for number, item in enumerate(each for each in split.train if each.answer in split.class_names[:6]):
        (folder / item.answer).mkdir(exist_ok=True)
        (folder / item.answer / f"{number}.png").write_bytes(read_bytes(item.path))
    return folder


@pytest.mark.full
def test_a_plain_training_and_prediction_enter_no_more_than_before(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("train", "coop", "--backbone", "mini-clip", "--shots", 4, "--set", "train.epochs=1", "--data", photos)
    first = CliRunner().invoke(main, [*map(str, train), "--out", str(tmp_path / "first")])  # which fills the caches
    assert first.exit_code == 0, first.output
    measured = {
        "train": _numbers(*train, "--out", run),
        "predict": _numbers("predict", run, next(photos.rglob("*.png"))),
    }
    for command, before in (("train", TRAIN), ("predict", PREDICT)):
        for name, number in before.items():
            assert measured[command][name] <= 1.05 * number, f"{command} enters {measured[command][name]} {name}"


def _numbers(*command: object) -> dict[str, int]:
    words = [sys.executable, str(Path(__file__).with_name("entered.py")), *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    numbers: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return numbers
