"""The HTML report: offline, small, and with the numbers of the files that it is about."""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from adapt import AdaptError
from adapt.common.disk import write_csv
from adapt.data import Split
from adapt.protocols import protocol as protocols
from adapt.protocols.protocol import run_protocol
from adapt.protocols.report import WORST_ERRORS, _worst_errors, report
from adapt.recipe import Recipe, build_recipe
from adapt.training.run_recipe import run_recipe


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """A few-shot curve and a base-to-new protocol, side by side."""
    out = tmp_path_factory.mktemp("found")
    run_protocol(protocols.few_shot(recipe, (1, 2), (1, 2)), out / "curve")
    run_protocol(protocols.base_to_new(recipe, (1, 2)), out / "halves")
    return out


class Page(HTMLParser):
    """Collects table cells by table, values given as data, and whatever would be fetched."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.values: list[tuple[str, float]] = []
        self.fetched: list[str] = []
        self._open: list[str] | None = None
        self._value: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.fetched += [str(given[key]) for key in ("src", "href") if key in given]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._open = []
        if "data-value" in given:
            self._value = given["data-value"]

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._open.append(data)
        if self._value is not None:
            self.values.append((data.strip(), float(self._value)))
            self._value = None

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._open is not None:
            self.tables[-1][-1].append("".join(self._open).strip())
            self._open = None


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _copy(found: Path, to: Path) -> dict[str, Any]:
    """What every run has, of one of them; its metrics."""
    run = found / "curve/shots-1-seed-1"
    shutil.copy(run / "recipe.yaml", to)
    shutil.copy(run / "metrics.json", to)
    return read(run / "metrics.json")


def test_equally_confident_errors_are_of_several_classes() -> None:
    """By the confidence that is shown, in per cent; a more confident one always comes first."""
    errors = [("a", 0.9999), ("a", 0.9998), ("a", 0.9997), ("b", 0.9996), ("c", 0.996), ("b", 0.7), ("right", 1.0)]
    rows = [
        {"path": f"{number}.png", "class": name, "predicted": "right", "confidence": str(confidence)}
        for number, (name, confidence) in enumerate(errors)
    ]
    assert [error["picture"].path[0] for error in _worst_errors(rows, turned=False)] == ["0", "3", "4", "1", "2", "5"]


def test_the_page_needs_nothing_beside_it(found: Path) -> None:
    html = report([found / "curve", found / "halves"])
    outside = [each for each in Page(html).fetched if not each.startswith(("data:", "#"))]
    assert outside == []
    assert re.findall(r"<script|@import|url\((?!#)", html) == []
    assert len(html) < 2 * 2**20


@pytest.mark.full
def test_its_numbers_are_those_of_the_files(found: Path) -> None:
    page = Page(report([found / "curve", found / "halves"]))
    curve, halves, runs = page.tables[:3]
    for table, name in ((curve, "curve/few_shot.json"), (halves, "halves/base_to_new.json")):
        results = read(found / name)
        for column, title in enumerate(table[0][1:], 1):
            figure = "test" if "few" in name else title
            group = next(each for each in results["summary"] if "halves" in name or str(each["shots"]) == title)
            shown = f"{100 * group['mean'][figure]:.1f} ± {100 * group['std'][figure]:.1f}"
            assert table[2][column] == shown
            assert table[1][column] == f"{100 * group['zero_shot'][figure]:.1f}"
    assert len(runs) == 1 + 3  # two seeds each
    folders = ("curve/shots-1-", "curve/shots-2-", "halves/")
    for row, folder in zip(runs[1:], folders, strict=True):
        both = [read(path / "metrics.json") for path in sorted(found.glob(f"{folder}seed-*"))]
        adapted, frozen = ([each[kind]["accuracy"] for each in both] for kind in ("adapted", "zero_shot"))
        gains = [mine - before for mine, before in zip(adapted, frozen)]
        assert row[1] == f"{100 * statistics.mean(gains):+.1f} ± {100 * statistics.stdev(gains):.1f}"
        assert row[2] == f"{100 * statistics.mean(frozen):.1f} ± {100 * statistics.stdev(frozen):.1f}"
        assert row[3] == f"{100 * statistics.mean(adapted):.1f} ± {100 * statistics.stdev(adapted):.1f}"
        assert row[7] == "1, 2"
    for text, value in page.values:
        assert text.rstrip("\xa0%") in (f"{100 * value:.1f}", f"{100 * value:+.1f}", f"{100 * value:.0f}")


def test_the_errors_it_was_surest_of_are_shown(found: Path) -> None:
    run = found / "curve/shots-1-seed-1"
    wrong = [row for row in csv.DictReader((run / "predictions.csv").open()) if row["class"] != row["predicted"]]
    wrong.sort(key=lambda row: -float(row["confidence"]))
    html = report([run])
    assert html.count("<figcaption>") == min(len(wrong), WORST_ERRORS)
    assert html.count("data:image/jpeg;base64,") == min(len(wrong), WORST_ERRORS)
    first = html[html.index("<figcaption>") :][:250]
    assert wrong[0]["class"] in first
    assert f'<span class="quiet">{Path(wrong[0]["path"]).name}</span>' in first
    assert f"{100 * float(wrong[0]['confidence']):.0f}&nbsp;%" in first


def test_the_run_nearest_to_the_mean_is_the_open_one(found: Path, tmp_path: Path) -> None:
    """Of the best group alone, whatever the order."""
    runs = []
    for seed, accuracy in enumerate((0.5, 0.9, 0.72), 1):
        run = tmp_path / f"good-{seed}"
        run.mkdir()
        metrics = _copy(found, run) | {"seed": seed}
        metrics["adapted"]["accuracy"] = accuracy
        (run / "metrics.json").write_text(json.dumps(metrics))
        recipe = re.sub(r"^seed: \d+$", f"seed: {seed}", (run / "recipe.yaml").read_text(), flags=re.M)
        (run / "recipe.yaml").write_text(recipe)
        runs.append(run)
    html = report([found / "halves", *runs])
    [opened] = re.findall(r"<details open>\s*<summary>([^:<]+)", html)
    assert opened == f"{tmp_path.name}/good-3"
    assert html.count("nearest to the mean") == 2


def test_curves_counts_and_what_it_was_made_with(found: Path) -> None:
    run = found / "curve/shots-2-seed-1"
    html = report([run])
    metrics, environment = read(run / "metrics.json"), read(run / "environment.json")
    low, high = (100 * end for end in metrics["adapted"]["intervals"]["accuracy"])
    assert f"{100 * metrics['adapted']['accuracy']:.1f} % ({low:.1f} to {high:.1f}) of test images right" in html
    assert "training images, during training" in html
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    pairs = Counter((row["class"], row["predicted"]) for row in rows)
    [table] = [table for table in Page(html).tables if table[0][0] == "class ↓ predicted →"]
    assert len(table) == len(table[0]) == 1 + 5
    written = {(row[0], name): int(cell) for row in table[1:] for name, cell in zip(table[0][1:], row[1:]) if cell}
    assert written == pairs
    assert f"<pre>adapt train {run / 'recipe.yaml'} --out={run}-again</pre>" in html
    assert f"torch {environment['versions']['torch']}" in html
    assert "±" not in html  # of one seed


def test_what_a_threshold_leaves_unanswered_and_gets_right(found: Path, tmp_path: Path) -> None:
    metrics = _copy(found, tmp_path)
    answers = [("a", 0.95), ("a", 0.8), ("b", 0.7), ("a", 0.6), ("b", 0.5), ("b", 0.2), ("a", 0.1)]
    lines = [f"/{place}.png,a,{said},{sure}" for place, (said, sure) in enumerate(answers)]
    (tmp_path / "predictions.csv").write_text("\n".join(["path,class,predicted,confidence", *lines]))
    html = " ".join(report([tmp_path]).split())
    assert "At 0.6, 57 % of the images are classified, with 75 % accuracy (30.1 to 95.4)." in html
    [table] = [table for table in Page(html).tables if table[0][0] == "threshold"]
    assert table[1] == ["0, all", "100.0", "7", "57.1", "25.0 to 84.2"]  # Wilson's
    assert ["0.6", "57.1", "4", "75.0", "30.1 to 95.4"] in table
    assert table[-2:] == [["0.95", "14.3", "1", "100.0", "20.7 to 100.0"], ["0.99", "0.0", "0", "–", "–"]]
    assert "images classified, %" in html
    del metrics["adapted"]["calibration_error"]  # cosines are no probabilities
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert "are classified, with" not in report([tmp_path])


def test_a_page_says_once_what_its_spread_is(found: Path) -> None:
    html = report([found / "curve"])
    assert html.count("±") == len(re.findall(r"\d ± \d", html)) + 1
    assert "; ± is one standard deviation over seeds." in html


def test_how_sure_before_and_after_a_temperature(found: Path, tmp_path: Path) -> None:
    metrics = _copy(found, tmp_path)
    shutil.copy(found / "curve/shots-1-seed-1/predictions.csv", tmp_path)
    after = metrics["adapted"]["calibration_error"]
    assert f"as trained, error {100 * after:.1f} %" in report([tmp_path])
    before = [{"images": 3, "confidence": 0.9, "accuracy": 0.4}]
    metrics["calibration"] = {"temperature": 2.0, "error_before": 0.5, "before": before}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    html = report([tmp_path])
    assert "as trained, error 50.0 %" in html
    assert f"calibrated, error {100 * after:.1f} %" in html
    del metrics["adapted"]["calibration_error"]  # of what has cosines for probabilities
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert "calibrated, error" not in report([tmp_path])


def test_a_run_is_called_by_its_folder(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for here, path in (("curve", "shots-1-seed-1"), ("curve/shots-1-seed-1", "."), (".", "curve/shots-1-seed-1/")):
        monkeypatch.chdir(found / here)
        assert "<summary>curve/shots-1-seed-1" in report([Path(path)])


@pytest.mark.parametrize("text", ["[", "[]", '{"versions": 3}', '{"versions": {}}'])
def test_environments_that_are_none(tmp_path: Path, found: Path, text: str) -> None:
    _copy(found, tmp_path)
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(AdaptError, match=r"environment\.json holds no environment of a run"):
        report([tmp_path])


def test_an_image_that_is_gone_is_said_to_be(found: Path, tmp_path: Path) -> None:
    run = found / "curve/shots-1-seed-1"
    for name in ("metrics.json", "predictions.csv", "recipe.yaml"):
        text = (run / name).read_text()
        (tmp_path / name).write_text(re.sub(r"^/\S+/", "/nowhere/", text, flags=re.M))
    html = report([tmp_path])
    assert "data:image/jpeg" not in html
    assert "image not<br>found" in html


def test_names_that_a_spreadsheet_would_run_are_shown_as_they_are(tmp_path: Path, found: Path) -> None:
    _copy(found, tmp_path)
    row = {"path": "/x.png", "class": "=cmd|'c'!A1", "predicted": "@it", "confidence": "0.900000"}
    write_csv(tmp_path / "predictions.csv", [row])
    assert "\n/x.png,'=cmd|'c'!A1,'@it,0.900000\n" in (tmp_path / "predictions.csv").read_text()
    html = report([tmp_path])
    assert ">=cmd|&#39;c&#39;!A1" in html or "=cmd|&#39;c&#39;!A1 " in html
    assert "&#39;=cmd" not in html
    assert "&#39;@it" not in html


def test_names_cannot_become_markup(tmp_path: Path, found: Path) -> None:
    metrics = _copy(found, tmp_path)
    metrics["adapted"]["by_class"] = {"<script>alert(1)</script>": 0.5}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    rows = 'path,class,predicted,confidence\n"/x.png",<b>bold</b>,<i>it</i>,0.9\n'
    (tmp_path / "predictions.csv").write_text(rows)
    html = report([tmp_path])
    assert all(tag not in html for tag in ("<script>alert", "<b>bold", "<i>it"))


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_what_is_no_run_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "few_shot.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AdaptError, match="results of a protocol"):
        report([tmp_path])


@pytest.mark.parametrize(
    "damage",
    [
        {"adapted": []},
        {"adapted": {"accuracy": 0.5}},
        {"zero_shot": {"accuracy": "x"}},
        {"seed": None},
        {"seconds": "long"},
        {"trainable_parameters": [1]},
        {"adapted": {"by_class": [1]}},
    ],
)
def test_damaged_metrics_are_refused_by_name(tmp_path: Path, found: Path, damage: dict[str, Any]) -> None:
    metrics = read(found / "curve/shots-1-seed-1/metrics.json")
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | damage))
    with pytest.raises(
        AdaptError, match=rf"metrics\.json contains no valid metrics of a finished run: {next(iter(damage))}"
    ):
        report([tmp_path])


@pytest.mark.parametrize("text", ["", "[", "[" * 5000, "NaN", "[]", "null", "9" * 5000, "\xff"])
def test_metrics_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AdaptError, match=r"metrics\.json contains no valid metrics of a finished run"):
        report([tmp_path])


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n",
        "path,class,predicted,confidence\nx,y,z,much\n",
        "path,class,predicted,confidence\nx,y,z,7\n",
        "\xff",
    ],
)
def test_predictions_that_are_none(tmp_path: Path, found: Path, text: str) -> None:
    _copy(found, tmp_path)
    (tmp_path / "predictions.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(AdaptError, match=r"predictions\.csv holds no predictions of a run"):
        report([tmp_path])


@pytest.fixture(scope="module")
def described(raw: dict[str, Any], split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that decides by descriptors."""
    phrases = {name: [f"<b>phrase</b> {number}", "another"] for number, name in enumerate(split.class_names)}
    method = {"name": "descriptions", "descriptors": phrases}
    out = tmp_path_factory.mktemp("described") / "run"
    run_recipe(build_recipe({key: raw[key] for key in ("backbone", "data", "cache")} | {"method": method}, "tiny"), out)
    return out


