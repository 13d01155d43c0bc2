"""`adapt recommend`: compares, trains the one to take, measures it at last, and says what would help most."""

from __future__ import annotations

import csv
import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import stored_numbers
import torch
from click.testing import CliRunner, Result
from PIL import Image
from selection import by_turns

import adapt
from adapt import AdaptError
from adapt.choosing import compare
from adapt.choosing import recommendation as module
from adapt.choosing.candidates import candidates
from adapt.choosing.compare import Compared
from adapt.cli import main
from adapt.evaluation.scores import Scores
from adapt.recipe.shipped import known_recipes

FEW = ("gda", "zero_shot", "task_res", "lora")


@pytest.fixture(autouse=True)
def _few_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them, so that a test takes seconds; the recipes of no other are looked through."""

    def some(*given: Any) -> list[Any]:
        return [each for each in candidates(*given) if each.name in FEW]

    recipes = [name for name in known_recipes() if name.partition("/")[0] in FEW]
    monkeypatch.setattr("adapt.choosing.candidates.known_recipes", lambda: recipes)
    monkeypatch.setattr(module, "candidates", some)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["recommend", *map(str, arguments)])


def test_the_chosen_one_is_trained_and_measured(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("emoji", "--shots", 4, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    found = json.loads((out / "recommendation.json").read_text())
    assert {row["method"] for row in found["methods"]} == {"gda", "zero_shot"}
    assert found["left_out"].keys() == {"task_res"}
    assert found["left_out"]["task_res"].endswith("points behind gda on the first fold")
    assert f"left out: task_res: {found['left_out']['task_res']}" in result.stdout
    accuracies = [row["accuracy"] for row in found["methods"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert found["methods"][0]["behind"] == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert found["chosen"] == metrics["method"] == "gda"
    assert found["test"]["accuracy"] == metrics["adapted"]["accuracy"] > metrics["zero_shot"]["accuracy"]
    right = f"{100 * metrics['adapted']['accuracy']:.1f} %"
    low, high = (100 * end for end in metrics["adapted"]["intervals"]["accuracy"])
    tested = f"Accuracy on the 694 test images, which played no part in the choice: {right}"
    assert f"{tested}, between {low:.1f} and {high:.1f} with 95 % confidence." in result.stdout
    best = found["methods"][0]
    assert best["high"] - best["accuracy"] == pytest.approx(1.96 * best["error"], rel=1e-3)
    between = f"between {100 * best['low']:.1f} and {100 * best['high']:.1f} with 95 % confidence"
    assert f"Expect {100 * best['accuracy']:.1f} % accuracy on new images, {between}: the cross-val" in result.stdout
    assert "Class names help here (zero-shot accuracy 37.5 %, chance 4.2 %)" in result.stdout
    curve = found["learning_curve"]  # on the test images, up to the training on all images
    assert [point["images"] for point in curve["points"]] == [2, 4]
    assert all(point["low"] <= point["accuracy"] <= point["high"] for point in curve["points"])
    assert curve["points"][-1]["accuracy"] == pytest.approx(metrics["adapted"]["accuracy"])
    assert curve["target"] > metrics["adapted"]["accuracy"]
    assert (curve["labels"] is None) == bool(curve["reason"])
    assert f"{100 * curve['target']:g} % on the test images" in result.stdout
    rows = list(csv.DictReader((out / "learning_curve.csv").open()))
    assert [float(row["accuracy"]) for row in rows] == [point["accuracy"] for point in curve["points"]]
    assert "<h3>Learning curve</h3>" in (out / "report.html").read_text()
    [command] = [line for line in result.stdout.splitlines() if line.startswith("To train it again: adapt train gda ")]
    again = CliRunner().invoke(main, shlex.split(command)[5:], catch_exceptions=False)
    assert f"adapted    {right.removesuffix(' %'):>5} %" in again.stdout
    assert adapt.load(out / "adapter.safetensors").method.name == found["chosen"]
    rows = list(csv.DictReader((out / "methods.csv").open()))
    assert [float(row["accuracy"]) for row in rows] == accuracies
    for row in csv.DictReader((out / "confused.csv").open()):
        assert row["class"] != row["predicted"]
        assert adapt.data.open_image(row["path"]).width
    page = (out / "report.html").read_text()
    assert f"Recommended: {found['chosen']}" in page
    assert f"<td>{100 * accuracies[0]:.1f}</td><td>{100 * found['methods'][0]['error']:.1f}</td>" in page
    assert "Images of the most often confused classes" in page


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from run to run: seconds, and the adapter's bytes, whose header has them written out."""
    return {key: value for key, value in row.items() if key not in ("seconds", "adapter_bytes")}


