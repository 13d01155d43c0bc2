"""Three hundred made-up rows: each is read as a person would, or refused; none is read otherwise in silence."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from made_up_rows import ASKED, PICTURES, MadeUp, made_up
from PIL import Image

import adapt
from adapt import AdaptError
from adapt.data.checks import read_leniently
from adapt.data.item import Item


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in PICTURES:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def read(folder: Path, *rows: Any) -> list[Item]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return list(adapt.data.load(path).items())


def reading(item: Item) -> tuple[Any, ...]:
    """What was read of a row, in the terms of an account."""
    label: Any = item.label
    said = [(turn.role, [*turn.parts]) for turn in label.chat.turns]
    return said, [Path(path).name for path in item.paths], getattr(label, "rejected", "")


def expected(made: MadeUp) -> tuple[Any, ...]:
    return made.said.turns(), [*made.said.pictures], made.said.worse


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 300), pytest.param(1, 3000, marks=[pytest.mark.full, pytest.mark.at_length])]
)
def test_each_is_read_as_a_person_would_or_refused(seed: int, count: int, folder: Path) -> None:
    otherwise, ends = Counter[str](), Counter[str]()
    for made in made_up(seed, count):
        try:
            [item] = read(folder, made.row)
        except AdaptError as error:
            ends["refused"] += 1
            otherwise[f"{made.what}: {error}"] += made.outcome == "read" or "rows.jsonl" not in str(error)
        else:
            ends["read"] += 1
            otherwise[made.what] += made.outcome == "refused" or reading(item) != expected(made)
    assert +otherwise == {}
    assert min(ends["read"], ends["refused"]) > count / 3


def test_rows_of_all_dialects_in_one_file(folder: Path) -> None:
    usual = [made for made in made_up(2, 200) if made.outcome == "read" and not made.said.worse]
    split = adapt.data.load(_written(folder, [made.row | {"split": "test"} for made in usual]))
    assert [reading(item) for item in split.test] == [expected(made) for made in usual]


def test_every_bad_row_is_listed(folder: Path) -> None:
    """By its number; the others are read."""
    made = [each for each in made_up(3, 100) if each.outcome != "either" and not each.said.worse]
    bad = [number for number, each in enumerate(made, 1) if each.outcome == "refused"]
    split, problems = read_leniently(str(_written(folder, [each.row for each in made])), None)
    assert [int(problem.partition(" row ")[2].split()[0].rstrip(":")) for problem in problems] == bad
    assert len([*split.items()]) == len(made) - len(bad)
    none, problems = read_leniently(str(_written(folder, [{"question": "what?", "answer": 5}] * 3)), None)
    assert len(problems) == 4  # and that no row is left
    assert [*none.items()] == []


def test_a_line_that_is_no_json_is_listed_among_the_others(folder: Path) -> None:
    row = json.dumps({"question": "what?", "answer": "a dog"})
    path = folder / "rows.jsonl"
    path.write_text("\n".join([row, '{"question": "what?"', "", row, json.dumps({"question": "what?", "answer": 5})]))
    split, problems = read_leniently(str(path), None)
    assert len([*split.items()]) == 2
    assert [problem.partition("rows.jsonl' ")[2].partition(":")[0] for problem in problems] == [
        "row 2 is no JSON",
        "row 4",
    ]
    with pytest.raises(AdaptError, match=r"row 2 is no JSON: line 2: Expecting ',' delimiter"):
        adapt.data.load(path)


def test_keys_that_are_not_read_are_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(folder, *[{"question": "what?", "answer": "a dog", "difficulty": 3, "id": 1, "note": "hm"}] * 9)
    assert [message.partition("rows.jsonl")[2] for message in caplog.messages] == [
        "': ignored: difficulty (9 rows), note (9 rows)"
    ]


def test_rows_whose_image_is_null_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = {"question": "what?", "answer": "a dog"}
    both = asked | {"image": None, "images": ["8.png"]}
    items = read(folder, asked | {"image": "7.png"}, asked | {"image": None}, asked, both)
    assert sorted(len(item.paths) for item in items) == [0, 0, 1, 1]
    assert [message.partition("rows.jsonl")[2] for message in caplog.messages] == [
        "': 1 rows have null for an image: they are learned without one"
    ]


@pytest.mark.parametrize("columns", ["path question label", "label path question split", "question path label id"])
def test_lists_of_questions(columns: str, folder: Path) -> None:
    """A CSV is read by the names of its columns, in any order, or refused by the name of one."""
    draw, names = random.Random(columns), columns.split()
    rows = [
        {"path": draw.choice(PICTURES), "question": draw.choice(ASKED), "label": f"a, b {number}"} | {"id": 1}
        for number in range(20)
    ]
    for number, row in enumerate(rows):
        row["split"] = "train" if number < 5 else "test"
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    if "id" in names:
        with pytest.raises(AdaptError, match="unknown column 'id'"):
            adapt.data.load(folder / "rows.csv")
        return
    items = sorted(adapt.data.load(folder / "rows.csv").items(), key=lambda item: int(item.answer.split()[-1]))
    read_ones = [(Path(item.path).name, item.label.columns["question"], item.answer) for item in items]
    assert read_ones == [(row["path"], row["question"], row["label"]) for row in rows]


def test_every_bad_line_of_a_csv_is_listed(folder: Path) -> None:
    lines = ["path,question,label", "7.png,what?,a dog", "../7.png,what?,a dog", "8.png,what?,", "8.png,what?,a,b"]
    (folder / "rows.csv").write_text("\n".join([*lines, "8.png,what?,a cat"]))
    split, problems = read_leniently(str(folder / "rows.csv"), None)
    assert sorted(item.answer for item in split.items()) == ["a cat", "a dog"]
    assert [problem.partition(" line ")[2].partition(":")[0] for problem in problems] == ["3", "4", "5"]


def _written(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path
