"""Runs that no protocol made: side by side, pooled over seeds; sweeps and seeds from one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from adapt.cli import main
from adapt.protocols.plain_runs import PlainRun, plain_table, pooled, read_run, titles


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Zero-shot, GDA with two seeds, and GDA with another alpha, on the bundled images."""
    folder = tmp_path_factory.mktemp("runs")
    made = {
        "zero-shot": ["zero_shot"],
        "one": ["gda", "--seed", "1"],
        "two": ["gda", "--seed", "2"],
        "other": ["gda", "--set", "method.alpha=10"],
    }
    for name, arguments in made.items():
        options = ["--data", "emoji", "--shots", "4", "--out", folder / name, "--quiet"]
        assert run("train", *arguments, *options).exit_code == 0
    return {name: folder / name for name in made}


@pytest.mark.full
def test_runs_that_differ_by_their_seed_are_one_row(runs: dict[str, Path]) -> None:
    read = [read_run(path) for path in runs.values()]
    assert [len(group) for group in pooled(read)] == [1, 2, 1]
    header, *rows = plain_table(read)
    assert [row[0] for row in rows] == ["zero_shot", "gda", "gda (alpha=10)"]
    metrics = {name: json.loads((path / "metrics.json").read_text()) for name, path in runs.items()}
    accuracies = [100 * metrics[name]["adapted"]["accuracy"] for name in ("one", "two")]
    mean = sum(accuracies) / 2
    spread = abs(accuracies[0] - accuracies[1]) / 2**0.5
    found = dict(zip(header, rows[1], strict=True))
    assert found["adapted"] == f"{mean:.1f} ± {spread:.1f}"
    assert (found["seeds"], found["shots"], found["data"]) == ("1, 2", "4", "emoji")
    gain = metrics["zero-shot"]["adapted"]["accuracy"] - metrics["zero-shot"]["zero_shot"]["accuracy"]
    assert dict(zip(header, rows[0], strict=True))["gain"] == f"{100 * gain:+.1f}"


def test_settings_that_are_as_usual_name_no_run() -> None:
    """Even where they differ from another run's."""
    usual = {"method": {"name": "gda"}, "data": {"source": "a", "root": None, "broken": "refuse"}, "quantize": None}
    other = usual | {"data": {"source": "a", "root": "b", "broken": "skip"}, "quantize": "int8"}
    assert titles([usual, other]) == ["gda", "gda (data.root=b, data.broken=skip, quantize=int8)"]


def test_runs_on_other_test_images_share_no_mean(caplog: pytest.LogCaptureFixture) -> None:
    one, other, again = (PlainRun(Path(name), {"seed": name}, {"test_set": name[0]}) for name in ("a1", "b1", "a2"))
    assert pooled([one, again]) == [[one, again]]
    assert caplog.messages == []
    assert pooled([one, other, again]) == [[one, again], [other]]
    assert "were measured on different test images" in caplog.text


@pytest.mark.full
def test_table_shows_runs_and_refuses_a_mixture(runs: dict[str, Path], tmp_path: Path) -> None:
    result = run("table", *runs.values(), "--format", "csv")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith(",gain,zero-shot,adapted,backbone,data,shots,seeds")
    out = tmp_path / "sweep"
    arguments = ["--data", "emoji", "--shots", "2", "--seeds", "1,2", "--out", out]
    swept = run("sweep", "gda", "method.alpha=0.1,10", *arguments)
    assert swept.exit_code == 0, swept.output
    found = json.loads((out / "sweep.json").read_text())
    assert [group["setting"] for group in found["summary"]] == ["method.alpha=0.1", "method.alpha=10"]
    assert [row["run"] for row in found["runs"]][:2] == ["method.alpha=0.1-seed-1", "method.alpha=0.1-seed-2"]
    lines = swept.stdout.splitlines()
    assert lines[0].split() == ["validation", "test"]
    assert lines[2].startswith("gda, method.alpha=0.1")
    assert run("table", out).stdout == swept.stdout
    mixed = run("table", out, runs["one"])
    assert mixed.exit_code == 2
    assert "is a run directory, but" in mixed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.lr"], "'train.lr' is not of the form KEY=VALUES"),
        (["method.alhpa=1,2"], "alhpa"),
        (["method.alpha=1,1"], "a value of the sweep appears twice"),
        (["--seeds", "1,x"], "--seeds is '1,x'; expected numbers such as 1,2,3"),
        (["--set", "seed=3"], "this protocol itself sets seed; give --seeds"),
    ],
)
def test_what_cannot_be_swept_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run("sweep", "gda", *arguments, "--data", "emoji", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
