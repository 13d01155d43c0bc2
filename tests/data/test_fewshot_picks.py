"""All listed few-shot picks of the original code, and their halves, on the split files that CoOp published."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest

from adapt.data import Item, Split, read_split

SPLITS = Path(__file__).parents[1] / "parity" / "splits"
DATA_SETS = ("EuroSAT", "DescribableTextures", "OxfordPets", "OxfordFlowers")


@cache
def _split(name: str) -> Split:
    return read_split(SPLITS / f"split_zhou_{name}.json.gz")


def _listed(items: tuple[Item, ...], picks: tuple[Item, ...], shots: int) -> list[int] | str:
    """The positions of `picks` in `items` as the reference lists them: from 8 shots on, as a SHA-256."""
    position = {item.path: number for number, item in enumerate(items)}
    positions = [position[item.path] for item in picks]
    return positions if shots < 8 else hashlib.sha256(json.dumps(positions).encode()).hexdigest()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", DATA_SETS)
def test_the_picks_are_the_published_ones(name: str, shots: int, seed: int) -> None:
    split = _split(name)
    few = split.few_shot(shots, seed)
    reference = json.loads((SPLITS / "fewshot_picks.json").read_text())[name][f"shots{shots}-seed{seed}"]
    assert _listed(split.train, few.train, shots) == reference["train"]
    assert _listed(split.val, few.val, shots) == reference["val"]


def test_the_published_splits_have_the_published_sizes() -> None:
    sizes = {name: (len(_split(name).class_names), *map(len, _parts(_split(name)))) for name in DATA_SETS}
    assert sizes == {
        "EuroSAT": (10, 13500, 5400, 8100),
        "DescribableTextures": (47, 2820, 1128, 1692),
        "OxfordPets": (37, 2944, 736, 3669),
        "OxfordFlowers": (102, 4093, 1633, 2463),
    }
    assert _split("EuroSAT").name == "EuroSAT"
    assert _split("EuroSAT").class_names[2] == "Herbaceous Vegetation Land"


def test_the_halves_have_the_published_numbers_of_classes() -> None:
    halves = {name: [len(_split(name).only(half).class_names) for half in ("base", "new")] for name in DATA_SETS}
    assert halves == {
        "EuroSAT": [5, 5],
        "DescribableTextures": [24, 23],
        "OxfordPets": [19, 18],
        "OxfordFlowers": [51, 51],
    }


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_halves_of_the_picks_are_the_published_picks_of_their_classes(name: str) -> None:
    split = _split(name)
    names = split.class_names  # half of them, rounded up, are base
    reference = json.loads((SPLITS / "fewshot_picks.json").read_text())[name]["shots4-seed2"]["train"]
    few = split.few_shot(4, seed=2)
    for half, own in (("base", names[: -(-len(names) // 2)]), ("new", names[-(-len(names) // 2) :])):
        picks = [split.train[position] for position in reference if split.train[position].answer in own]
        assert list(few.only(half).train) == picks
        assert few.only(half).class_names == own


def _parts(split: Split) -> tuple[tuple[Item, ...], ...]:
    return split.train, split.val, split.test
