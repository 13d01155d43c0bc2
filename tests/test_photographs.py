"""The benchmark on photographs: its sets, its draws, its recipes on small inputs, and the page that is made of it."""

from __future__ import annotations

import csv
import mmap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.common import plain
from benchmarks import photographs


@pytest.fixture
def noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty pictures of two classes in place of the packages'."""
    draw = np.random.default_rng(0)

    def source() -> Any:
        for number in range(20):
            yield ("mono0", "mono3")[number % 2], Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8))

    monkeypatch.setattr(photographs, "FOLDER", tmp_path)
    monkeypatch.setattr(photographs, "SOURCES", {"solar": source})


def test_a_draw_divides_each_class_and_another_seed_divides_it_otherwise(noise: None) -> None:
    lists = []
    for seed in (1, 2):
        with photographs.listing("solar defects", seed).open() as file:
            lists.append(list(csv.DictReader(file)))
    for rows in lists:
        counts = Counter((row["label"], row["split"]) for row in rows)
        parts = {"train": 4, "test": 6}
        assert counts == {(label, part): n for label in ("intact", "defective") for part, n in parts.items()}
        assert len({row["path"] for row in rows}) == 20
    trained = [{row["path"] for row in rows if row["split"] == "train"} for rows in lists]
    assert trained[0] != trained[1]


def test_a_set_is_written_as_a_folder_of_classes(noise: None, tmp_path: Path) -> None:
    photographs.write_folder("solar defects", tmp_path / "photos")
    found = Counter(str(path.parent.relative_to(tmp_path / "photos")) for path in (tmp_path / "photos").rglob("*.png"))
    assert found == {"train/intact": 4, "train/defective": 4, "test/intact": 6, "test/defective": 6}


def test_scikit_learn_chooses_by_folds_of_the_training_pictures() -> None:
    draw = np.random.default_rng(0)
    labels = {"train": torch.arange(12) % 3, "test": torch.arange(30) % 3}
    features = {part: draw.normal(size=(len(own), 8)) + 3 * np.eye(3, 8)[own] for part, own in labels.items()}
    accuracy, chosen = photographs._scikit_learns(features, labels)
    assert accuracy > 0.9
    assert chosen.partition(" ")[0] in {
        "LogisticRegression", "LinearDiscriminantAnalysis", "SVC", "KNeighborsClassifier",
    }  # fmt: skip
    two = {part: own[: 6 if part == "train" else 30] for part, own in labels.items()}  # of which a fold is one a class
    assert photographs._scikit_learns({part: features[part][: len(own)] for part, own in two.items()}, two)[0] > 0.5


@pytest.mark.full
def test_a_step_is_measured_in_a_process_of_its_own() -> None:
    def step() -> tuple[float, str]:
        with mmap.mmap(-1, 128 * 2**20) as fresh:  # an array may take memory that the process holds free
            fresh.write(b"1" * len(fresh))
        return 1.0, "ones"

    told = photographs._forked(step)
    assert (told["accuracy"], told["detail"]) == (1.0, "ones")
    assert told["peak_bytes"] > 100e6
    with pytest.raises(RuntimeError, match="ValueError: no"):
        photographs._forked(lambda: (_ for _ in ()).throw(ValueError("no")))


def test_tables_say_how_far_ours_is_behind() -> None:
    def cell(seed: int, ours: float, theirs: float) -> dict[str, Any]:
        ways = {"recommend": ours, "lda": 0.5, "scikit-learn": theirs, "fine-tuned": 0.25}
        measured = {
            who: {"accuracy": value, "cpu_seconds": 2.0 * seed, "peak_bytes": 2**20 * seed}
            for who, value in ways.items()
        }
        return {"set": "faces", "shots": 4, "seed": seed, "classes": 2, "train": 8, "test": 9, "methods": measured}

    cells = [cell(1, 0.7, 0.72), cell(2, 0.8, 0.86)]
    assert "| faces | 4 | 2 | 8 | 75.0 | 79.0 | 25.0 | +4.0 ± 2.0 |" in photographs.accuracies(cells)
    assert "| faces | 4 | 50.0 |" in photographs.plain_ones(cells)
    assert "| `lda` | 3.0 s, 2 MiB |" in photographs.costs(cells)


def test_the_pages_tables_are_those_of_its_file() -> None:
    page = photographs.PAGE.read_text(encoding="utf-8")
    assert photographs.with_tables(page, plain.parse(photographs.STORED.read_bytes())) == page
