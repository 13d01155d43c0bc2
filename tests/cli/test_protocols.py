"""`adapt base-to-new` and its kin: what they print and leave, how they stop and go on, what they refuse."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import miniatures
import pytest
import stored_numbers
from click.testing import CliRunner
from selection import by_turns
from stopping import at_step, interrupt

from adapt.cli import main
from adapt.protocols.protocol import ELEVEN


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
    assert zero_shot == ["zero-shot,", "tiny", *(frozen[key] for key in columns)]
    assert coop == ["coop,", "tiny", *(word for key in columns for word in (mean[key], "±", spread[key]))]
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["  1 of 2  seed-1", "  2 of 2  seed-2"]


def test_three_seeds_by_default(run, of_five: Path, tmp_path: Path) -> None:
    assert run("base-to-new", of_five, "--out", tmp_path / "b2n", "--set", "train.epochs=1").exit_code == 0
    rows = (tmp_path / "b2n/base_to_new.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:3] for row in rows] == [[f"seed-{seed}", "2", str(seed)] for seed in (1, 2, 3)]


def test_the_same_command_goes_on(run, of_five: Path, tmp_path: Path) -> None:
    out = tmp_path / "my b2n"
    with at_step(1, interrupt, run="seed-7"):
        stopped = run("base-to-new", of_five, "--out", out, "--seeds", "3,7", "--set", "train.epochs=3")
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    assert "stopped; continue with the same command" in stopped.stderr
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
        (["--set", "data.source=nowhere"], "data 'nowhere' is not there: no file or folder has this path"),
        (["--set", "data.classes=new"], "not allowed: this protocol itself sets data.classes; leave out this --set"),
        (["--set", "seed=7"], "--set seed=7 is not allowed: this protocol itself sets seed; give --seeds"),
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


@by_turns(("half", "names"), [("base", "goldfish, lime tree, red panda"), ("new", "sky, tin can")])
def test_train_on_one_half(run, of_five: Path, tmp_path: Path, half: str, names: str) -> None:
    out = tmp_path / "run"
    assert run("train", of_five, "--out", out, "--quiet", "--set", f"data.classes={half}").exit_code == 0
    shown = run("inspect", out / "adapter.safetensors", "--words", 0).stdout
    assert f"classes    {len(names.split(', '))}: {names}\n" in shown


def test_options_change_the_recipe(run, of_five: Path, five_classes: Path, model_folder: Path, tmp_path: Path) -> None:
    options = ("--data", f"{five_classes}/", "--shots", 1, "--device", "cpu", "--backbone", model_folder)
    assert run("base-to-new", of_five, "--out", tmp_path / "b2n", "--seeds", "1", *options).exit_code == 0
    found = json.loads((tmp_path / "b2n/base_to_new.json").read_text())["recipe"]
    assert (found["data"]["source"], found["data"]["shots"]) == (f"{five_classes}/", 1)
    assert (found["backbone"], found["device"]) == (str(model_folder), "cpu")


def test_seeds_are_a_protocols_own(run, of_five: Path, tmp_path: Path) -> None:
    result = run("base-to-new", of_five, "--out", tmp_path / "b2n", "--seed", "1")
    assert result.exit_code == 2
    assert "No such option" in result.stderr


@pytest.mark.parametrize(
    ("command", "method", "recipe"),
    [
        ("few-shot", "coop", "coop/few_shot"),
        ("base-to-new", "coop", "coop/base_to_new"),
        ("base-to-new", "maple", "maple/few_shot"),
        ("cross-dataset", "maple", "maple/cross_dataset"),
        ("domain-generalisation", "maple", "maple/cross_dataset"),
    ],
)
def test_a_method_alone_stands_for_its_recipe_of_the_protocol(
    run, refused, tmp_path: Path, command: str, method: str, recipe: str
) -> None:
    result = run(command, method, "--data", "emoji", "--set", "sead=1", "--out", tmp_path / "none")
    refused(result, f"Error: {recipe}: unknown key 'sead'")


# The other protocols, and tables


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory, five_classes: Path) -> Path:
    """`drawings` and `sketches`: the test images of two and of three classes."""
    folder = tmp_path_factory.mktemp("others")
    for target, names in {"drawings": ("sky", "tin can"), "sketches": ("goldfish", "lime tree", "sky")}.items():
        for name in names:
            shutil.copytree(five_classes / "test" / name, folder / target / "test" / name)
    return folder


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory, of_five: Path) -> Path:
    """A folder of base-to-new over one seed."""
    out = tmp_path_factory.mktemp("halves")
    arguments = ["base-to-new", str(of_five), "--out", str(out), "--seeds", "1", "--set", "cache=false"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    return out


def percentages(figures: dict[str, float]) -> list[str]:
    return [f"{100 * value:.1f}" for value in figures.values()]


def test_few_shot_shows_a_column_for_each_number_of_shots(run, of_five: Path, tmp_path: Path) -> None:
    out = tmp_path / "curve"
    result = run("few-shot", of_five, "--out", out, "--shots", "1,2", "--seeds", "4,5", "--track", "tensorboard")
    assert result.exit_code == 0
    found = json.loads((out / "few_shot.json").read_text())
    runs = ["shots-1-seed-4", "shots-1-seed-5", "shots-2-seed-4", "shots-2-seed-5"]
    assert [row["run"] for row in found["runs"]] == runs
    assert [row["run"] for row in csv.DictReader((out / "few_shot.csv").open())] == runs
    assert all((out / name / "adapter.safetensors").is_file() for name in runs)
    tracked = {name: stored_numbers.tensorboard(out / name) for name in runs}
    finals = {name: [each[key] for key in each if key[0] == "adapted/accuracy"] for name, each in tracked.items()}
    assert finals == {row["run"]: [stored_numbers.single(row["test"])] for row in found["runs"]}
    mean, spread, frozen = (
        [f"{100 * group[kind]['test']:.1f}" for group in found["summary"]] for kind in ("mean", "std", "zero_shot")
    )
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["shots", "1", "2"],
        ["zero-shot,", "tiny", *frozen],
        ["coop,", "tiny", mean[0], "±", spread[0], mean[1], "±", spread[1]],
    ]
    told = [f"  {i} of 4  {row['run']}: test {100 * row['test']:.1f} %" for i, row in enumerate(found["runs"], 1)]
    lines = [line.partition("  (about")[0] for line in result.stderr.splitlines()]  # a slow machine says how long
    assert lines == told


def test_few_shot_takes_the_papers_shots_by_default(of_five: Path, tmp_path: Path, monkeypatch) -> None:
    planned: list[Any] = []
    monkeypatch.setattr("adapt.cli.protocols.run", lambda protocol, *given, **more: planned.append(protocol))
    result = CliRunner().invoke(main, ["few-shot", str(of_five), "--out", str(tmp_path / "curve")])
    assert result.exit_code == 0, result.output
    assert [run.recipe.data.shots for run in planned[0].runs][::3] == [1, 2, 4, 8, 16]


@by_turns("command", ["domain-generalisation", "cross-dataset"])
def test_transfer_measures_what_to_names(run, of_five: Path, others: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / "transfer"
    to = ("--to", others / "drawings", "--to", others / "sketches")
    result = run(command, of_five, "--out", out, "--seeds", "1", *to)
    assert result.exit_code == 0
    found = json.loads((out / f"{command.replace('-', '_')}.json").read_text())
    (row,), (summary,) = found["runs"], found["summary"]
    columns = ["source", "drawings", "sketches", "average"]
    assert list(summary["mean"]) == columns
    assert summary["mean"]["average"] == pytest.approx((row["drawings"] + row["sketches"]) / 2)
    assert [line.split() for line in result.stdout.splitlines()] == [
        columns,
        ["zero-shot,", "tiny", *percentages(summary["zero_shot"])],
        ["coop,", "tiny", *percentages(summary["mean"])],
    ]
    assert json.loads((out / "seed-1/targets.json").read_text())["drawings"]["images"] == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "nowhere"], "data 'nowhere' is not there: no file or folder has this path"),
        ([], "name the data to test on, such as --to emoji@fluent-3d or --to FOLDER"),
        (["--root", "nowhere"], "imagenetv2"),
        (["--data", "eurosat", "--root", "nowhere", "--to", "{others}/sketches"], "nowhere/eurosat"),
        (["--to", "{others}/sketches", "--to", "{others}/sketches/"], "; expected different names"),
        (["--to", "{others}/sketches", "--set", "method.class_specific=true"], "coop learns tensors for each of its"),
        (
            ["--to", "{others}/sketches", "--address", "10.0.0.1:6379"],
            "--address is the address of a Ray cluster and needs --engine ray: add --engine ray",
        ),
    ],
)
def test_transfers_that_are_refused(
    run, refused, of_five: Path, others: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    given = [option.format(others=others) for option in options]
    refused(run("domain-generalisation", of_five, "--out", tmp_path / "none", *given), words)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shots", "1,few"], "--shots is '1,few'; expected numbers such as 1,2,3"),
        (["--shots", "1,1"], "shots are [1, 1]; expected different numbers from 1 on"),
        (["--shots", "0"], "shots are [0]; expected different numbers from 1 on"),
    ],
)
def test_curves_that_are_refused(run, refused, of_five: Path, tmp_path: Path, options: list[str], words: str) -> None:
    refused(run("few-shot", of_five, "--out", tmp_path / "none", *options), words)
    assert not (tmp_path / "none").exists()


def test_a_table_of_what_was_found(run, of_five: Path, halves: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    result = run("base-to-new", of_five, "--out", other, "--seeds", "1", "--set", "method.n_ctx=3")
    assert result.exit_code == 0
    assert run("table", other).stdout == result.stdout
    summaries = [json.loads((out / "base_to_new.json").read_text())["summary"][0] for out in (halves, other)]
    rows = [
        ["", "base", "new", "harmonic"],
        ["zero-shot, tiny", *percentages(summaries[0]["zero_shot"])],
        ["coop (n_ctx=2), tiny", *percentages(summaries[0]["mean"])],
        ["coop (n_ctx=3), tiny", *percentages(summaries[1]["mean"])],
    ]
    shown = run("table", halves, other / "base_to_new.json", "--format", "csv").stdout
    assert list(csv.reader(shown.splitlines())) == rows
    lines = run("table", halves, other, "--format", "markdown").stdout.splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line] == rows


def test_a_table_shows_the_papers_figures_unless_told_not_to(run, halves: Path, tmp_path: Path) -> None:
    found = json.loads((halves / "base_to_new.json").read_text())
    found["recipe"]["data"]["source"] = "dtd"
    (tmp_path / "dtd.json").write_text(json.dumps(found))
    shown = run("table", tmp_path / "dtd.json", "--format", "csv").stdout.splitlines()
    assert shown[4] == '"CoOp, published [S] (ViT-B/16)",79.44,41.18,54.24'
    assert run("table", tmp_path / "dtd.json", "--format", "csv", "--no-published").stdout.splitlines() == shown[:3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "none.json does not exist"),
        ("no JSON", "none.json contains no valid results of a protocol: "),
        ("[1, 2]", "none.json contains no valid results of a protocol: "),
        (
            '{"recipe": {}, "runs": []}',
            "none.json contains no valid results of a protocol: protocol: Field required",
        ),
    ],
)
def test_files_that_hold_no_results(run, refused, tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "none.json").write_text(content)
    refused(run("table", tmp_path / "none.json"), words)


def test_a_folder_that_holds_no_results(run, refused, tmp_path: Path) -> None:
    refused(run("table", tmp_path), f"{tmp_path} holds no results of a protocol")


def test_beside_a_run_what_is_missing_is_named_first(run, refused, halves: Path, tmp_path: Path) -> None:
    finished = next(each.parent for each in halves.glob("*/metrics.json"))
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.mkdir()
    refused(run("table", finished, missing), f"{missing} does not exist; expected results of a protocol")
    refused(run("table", empty, finished), f"{empty} holds no results of a protocol, such as base_to_new.json, and no")
    refused(run("table", finished, halves), f"{finished} is a run directory, but {halves} is the result of a protocol")


@pytest.fixture(scope="session")
def eleven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published data sets in miniature."""
    return miniatures.build(tmp_path_factory.mktemp("eleven"))


