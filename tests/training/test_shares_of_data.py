"""A training says how many items it learns, chooses on, tests and leaves out, and learns from all if it is asked to."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from adapt.recipe import read_recipe
from adapt.training.dry_run import planned
from adapt.training.run_recipe import listed_data, run_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty different pictures each of two colours, and lists of them for other tasks."""
    home = tmp_path_factory.mktemp("shares")
    names = [f"{name}/{number}.png" for name in ("red", "blue") for number in range(20)]
    (home / "photos").mkdir()
    for number, name in enumerate(names):
        path = home / "photos" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (200 * (number < 20), number, 200 * (number >= 20))).save(path)
    rows = {
        "chats": {"query": "What is it?", "response": "a colour"},
        "preferences": {"query": "What is it?", "chosen": "a colour", "rejected": "a cat"},
        "captions": {"caption": "a colour"},
    }
    for task, row in rows.items():
        (home / f"{task}.json").write_text(json.dumps([row | {"image": f"photos/{name}"} for name in names]))
    columns = {"questions": ("question,label", "Red?,yes"), "targets": ("target", "3"), "labels": ("labels", "a|b")}
    for task, (more, cells) in columns.items():
        lines = [f"photos/{name},{cells.replace('3', str(at))}" for at, name in enumerate(names)]
        (home / f"{task}.csv").write_text("\n".join([f"path,{more}", *lines]))
    return home


def _told(recipe: str, source: Path, *settings: str) -> str:
    [line] = [line for line in planned(read_recipe(recipe, settings, str(source))) if line.startswith("data ")]
    return line.removeprefix("data       ").removesuffix(" (data.learned=all learns from all)")


NATIVE = "backbone=mini-vlm"


@pytest.mark.parametrize(
    ("recipe", "source", "settings", "told"),
    [
        ("coop", "photos", ["data.shots=null"], "28 items learned, 0 chosen on, 12 tested, 0 left out"),
        ("coop", "photos", ["data.shots=4"], "8 items learned, 0 chosen on, 12 tested, 20 left out"),
        (
            "coop",
            "photos",
            ["train.holdout=0.25", "data.shots=8"],
            "12 items learned, 4 chosen on, 12 tested, 12 left out",
        ),
        ("coop", "labels.csv", ["data.shots=null"], "28 items learned, 0 chosen on, 12 tested, 0 left out"),
        ("ridge", "targets.csv", ["data.shots=null"], "30 items learned, 0 chosen on, 10 tested, 0 left out"),
        ("lora/chats", "chats.json", [NATIVE], "28 items learned, 0 chosen on, 12 tested, 0 left out"),
        ("lora/chats", "questions.csv", [NATIVE], "28 items learned, 0 chosen on, 12 tested, 0 left out"),
        (
            "lora/preferences",
            "preferences.json",
            [NATIVE],
            "28 items learned, 0 chosen on, 12 tested, 0 left out",
        ),
        ("lora", "captions.json", ["data.shots=null"], "28 items learned, 0 chosen on, 12 tested, 0 left out"),
    ],
)
def test_a_line_tells_the_shares(folder: Path, recipe: str, source: str, settings: list[str], told: str) -> None:
    settings = settings + ["backbone=mini-clip"] * (NATIVE not in settings)
    assert _told(recipe, folder / source, *settings) == told
    learned = _told(recipe, folder / source, *settings, "data.learned=all", "data.shots=null")
    assert learned.endswith(" chosen on, 0 tested, 0 left out")
    assert sum(int(each.split()[0]) for each in learned.split(", ")) == 40


def test_images_learned_without_a_label_are_learned(folder: Path) -> None:
    words = ["data.shots=4", "data.rest=unlabelled", "backbone=mini-clip"]
    told = _told("ss_text/unlabelled", folder / "photos", *words)
    assert told == "28 items learned, 0 chosen on, 12 tested, 0 left out"


def test_training_says_it_and_learns_from_all(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def trained(*settings: str, progress: bool = True) -> tuple[list[str], dict[str, object]]:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            recipe = read_recipe("gda", ["backbone=mini-clip", "data.shots=null", *settings], str(folder / "photos"))
            result = run_recipe(recipe, None, progress=progress)
        return [line for line in caplog.messages if line.startswith("data ")], result.metrics

    [line], metrics = trained()
    told = "28 items learned, 0 chosen on, 12 tested, 0 left out (data.learned=all learns from all)"
    assert line == f"data       {told}"
    assert metrics["train_images"] == 28
    [line], metrics = trained("data.learned=all")
    assert line == "data       40 items learned, 0 chosen on, 0 tested, 0 left out"
    assert (metrics["train_images"], "adapted" in metrics) == (40, False)
    assert trained(progress=False)[0] == []


def test_a_domain_is_left_out_of_all(tmp_path: Path) -> None:
    for number, name in enumerate(("x/a", "x/b", "y/a", "y/b")):
        (tmp_path / "d" / name).mkdir(parents=True)
        for place in range(5):
            Image.new("RGB", (8, 8), (number, place, 9)).save(tmp_path / "d" / name / f"{place}.png")
    words = ["data.learned=all", "data.leave_out=y", "data.shots=null", "backbone=mini-clip"]
    split = listed_data(read_recipe("coop", words, f"domains:{tmp_path / 'd'}"))
    assert [{item.domain for item in part} for part in (split.train, split.val, split.test)] == [{"x"}, set(), {"y"}]
    assert (len(split.train), len(split.test), split.rows) == (10, 10, 20)
