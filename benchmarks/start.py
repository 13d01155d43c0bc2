"""`adapt predict` of one image with `mini-clip`, from the start of the command, beside `import torch` alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import adapt
from benchmarks.measure import Row, by_turns

ROUNDS = 11
IMAGE = Path(__file__).parents[1] / "notebooks" / "example.png"


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time both commands by turns, in fresh processes."""
    with TemporaryDirectory() as folder:
        adapter = str(Path(folder) / "adapter.safetensors")
        adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.CoOp(), ("plant flower", "food", "animal")).save(
            adapter
        )
        commands = (["-c", "import torch"], ["-m", "adapt", "predict", adapter, str(IMAGE)])
        progress(f"{ROUNDS} rounds of two commands")
        torch_alone, predict = by_turns([_running(each) for each in commands], ROUNDS, warming=1)
    yield {
        "case": "adapt predict of one image",
        "import_torch_seconds": torch_alone,
        "predict_seconds": predict,
        "above_seconds": predict - torch_alone,
        "text": f"import torch {torch_alone:.2f} s, predict {predict:.2f} s: {predict - torch_alone:.2f} s above",
    }


def _running(arguments: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