@pytest.mark.full
def test_test_images_choose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them all is the same but their own figures."""
    whole = adapt.recommend("emoji", shots=2, progress=False)
    load = adapt.data.load

    def without_test(*given: Any) -> Any:
        from dataclasses import replace

        return replace(load(*given), test=())

    monkeypatch.setattr("adapt.data.readers.load", without_test)
    found = adapt.recommend("emoji", shots=2, progress=False)
    assert [timeless(row) for row in found.rows] == [timeless(row) for row in whole.rows]
    assert "adapted" in whole.result.metrics
    assert "adapted" not in found.result.metrics
    assert "694 test images" not in str(found)


@pytest.mark.full
@by_turns("asked", [None, False])
def test_what_is_taken_gets_a_temperature_unless_that_was_refused(asked: bool | None) -> None:
    overrides = [] if asked is None else [f"calibrate={asked}"]
    found = adapt.recommend("emoji", shots=2, overrides=overrides, progress=False)
    assert ("calibration" in found.result.metrics) == (asked is None)
    assert ("--set=calibrate=False" in found.command) == (asked is False)


@pytest.mark.full
def test_a_loaded_backbone_is_taken() -> None:
    """As by its name; one without a name is called by its kind of model."""
    backbone = adapt.load_backbone("mini-clip", "cpu")
    asked = {"shots": 2, "folds": 2, "device": "cpu", "progress": False}
    named, given = (adapt.recommend("emoji", backbone=each, **asked) for each in ("mini-clip", backbone))
    assert list(map(timeless, given.rows)) == list(map(timeless, named.rows))
    assert given.about == named.about
    backbone.name = None
    assert adapt.recommend("emoji", backbone=backbone, **asked).about["backbone"] == type(backbone.model).__name__


def test_one_image_a_class(tmp_path: Path) -> None:
    found = adapt.recommend("emoji", shots=1, out=tmp_path / "out", progress=False, track="tensorboard")
    assert (found.chosen, found.rows, found.estimate) == ("nearest_mean", [], None)
    assert "cannot be known" in str(found)
    assert found.result.accuracy > 0.3
    assert stored_numbers.tensorboard(tmp_path / "out")["adapted/accuracy", 0] == stored_numbers.single(
        found.result.accuracy
    )
    assert not (tmp_path / "out/methods.csv").exists()
    assert len(found.advice.few) == 24
    assert found.advice.suspects == []  # nobody could tell
    assert "cannot be known" in (tmp_path / "out/report.html").read_text()


@pytest.mark.full
def test_a_budget_leaves_out_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Comparison, "estimate", lambda self, each: 1e6 if each.name == "lora" else 0.0)
    found = adapt.recommend("emoji", shots=2, budget=600.0, progress=False)
    assert [row["method"] for row in found.rows if row["method"] == "lora"] == []
    assert found.left_out == {"lora": "it would take about 833 h 20 min more, and the budget is 10 min"}
    assert "left out: lora: it would take about 833 h 20 min more" in str(found)


@pytest.mark.full
def test_a_method_that_cannot_be_trained_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = module.Comparison.run

    def fails(self: Any, candidate: Any) -> Any:
        if candidate.name == "gda":
            raise AdaptError("gda needs more")
        return tried(self, candidate)

    monkeypatch.setattr(module.Comparison, "run", fails)
    found = adapt.recommend("emoji", shots=2, progress=False)
    assert found.left_out == {"gda": "gda needs more"}
    assert "left out: gda: gda needs more" in str(found)


def test_images_in_a_folder(tmp_path: Path) -> None:
    """Without test images, one class with a single one: that class is learnt, and not tried on."""
    for number, (name, images) in enumerate({"red": 6, "green": 6, "blue": 1}.items()):
        for image in range(images):
            path = tmp_path / f"photos/train/{name}/{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = [20 * image] * 3
            colour[number] = 255
            Image.new("RGB", (40, 40), tuple(colour)).save(path)
    result = run(tmp_path / "photos", "--backbone", "mini-clip", "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    assert "The estimates leave out blue: with only one training image" in result.stdout
    assert "More training images would help most in these classes: blue (few.csv)." in result.stdout
    assert "test images" not in result.stdout
    [row] = csv.DictReader((tmp_path / "out/few.csv").open())
    assert (row["class"], row["images"], row["path"]) == ("blue", "1", str(tmp_path / "photos/train/blue/0.png"))
    assert "of the classes that were compared" in result.stdout
    found = json.loads((tmp_path / "out/recommendation.json").read_text())
    assert (found["classes"], found["tried_classes"], found["train_images"], found["tried_images"]) == (3, 2, 13, 12)


def _painted(folder: Path, **images: int) -> Path:
    """A folder of class folders with so many grey pictures."""
    for name, number in images.items():
        for image in range(number):
            path = folder / "train" / name.replace("_", "$") / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (40 * image, len(name) * 9, 50)).save(path)
    return folder


@pytest.mark.full
def test_what_was_compared_stays_where_the_training_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_recipe", fails)
        result = run("emoji", "--shots", 2, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 130
    assert "stopped; continue with the same command and --resume\n" in result.stderr
    assert len(list(csv.DictReader((tmp_path / "out/methods.csv").open()))) == 3
    with _watched(monkeypatch) as seen:
        resumed = run("emoji", "--shots", 2, "--out", tmp_path / "out", "--quiet", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert seen == ["gda"]  # one image of each class, from which it cannot learn, was not kept
    assert (tmp_path / "out/adapter.safetensors").is_file()


@contextmanager
def _watched(monkeypatch: pytest.MonkeyPatch, most: int | None = None) -> Iterator[list[str]]:
    """The candidates that are trained on folds, which is interrupted before it is done more than `most` times."""
    seen, trained = list[str](), compare._trained

    def watching(candidate: Any, split: Any, backbone: Any, changes: Any = None) -> Any:
        if changes is not compare._PROBE:
            if len(seen) == most:
                raise KeyboardInterrupt
            seen.append(candidate.name)
        return trained(candidate, split, backbone, changes)

    with monkeypatch.context() as patch:
        patch.setattr(compare, "_trained", watching)
        yield seen


@pytest.mark.full
def test_an_interrupted_comparison_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, out, whole = ("emoji", "--shots", 2, "--folds", 2, "--quiet"), tmp_path / "out", tmp_path / "whole"
    with _watched(monkeypatch, most=3) as begun:
        assert run(*asked, "--out", out).exit_code == 130
    again = run(*asked, "--out", out)
    assert "exists already; name a new folder, or continue an interrupted comparison with --resume" in again.stderr
    with _watched(monkeypatch) as ended:
        resumed = run(*asked, "--out", out, "--resume")
    assert resumed.exit_code == 0, resumed.output
    with _watched(monkeypatch) as seen:
        assert run(*asked, "--out", whole).exit_code == 0
    assert (begun + ended, len(begun)) == (seen, 3)
    first, second = (json.loads((folder / "recommendation.json").read_text()) for folder in (out, whole))
    assert list(map(timeless, first.pop("methods"))) == list(map(timeless, second.pop("methods")))
    assert first == second
    one, other = (adapt.load(folder).method.state_dict() for folder in (out, whole))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    for folder in (out, tmp_path / "nothing"):  # complete, and never begun
        refused = run(*asked, "--out", folder, "--resume")
        assert (refused.exit_code, "has no interrupted comparison to resume" in refused.stderr) == (2, True)


def _draw_over(photos: Path) -> None:
    Image.new("RGB", (40, 40), (1, 2, 3)).save(photos / "train/a/0.png")


def _rename(photos: Path) -> None:
    for part in photos.iterdir():
        (part / "b").rename(part / "c")


@pytest.mark.parametrize("change", [_draw_over, _rename])
def test_folds_of_other_data_are_not_taken(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = _painted(tmp_path / "photos", a=4, b=4), tmp_path / "out"
    asked = (photos, "--backbone", "mini-clip", "--folds", 2, "--out", out, "--quiet")
    with _watched(monkeypatch, most=2):
        assert run(*asked).exit_code == 130
    change(photos)
    with _watched(monkeypatch) as seen:
        refused = run(*asked, "--resume")
    assert (refused.exit_code, seen) == (2, [])
    assert "compares methods on other data, or on another backbone: choose another --out" in refused.stderr


@pytest.mark.full
def test_changes_are_of_all_recipes(tmp_path: Path) -> None:
    """A broken file is refused with advice, which can be followed; names with dollars are names."""
    photos = _painted(tmp_path / "photos", _a_=4, b=4)
    (photos / "train/b/broken.png").write_bytes(b"no image")
    arguments = (photos, "--backbone", "mini-clip", "--out", tmp_path / "out", "--quiet")
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "data.broken=skip" in refused.stderr
    assert not (tmp_path / "out").exists()
    result = run(*arguments, "--set", "data.broken=skip")
    assert result.exit_code == 0, result.output
    assert "$a$" in (tmp_path / "out/report.html").read_text()


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    photos = _painted(tmp_path / "photos", one=3)
    for out, message in (
        (tmp_path / "out", "has only one class, 'one'"),
        (photos / "runs", "is inside the data folder"),
    ):
        result = run(photos, "--backbone", "mini-clip", "--out", out, "--quiet")
        assert result.exit_code == 2
        assert message in result.stderr
        assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emoji-questions"], "give images without questions"),
        (["emoji-defects"], "emoji-defects: methods are compared by classes, without masks"),
        (["emoji-captions"], "emoji-captions: the methods compared need classes, and pairs have none"),
        (["emoji", "--backbone", "tiny:no"], "tiny"),
        (["emoji", "--out", "OUT"], "exists already; name a new folder"),
        (["emoji", "--budget", "10x"], "is not a time such as 90s, 10m or 1h"),
        (["emoji", "--budget", "0m"], "is not a time such as 90s, 10m or 1h"),
        (["nothing-here"], "nothing-here"),
    ],
)
def test_what_is_refused_is_refused_at_once(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(*[tmp_path if each == "OUT" else each for each in arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_without_out_a_new_folder_is_made_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20261130-120000")
    for name in ("recommend-emoji-20261130-120000", "recommend-emoji-20261130-120000-2"):
        result = run("emoji", "--shots", 1, "--quiet")
        assert f"adapter    runs/{name}/adapter.safetensors" in result.stdout
        assert (tmp_path / "runs" / name / "adapter.safetensors").is_file()
    none = run("emoji", "--shots", 1, "--quiet", "--out", "none")
    assert (none.exit_code, len(list((tmp_path / "runs").iterdir()))) == (0, 2)
    assert "adapter    " not in none.stdout


@pytest.mark.full
def test_an_undivided_folder_learns_from_all_but_its_test_images(tmp_path: Path, monkeypatch: Any) -> None:
    """A tenth is cut off for validation where a folder comes without parts; nothing is given away for that."""
    for name, colour in {"red": (220, 30, 30), "green": (30, 200, 40)}.items():
        for image in range(10):
            path = tmp_path / f"photos/{name}/{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), tuple(min(255, part + 3 * image) for part in colour)).save(path)
    compared = ("gda", "lda_words", "zero_shot")
    monkeypatch.setattr("adapt.choosing.candidates.known_recipes", known_recipes)
    monkeypatch.setattr(
        module, "candidates", lambda *given: [each for each in candidates(*given) if each.name in compared]
    )
    found = adapt.recommend(str(tmp_path / "photos"), backbone="mini-clip", progress=False)
    assert found.chosen == "lda_words"
    assert found.about["train_images"] == found.result.metrics["train_images"] == 14
    assert found.result.metrics["adapted"]["images"] == 6
    assert found.result.metrics["chosen"]["how"] == "by cross-validation over 14 training images"


@pytest.mark.parametrize(
    ("right", "classes", "help_"), [(95, 2, True), (70, 2, False), (21, 10, True), (18, 10, False), (9, 10, False)]
)
def test_whether_class_names_help(right: int, classes: int, help_: bool) -> None:
    groups = tuple(map(str, range(100)))
    scores = Scores(groups, ("a",) * 100, ("a",) * right + ("b",) * (100 - right), (1.0,) * 100)
    tried = Compared(None, torch.zeros(100, classes), scores, groups, 1.0, 1, 10**9, 0.0)  # type: ignore[arg-type]
    assert module._on_class_names(tried).startswith("Class names help here" if help_ else "Class names help little")


@pytest.mark.full
def test_backbones_are_compared_as_methods_are(tmp_path: Path) -> None:
    """On the same folds as each alone; tables, files and the training say which was chosen."""
    out, names = tmp_path / "out", ("vision:mini-clip-half", "mini-clip")
    given = [f"--backbone={name}" for name in names]
    result = run("emoji", "--shots", 3, "--folds", 2, "--out", out, *given)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "recommendation.json").read_text())
    alone = adapt.recommend("emoji", shots=3, folds=2, backbone="mini-clip", progress=False)
    assert found["chosen"] == f"{alone.chosen} on mini-clip"
    assert (found["backbone"], found["backbones"]) == ("mini-clip", list(names))
    by_name = {row["method"]: timeless(row) for row in found["methods"]}
    assert "gda on vision:mini-clip-half" in by_name | found["left_out"]
    for row in map(timeless, alone.rows):
        assert by_name[f"{row['method']} on mini-clip"] == row | {"method": f"{row['method']} on mini-clip"}
    assert json.loads((out / "metrics.json").read_text())["adapted"]["accuracy"] == alone.result.accuracy
    assert result.stderr.count("backbone   ") == 2
    assert "on mini-clip, the best of vision:mini-clip-half and mini-clip" in (out / "report.html").read_text()


def test_one_backbone_twice_is_refused() -> None:
    result = run("emoji", "--shots", 2, "--backbone", "mini-clip", "--backbone", "mini-clip")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        2,
        "Error: backbones are compared that have one name (mini-clip): give each once",
    )


def test_a_target_is_a_share() -> None:
    refused = run("emoji", "--target", 90)
    assert refused.exit_code == 2
    assert "target is 90; expected an accuracy between 0 and 1, such as 0.9" in refused.stderr
