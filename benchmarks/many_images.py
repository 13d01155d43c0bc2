"""100,000 images in folders: `adapt data check`, and a training to its first step, beside 1,000 images."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Row

FEW, MANY, CLASSES, TESTED = 1_000, 100_000, 20, 100
COMMANDS = {
    "data check": "data check",
    "train lora, one step": "train lora --backbone mini-clip --shots all --set train.iterations=1 --data",
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Run both commands on few and on many images, and compare the largest process of each."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = {count: _images(Path(temporary) / str(count), count) for count in (FEW, MANY)}
        for case, command in COMMANDS.items():
            progress(case)
            (few, small), (many, large) = (_run(command.split(), folders[count]) for count in (FEW, MANY))
            grown = (large - small) / 2**20
            yield {
                "case": case,
                "few_seconds": few,
                "many_seconds": many,
                "grown_mib": grown,
                "text": f"{FEW:,} images {few:.1f} s, {MANY:,} images {many:.1f} s, {grown:+.0f} MiB",
            }


def _images(folder: Path, count: int) -> Path:
    """Draw images of noise in folders of classes."""
    draw = np.random.default_rng(0)
    for part, images in (("train", count), ("test", TESTED)):
        for number in range(images):
            path = folder / part / f"class {number % CLASSES}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path, compress_level=1)
    return folder


def _run(words: list[str], folder: Path) -> tuple[float, int]:
    """Return the seconds of a command, and the bytes of its largest process."""
    started = time.perf_counter()
    out = ["--out", f"{folder}-{words[0]}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "adapt", *words, str(folder), *out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"adapt {' '.join(words)} {folder} failed with {process.returncode}")
    return time.perf_counter() - started, 1024 * usage.ru_maxrss
