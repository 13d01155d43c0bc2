"""The pictures of a report: small, with files' names and classes, and no more than fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapt import AdaptError
from adapt.common.disk import write_csv
from adapt.data import Split
from adapt.protocols.report import MOST_PICTURES, THUMBNAIL, galleries, report
from adapt.recipe import Recipe
from adapt.training.run_recipe import run_recipe

METHODS = [
    {"method": name, "accuracy": 0.5, "error": 0.03, "seconds": 1.0, "adapter_bytes": 2048, "command": command}
    for name, command in (("gda", "adapt train gda --data 'my photos' --set " + 40 * "x"), ("coop", "adapt train coop"))
]
RECOMMENDED = {
    "data": "photos", "backbone": "tiny", "folds": 3, "train_images": 9, "classes": 5, "chosen": "gda", "alike": [],
    "methods": METHODS, "left_out": {}, "notes": [], "advice": ["look at the lists"],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    run_recipe(recipe, out, progress=False)
    return out


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A run that `recommend` made, without lists."""
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "run/recommendation.json").write_text(json.dumps(RECOMMENDED))
    return tmp_path / "run"


def suspects(paths: list[str]) -> list[dict[str, Any]]:
    return [{"path": path, "class": "cat", "likelier": "<b>dog</b>", "share": 0.01} for path in paths]


def test_each_list_has_its_pictures(run: Path, split: Split, tmp_path: Path) -> None:
    one, other = (item.path for item in split.train[:2])
    write_csv(run / "suspects.csv", suspects([one, str(tmp_path / "gone.png")]))
    write_csv(run / "confused.csv", [{"path": one, "class": "=cat", "predicted": "fox", "confidence": 0.9}])
    pair = {"path": other, "part": "test", "class": "cat", "train_path": one, "train_class": "dog", "correlation": 0.99}
    write_csv(run / "duplicates.csv", [pair])
    against = {"path": one, "class": "cat", "other_path": other, "other_class": "dog"}
    write_csv(run / "contradictions.csv", [against])
    found = list(galleries(run))
    assert [each.file for each in found] == ["contradictions.csv", "suspects.csv", "duplicates.csv", "confused.csv"]
    said = [[(picture.name, picture.caption) for picture in entry] for each in found for entry in each.entries]
    name, second = Path(one).name, Path(other).name
    assert said == [
        [(name, "cat"), (second, "dog")],
        [(name, "labelled cat, looks like <b>dog</b>")],
        [("gone.png", "labelled cat, looks like <b>dog</b>")],
        [(second, "test: cat"), (name, "train: dog")],
        [(name, "=cat, classified as fox")],
    ]
    html, before = report([run]), report([_without_lists(run, tmp_path)])
    assert html.count("data:image/jpeg;base64,") == before.count("data:image/jpeg;base64,") + 6
    assert html.count("image not<br>found") == 1
    assert "looks like &lt;b&gt;dog&lt;/b&gt;" in html
    assert "All 2 in suspects.csv." in html


def test_methods_that_were_left_out_stand_in_one_table_behind_a_click(run: Path) -> None:
    left_out = {"<clap>": "no better than gda on the first fold"} | {f"method {i}": "too slow" for i in range(18)}
    (run / "recommendation.json").write_text(json.dumps(RECOMMENDED | {"left_out": left_out}))
    html = report([run])
    [table] = re.findall(
        r"<details><summary>Left out: 19 methods</summary>\s*<table>(.*?)</table></details>", html, re.S
    )
    assert table.count("<tr>") == 20
    assert "<tr><td>&lt;clap&gt;</td><td>no better than gda on the first fold</td></tr>" in table
    assert "was left out" not in html


def _without_lists(run: Path, tmp_path: Path) -> Path:
    plain = tmp_path / "plain"
    shutil.copytree(run, plain, ignore=lambda _, names: [f"{each}.csv" for each in LISTS if f"{each}.csv" in names])
    return plain


LISTS = ("contradictions", "suspects", "duplicates", "confused")


@pytest.mark.full
def test_long_lists_and_large_images_stay_small(run: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.effect_noise((1600, 1200), 90).convert("RGB").save(photo)
    write_csv(run / "suspects.csv", suspects([str(photo)] * 50))
    row = {"path": str(photo), "part": "val", "class": "a", "train_path": str(photo), "train_class": "a"}
    write_csv(run / "duplicates.csv", [row] * 50)
    first, second = galleries(run)
    assert (first.lines, len(first.entries)) == (50, MOST_PICTURES)
    assert (second.lines, len(second.entries)) == (50, MOST_PICTURES // 2)
    html = report([run])
    assert "The first 24 of 50; all are in suspects.csv." in " ".join(html.split())
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", html)
    assert max(map(len, pictures)) < THUMBNAIL**2
    assert len(html) < 2**20


def test_the_commands_are_whole_and_the_standard_error_has_its_own_name(run: Path) -> None:
    html = report([run])
    commands = re.findall(r"<pre>(adapt train (?:gda|coop).*?)</pre>", html)
    assert commands == [METHODS[0]["command"].replace("'", "&#39;")] * 2 + ["adapt train coop"]
    assert "<th>standard error</th>" in html
    assert "±" not in html


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "\xff"])
def test_lists_that_are_none(run: Path, text: str) -> None:
    (run / "suspects.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(AdaptError, match=r"suspects\.csv holds no list of images: the column class is missing"):
        report([run])
