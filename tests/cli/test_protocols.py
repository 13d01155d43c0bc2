"""`adapt base-to-new` and its kin: what they print and leave, how they stop and go on, what they refuse."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest

from adapt.training.run import Run


@pytest.fixture(scope="session")
def of_five(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, five_classes: Path) -> Path:
    """A CoOp recipe of two steps on five classes."""
    path = tmp_path_factory.mktemp("recipes") / "five.yaml"
    path.write_text(
        f"method: {{name: coop, n_ctx: 2}}\nbackbone: {model_folder}\ndata: {{source: {five_classes}, shots: 2}}\n"
        "train: {epochs: 2, lr: 0.1, warmup_epochs: 0, augment: none, workers: 0}\n"
    )
    return path


def test_the_table_and_the_files(run, of_five: Path, tmp_path: Path) -> None:
    out = tmp_path / "b2n"
    result = run("base-to-new", of_five, "--out", out, "--seeds", "1,2", "--set", "method.n_ctx=3")
    assert result.exit_code == 0
    found = json.loads((out / "base_to_new.json").read_text())
    assert found["recipe"]["method"] == {"name": "coop", "n_ctx": 3}
    assert [row["seed"] for row in found["runs"]] == [1, 2]
    assert len(list(csv.DictReader((out / "base_to_new.csv").open()))) == 2
    assert all((out / f"seed-{seed}/adapter.safetensors").is_file() for seed in (1, 2))

    (summary,) = found["summary"]
    mean, spread, frozen = (
        {key: f"{100 * x:.1f}" for key, x in summary[kind].items()} for kind in ("mean", "std", "zero_shot")
    )
    header, zero_shot, coop = (line.split() for line in result.stdout.splitlines())
    columns = ["base", "new", "harmonic"]
    assert header == columns
    assert zero_shot == ["zero-shot", *(frozen[key] for key in columns)]
    assert coop == ["coop", *(word for key in columns for word in (mean[key], "±", spread[key]))]
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["  1 of 2  seed-1", "  2 of 2  seed-2"]


def test_three_seeds_by_default(run, of_five: Path, tmp_path: Path) -> None:
    assert run("base-to-new", of_five, "--out", tmp_path / "b2n", "--set", "train.epochs=1").exit_code == 0
    rows = (tmp_path / "b2n/base_to_new.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:3] for row in rows] == [[f"seed-{seed}", "2", str(seed)] for seed in (1, 2, 3)]


def test_the_same_command_goes_on(run, of_five: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, out = Run.log, tmp_path / "my b2n"

    def log_and_stop(self: Run, entry: dict[str, object]) -> None:
        log(self, entry)
        if (self.path.name, entry["step"]) == ("seed-7", 1):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "log", log_and_stop)
    stopped = run("base-to-new", of_five, "--out", out, "--seeds", "3,7", "--set", "train.epochs=3")
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    assert "stopped; go on with the same command" in stopped.stderr
    monkeypatch.undo()
    assert run("base-to-new", of_five, "--out", out, "--seeds", "3,7", "--set", "train.epochs=3").exit_code == 0
    for seed in (3, 7):
        log_lines = (out / f"seed-{seed}/log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log_lines] == [1, 2, 3]
    assert [row["seed"] for row in json.loads((out / "base_to_new.json").read_text())["runs"]] == [3, 7]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "1,two"], "--seeds is '1,two'; expected numbers such as 1,2,3"),
        (["--seeds", ""], "--seeds is ''; expected numbers such as 1,2,3"),
        (["--seeds", "2,2"], "seeds are [2, 2]; expected different numbers"),
        (["--set", "method.class_specific=true"], "coop learns tensors for each of its classes"),
        (["--set", "data.source=nowhere"], "Data 'nowhere' is neither a folder"),
        (["--set", "data.classes=old"], "data.classes is 'old': Input should be 'all', 'base' or 'new'"),
    ],
)
def test_refusals(run, refused, of_five: Path, tmp_path: Path, options: list[str], words: str) -> None:
    refused(run("base-to-new", of_five, "--out", tmp_path / "b2n", *options), words)
    assert not (tmp_path / "b2n").exists()


def test_without_out_it_is_wrong_usage(run, of_five: Path) -> None:
    result = run("base-to-new", of_five)
    assert result.exit_code == 2
    assert "Missing option '--out'" in result.stderr


def test_help_mentions_it(run) -> None:
    assert "base-to-new" in run("--help").stdout
    text = " ".join(run("base-to-new", "--help").stdout.split())
    assert all(word in text for word in ("RECIPE", "--out", "--seeds", "[default: 1,2,3]", "base_to_new.csv"))


@pytest.mark.parametrize(("half", "names"), [("base", "goldfish, lime tree, red panda"), ("new", "sky, tin can")])
def test_train_on_one_half(run, of_five: Path, tmp_path: Path, half: str, names: str) -> None:
    out = tmp_path / "run"
    assert run("train", of_five, "--out", out, "--quiet", "--set", f"data.classes={half}").exit_code == 0
    shown = run("inspect", out / "adapter.safetensors", "--words", 0).stdout
    assert f"classes    {len(names.split(', '))}: {names}\n" in shown