@pytest.mark.full
def test_one_command_makes_the_table_of_eleven_sets_and_mends_it(
    run, eleven: Path, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b2n"
    command = ["base-to-new", "zero_shot", "--data", "eleven", "--root", eleven, "--out", out, "--seeds", "1"]
    command += ["--backbone", model_folder, "--shots", "all"]
    first = run(*command)
    assert first.exit_code == 0, first.output
    assert sorted(path.name for path in out.iterdir()) == sorted(ELEVEN)
    table = run("table", *(out / name for name in ELEVEN), "--format", "latex")
    assert table.exit_code == 0, table.output
    rows = [line for line in table.stdout.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 1 + 3 * 2
    assert {line.count("&") for line in rows} == {13}
    shutil.rmtree(out / "dtd")
    written = {name: (out / name / "seed-1/metrics.json").stat().st_mtime_ns for name in ELEVEN if name != "dtd"}
    again = run(*command)
    assert again.stdout == first.stdout
    assert {name: (out / name / "seed-1/metrics.json").stat().st_mtime_ns for name in written} == written
    assert (out / "dtd/seed-1/metrics.json").is_file()


def test_sets_of_one_name_are_refused(run, refused, of_five: Path, five_classes: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(five_classes, tmp_path / "other" / five_classes.name))
    result = run("base-to-new", of_five, "--data", five_classes, "--data", other, "--out", tmp_path / "b2n")
    refused(result, f"two data sets are called {five_classes.name!r}, and each needs a folder of its own")
    assert not (tmp_path / "b2n").exists()


def test_every_data_set_is_read_before_the_first_run(run, refused, of_five: Path, tmp_path: Path) -> None:
    result = run("few-shot", of_five, "--data", "emoji", "--data", "emoji@none", "--out", tmp_path / "two")
    refused(result, "unknown bundled data set 'emoji@none'")
    assert not (tmp_path / "two").exists()


def test_a_table_is_drawn_to_files(run, refused, of_five: Path, tmp_path: Path) -> None:
    assert run("few-shot", of_five, "--shots", "1,2", "--seeds", "1", "--out", tmp_path / "curve").exit_code == 0
    picture, words = tmp_path / "curve.png", tmp_path / "curve.svg"
    assert run("table", tmp_path / "curve", "--plot", picture, "--plot", words).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "training images for each class</text>" in words.read_text()
    refused(run("table", tmp_path / "curve", "--plot", tmp_path / "curve.gif"), "has the suffix '.gif'; expected .png")
    [first, *_] = sorted((tmp_path / "curve").glob("*/metrics.json"))
    refused(run("table", first.parent, "--plot", picture), "--plot are for results of protocols")
