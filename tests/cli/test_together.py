"""Answers about a set of images on the command line: a run's figures, `predict --together`, `eval` and a protocol."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import adapt
from adapt import data
from adapt.cli import main
from adapt.evaluation.evaluate import evaluate


@pytest.fixture(scope="module")
def stata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of StatA on the bundled drawings."""
    out = tmp_path_factory.mktemp("stata") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPT_CACHE", str(out.parent / "cache"))
        result = CliRunner().invoke(main, ["train", "stata", "--data", "emoji", "--out", str(out), "--quiet"])
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.full
def test_a_run_and_eval_have_figures_of_both(run, stata: Path) -> None:
    metrics = json.loads((stata / "metrics.json").read_bytes())
    assert metrics["adapted"]["accuracy"] == metrics["zero_shot"]["accuracy"]
    figures = evaluate(adapt.load(stata), data.load("emoji").test, together=True).reported()
    ends = figures.pop("intervals")
    assert metrics["together"].pop("intervals") == ends
    assert metrics["together"] == pytest.approx(figures)
    # within 0.5 points of zero-shot at worst, on the whole folder (38.8 against 38.3)
    assert figures["accuracy"] > metrics["adapted"]["accuracy"] - 0.005
    measured = json.loads(run("eval", stata, "--data", "emoji", "--json").stdout)
    assert measured["together"].pop("intervals") == ends
    assert measured["together"] == pytest.approx(figures)
    assert " of the same, answered together as one set" in run("eval", stata, "--data", "emoji").stdout


@pytest.mark.full
def test_a_folder_is_answered_as_one_set(run, stata: Path, tmp_path: Path, caplog) -> None:
    paths = [tmp_path / f"drawings/{number:03}.png" for number in range(100)]
    paths[0].parent.mkdir()
    for path, item in zip(paths, data.load("emoji").test[::7], strict=False):
        data.open_image(item.path).save(path)
    listed = paths[0].parent
    together = run("predict", stata, "--together", listed, "--csv")
    assert (together.exit_code, together.stderr) == (0, "")
    rows = list(csv.DictReader(together.stdout.splitlines()))
    model = adapt.load(stata)
    assert [row["class"] for row in rows] == [each.class_name for each in model.predict_together(paths)]
    parts = run("predict", stata, "--together", "--at-a-time", 40, listed, "--csv")
    found = [row["class"] for row in csv.DictReader(parts.stdout.splitlines())]
    assert found == [each.class_name for each in model.predict_together(paths, at_a_time=40)]
    alone = run("predict", stata, listed, "--csv")
    assert "each image is answered by itself; stata answers them as one set with --together" in caplog.text
    assert [row["class"] for row in csv.DictReader(alone.stdout.splitlines())] != [row["class"] for row in rows]


def test_what_a_set_cannot_be_is_refused(run, refused, stata: Path, adapter: Path, photos: Path) -> None:
    test = photos / "test"
    refused(run("predict", adapter, "--together", test), "coop answers each image by itself", "such as stata")
    refused(run("predict", adapter, test, "--at-a-time", 8), "give --together")
    refused(run("predict", adapter, stata, "--together", test), "--together cannot go with several adapters")
    refused(run("predict", stata, "--together", test / "sky"), "there are 2 images, but stata answers 4 or more")


def test_a_protocol_has_both_and_a_table_a_row_of_each(run, model_folder: Path, photos: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "stata.yaml"
    recipe.write_text(f"method: {{name: stata}}\nbackbone: {model_folder}\ndata: {{source: {photos}, shots: 2}}\n")
    out = tmp_path / "few_shot"
    result = run("few-shot", recipe, "--shots", "1,2", "--seeds", "1", "--out", out)
    assert result.exit_code == 0, result.output
    results = json.loads((out / "few_shot.json").read_bytes())
    metrics = json.loads((out / "shots-1-seed-1/metrics.json").read_bytes())
    assert results["runs"][0]["together_test"] == metrics["together"]["accuracy"]
    assert results["summary"][0]["together"] == {"test": metrics["together"]["accuracy"]}
    rows = list(csv.reader(run("table", out, "--format", "csv").stdout.splitlines()))
    assert [row[0] for row in rows] == ["shots", "zero-shot, tiny", "stata, tiny", "stata, tiny, answers together"]
    assert rows[3][1] == f"{100 * metrics['together']['accuracy']:.1f}"