def test_what_decided_is_drawn(described: Path) -> None:
    examples: list[dict[str, Any]] = json.loads((described / "explanations.json").read_text())
    with (described / "predictions.csv").open() as lines:
        rows = {row["path"]: row for row in csv.DictReader(lines)}
    assert [each["reasons"][0]["name"] for each in examples] == [rows[each["path"]]["predicted"] for each in examples]
    right = [each["actual"] == each["reasons"][0]["name"] for each in examples]
    assert right == sorted(right, reverse=True)  # the right ones first
    assert right.count(False) <= 3
    html = report([described])
    assert "Explanations of the most confident" in html
    assert html.count("&lt;b&gt;phrase&lt;/b&gt;") == len(examples)
    assert "<b>phrase" not in html


@pytest.mark.parametrize("text", ["{}", '[{"path": "a.png", "actual": "x", "reasons": []}]', "no json"])
def test_explanations_that_are_none(described: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(described, tmp_path / "run")
    (tmp_path / "run/explanations.json").write_text(text)
    with pytest.raises(AdaptError, match=r"explanations\.json contains no valid explanations"):
        report([tmp_path / "run"])


def test_pairs_have_recall_and_nothing_of_classes(raw: dict[str, Any], split: Split, tmp_path: Path) -> None:
    lines = [f"{item.path},a {item.answer},{part}" for part in ("train", "test") for item in getattr(split, part)]
    (tmp_path / "pairs.csv").write_text("path,text,split\n" + "\n".join(lines))
    recipe = {
        "method": {"name": "zero_shot"},
        "backbone": raw["backbone"],
        "data": {"source": str(tmp_path / "pairs.csv")},
    }
    recipe["data"] |= {"root": "/", "shots": None}
    run_recipe(build_recipe(recipe, "tiny"), tmp_path / "run")
    html = report([tmp_path / "run"])
    assert "Image to text: " in html
    assert "Confusions" not in html
    assert "Hardest classes" not in html
