"""The time of `adapt recommend` on four folders, and whether it chooses as without dropping any method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

import adapt
from adapt.choosing import recommendation
from adapt.choosing.compare import Comparison
from adapt.choosing.recommendation import Recommendation
from benchmarks.calibration import wide
from benchmarks.measure import Row
from benchmarks.ordinary_folders import write

FOLDER = Path(gettempdir()) / "adapt-choosing"
CASES = {  # folders and backbones: easy, hard, with names that say little, and with features of 1,280 numbers
    "easy": ("digits", "mini-clip"),
    "hard": ("noise", "mini-clip"),
    "weak words": ("letters", "mini-clip"),
    "wide features": ("emoji", "wide"),
}
DRAWS, SHOTS = 10, 8
CLASSES, IMAGES, SIDE = 10, 40, 64  # of noise: as many images of each class, all alike


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each folder, with all of its images for the time, and with draws of a few for the choices."""
    for case, (name, backbone) in CASES.items():
        progress(f"{case}: all images of {name}")
        chosen, seconds = _in_child(name, backbone, None, 1, False)
        same = []
        for seed in range(1, DRAWS + 1):
            (pruned, _), (full, _) = (_in_child(name, backbone, SHOTS, seed, each) for each in (False, True))
            same.append(pruned == full)
            progress(f"{case}, draw {seed}: {pruned}, without dropping any {full}")
        text = f"{seconds:.0f} CPU seconds beyond imports and encoding, {chosen} is chosen; {SHOTS} images a class: "
        yield {
            "case": case,
            "cpu_seconds": seconds,
            "same_choice": sum(same),
            "text": f"{text}as without dropping any method in {sum(same)} of {DRAWS} draws",
        }


def _in_child(name: str, backbone: str, shots: int | None, seed: int, whole: bool) -> tuple[str, float]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # whose process may have some of its own
        return pool.submit(_chosen, name, backbone, shots, seed, whole).result()


def _chosen(name: str, backbone: str, shots: int | None, seed: int, whole: bool) -> tuple[str, float]:
    """Return the method that is chosen, and the CPU seconds without encoding; `whole` if no method is dropped."""
    torch.set_num_threads(2)
    encoder, source = wide() if backbone == "wide" else adapt.load_backbone(backbone), str(_folder(name))
    encode, encoding = recommendation._features, 0.0

    def timed(*given: Any) -> object:
        nonlocal encoding
        started = time.process_time()
        features = encode(*given)
        encoding = time.process_time() - started
        return features

    def every(self: Comparison, candidate: object, *others: object) -> object:
        return self.run(candidate)  # type: ignore[arg-type]

    with (
        patch.object(recommendation, "_features", timed),
        patch.object(Comparison, "raced", every if whole else Comparison.raced),
    ):
        started = time.process_time()
        found: Recommendation = recommendation.recommend(
            source, backbone=encoder, shots=shots, seed=seed, progress=False
        )
        return found.chosen, time.process_time() - started - encoding


def _folder(name: str) -> Path:
    if name != "noise":
        return write(name, FOLDER)
    draw = np.random.default_rng(0)
    for number in range(CLASSES * IMAGES):
        path = FOLDER / name / "train" / f"class {number % CLASSES}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return FOLDER / name
