"""The stored cases: each is described, whole and used, and together they stay small."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import published
import pytest
import stored_keys
import torch

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in published.CASES.glob("*.json"))


def test_each_case_is_described_and_has_both_files() -> None:
    [table] = re.findall(r"\| case \|.*?\n\n", (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    described = [name for line in table.strip().splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(described) == NAMES
    assert sorted(path.stem for path in published.CASES.glob("*.safetensors")) == NAMES
    assert len(list(published.CASES.iterdir())) == 2 * len(NAMES)


def test_each_stored_key_has_one_place_in_the_list() -> None:
    """And each pattern of the list is of some key."""
    assert sorted(stored_keys.TABLE) == NAMES
    for name in NAMES:
        found = {key: stored_keys.places(name, key) for key in published.keys(name)}
        assert {key: places for key, places in found.items() if len(places) != 1} == {}
        for place in ("given", *stored_keys.tests(name)):
            for pattern in stored_keys.TABLE[name][place]:
                assert any(fnmatchcase(key, pattern) for key in found), f"{name}: {place} has {pattern!r}"
        reasons = stored_keys.TABLE[name].get("unread", {})
        assert set(reasons) <= {key for key in reasons if any(fnmatchcase(each, key) for each in found)}
        assert all(reasons.values())


def test_each_test_of_the_list_runs_with_its_cases() -> None:
    for name in NAMES:
        assert stored_keys.tests(name), f"nothing is compared with {name}"
        for test in stored_keys.tests(name):
            cases = stored_keys.parameters(test)
            assert cases is None or name in cases, f"{test} does not run with {name}"


def test_a_name_is_of_one_test() -> None:
    """Or else the list would not say which."""
    names = [
        name for path in FOLDER.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    ]
    assert len(set(names)) == len(names) > 50


def test_a_key_that_is_not_compared_is_noticed() -> None:
    published.USED.clear()
    _, expected = published.case("taskres")
    expected["logits"]  # reading is not comparing
    missing = [*stored_keys.faults("test_task_res", None)]
    assert "test_task_res compares nothing with logits of taskres, and keys.toml says that it does" in missing
    assert "test_task_res does not read labels of taskres, and keys.toml says that it is given" in missing
    with pytest.raises(AssertionError, match="taskres: logits is off by"):
        expected.scaled("logits", expected["logits"] + 1)
    with pytest.raises(AssertionError, match="taskres: logits is off by nan"):
        expected.scaled("logits", expected["logits"] * torch.nan)
    expected.scaled("logits", expected["logits"] + 1e-7)
    assert not any("with logits of" in each for each in stored_keys.faults("test_task_res", None))


def test_the_numbers_stay_small() -> None:
    files = [path for path in FOLDER.rglob("*") if "__pycache__" not in path.parts and path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30 * 2**20
