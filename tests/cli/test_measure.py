"""`adapt eval` and `adapt zeroshot`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adapt import fit, load, load_backbone, methods, wrap
from adapt.data import load as load_data
from adapt.data import read_folder
from adapt.evaluation.evaluate import evaluate
from adapt.formats.adapter import read_header


def test_eval_repeats_the_accuracy_of_the_run(run, adapter: Path, photos: Path) -> None:
    metrics = json.loads((adapter.parent / "metrics.json").read_text())
    result = run("eval", adapter, "--data", photos, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["accuracy"] == metrics["adapted"]["accuracy"]
    assert (found["method"], found["part"], found["images"]) == ("coop", "test", 6)


def test_eval_warns_of_images_that_the_run_was_trained_on(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (photos / "val").iterdir())
    rows = [f"{part}/sky/0.png,sky,test\n" for part in ("train", "test")]
    rows += [f"val/{name}/0.png,{name},train\n" for name in names]
    (tmp_path / "list.csv").write_text("path,label,split\n" + "".join(rows))
    result = run("eval", adapter, "--data", tmp_path / "list.csv", "--root", photos)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith(f"warning: {adapter} was trained on 1 of these 2 images, or something ")
    listed = run("eval", adapter, "--data", tmp_path / "list.csv", "--root", photos, "--part", "train")
    assert "warning" not in listed.stderr


def test_eval_says_where_it_cannot_know(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    alone = shutil.copy(adapter, tmp_path / "alone.safetensors")
    told = run("eval", alone, "--data", photos).stderr
    assert told.startswith(
        f"warning: a training run of {alone} is not here, so it is unknown whether it learned from these"
    )


def test_eval_goes_on_where_a_run_cannot_be_read(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    own = shutil.copytree(adapter.parent, tmp_path / "run")
    (own / "seen_images.csv").write_bytes(b"image,path\ncaf\xe9.png,a\n")
    result = run("eval", own, "--data", photos)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: whether {own} was trained on these images is unknown: CSV ")


def test_a_part_without_images_is_named(run, refused, adapter: Path, photos: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (photos / "val").iterdir())
    (tmp_path / "list.csv").write_text(
        "path,label,split\n" + "".join(f"val/{name}/0.png,{name},train\n" for name in names)
    )
    given = ("--data", tmp_path / "list.csv", "--root", photos)
    refused(run("eval", adapter, *given), "list has no test images; its images: train 3. Give --part all")


def test_zeroshot_is_the_baseline_of_the_run(run, adapter: Path, photos: Path, model_folder: Path) -> None:
    metrics = json.loads((adapter.parent / "metrics.json").read_text())
    result = run("zeroshot", "--data", photos, "--backbone", model_folder, "--json")
    assert json.loads(result.stdout)["accuracy"] == metrics["zero_shot"]["accuracy"]


def test_as_text(run, adapter: Path, photos: Path) -> None:
    result = run("eval", adapter, "--data", photos, "--part", "val")
    scores = json.loads(run("eval", adapter, "--data", photos, "--part", "val", "--json").stdout)
    accuracy, balanced = (
        "{:.1f} % ({:.1f} to {:.1f})".format(*(100 * value for value in (scores[name], *scores["intervals"][name])))
        for name in ("accuracy", "mean_class_accuracy")
    )
    assert result.stdout.splitlines() == [
        f"{accuracy} of 6 val images of photos (3 classes), balanced {balanced}",
        "in brackets: 95 % confidence interval; only rough with fewer than 100 images",
        "measured: 6 val images of 18 (train 6, test 6; --part all measures all)",
    ]
    assert scores["parts"] == {"train": 6, "val": 6, "test": 6}
    assert scores["mean_class_accuracy"] == sum(scores["by_class"].values()) / 3


def test_all_parts_of_a_folder_that_has_none(run, adapter: Path, photos: Path, model_folder: Path) -> None:
    folder = photos / "train"  # class folders with two images each
    divided = (
        "train came without parts and was divided by ratios: of each class, 60 % are for training, 10 % for validation "
        "and 30 % for testing, drawn with a fixed seed"
    )
    for command in (("eval", adapter), ("zeroshot", "--backbone", model_folder)):
        test = run(*command, "--data", folder)
        assert test.stdout.splitlines()[-2:] == [
            "measured: 3 test images of 6 (train 3; --part all measures all)",
            divided,
        ]
        every = run(*command, "--data", folder, "--part", "all")
        result, _, *said = every.stdout.splitlines()
        assert " of 6 images of train (3 classes), balanced " in result
        assert said == ["measured: all 6 images of the data (train 3, test 3)"]
    found = json.loads(run("eval", adapter, "--data", folder, "--part", "all", "--json").stdout)
    assert (found["part"], found["images"]) == ("all", 6)
    split = read_folder(folder)
    assert evaluate(load(adapter), [*split.items()]).accuracy == found["accuracy"]


def test_several_templates_are_averaged(run, photos: Path, model_folder: Path) -> None:
    templates = ("a {}.", "{} texture.")
    given = [word for template in templates for word in ("--template", template)]
    result = run("zeroshot", "--data", photos, "--backbone", model_folder, *given, "--part", "train", "--json")
    split = read_folder(photos)
    model = wrap(load_backbone(str(model_folder)), methods.ZeroShot(templates), split.class_names)
    assert json.loads(result.stdout)["accuracy"] == evaluate(model, split.train).accuracy


@pytest.fixture
def other_photos(photos: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(photos, tmp_path / "others"))
    for part in folder.iterdir():
        (part / "sky").rename(part / "ocean")
    return folder


def test_data_with_other_classes(run, refused, adapter: Path, other_photos: Path) -> None:
    refused(run("eval", adapter, "--data", other_photos), "has other classes than", "add --data-classes")
    assert run("eval", adapter, "--data", other_photos, "--data-classes").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "data 'nowhere' is not there: no file or folder has this path"),
        (["--data", "PHOTOS", "--backbone", "mini-clap"], "unknown backbone 'mini-clap'"),
        (["--data", "PHOTOS", "--backbone", "MODEL", "--template", "a photo"], "a template must contain {}"),
        (["--data", "PHOTOS", "--root", "x"], "takes no root: leave out 'x'"),
    ],
)
def test_refusals(run, refused, photos: Path, model_folder: Path, arguments: list[str], words: str) -> None:
    given = {"PHOTOS": photos, "MODEL": model_folder}
    refused(run("zeroshot", *(given.get(argument, argument) for argument in arguments)), words)


def test_a_damaged_model_folder(run, refused, photos: Path, model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "damaged"))
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(run("zeroshot", "--data", photos, "--backbone", folder), str(folder))
    (folder / "open_clip_config.json").write_text("{")
    refused(run("zeroshot", "--data", photos, "--backbone", folder), "open_clip_config.json is damaged")


def test_a_wrong_blend_is_refused_before_any_is_measured(run, refused, adapter: Path, photos: Path) -> None:
    result = run("eval", adapter, "--data", photos, "--blend", "0,2")
    refused(result, "blend is 2")
    assert "blend 0" not in result.stdout


def test_the_backbone_is_said_first_and_what_a_bundled_one_does_not_know(run, five_classes: Path) -> None:
    """Every command takes the recipes' backbone for the data where none is named."""
    from adapt.cli.options import say_backbone

    assert say_backbone(None, "emoji") == "mini-clip"
    assert say_backbone(None, str(five_classes)) == "open_clip:ViT-B-16-quickgelu/openai"
    assert run("zeroshot", "--data", "emoji@noto").stderr.splitlines()[0] == "backbone   mini-clip"
    said = run("zeroshot", "--data", five_classes, "--backbone", "mini-clip").stderr.splitlines()
    assert said[0] == "backbone   mini-clip"
    assert said[1].strip().startswith("mini-clip was trained on drawings of emoji, not on photographs")


def test_sets_with_a_guarantee(run, trained, tmp_path: Path, photos: Path) -> None:
    """Calibrated on the test images, as the run has learned from the others; of a file alone, that is not known."""
    folder, out = trained("coop"), tmp_path / "sets.safetensors"
    every = run("sets", folder, "--data", photos, "--out", out)
    assert every.exit_code == 2
    assert "the adapter has learned from 12 of these 18 images" in every.stderr
    few = run("sets", folder, "--data", photos, "--part", "test", "--out", out)
    assert (few.exit_code, out.exists()) == (2, False)
    assert "sets at 0.9 need 9 or more calibration images, and the adapter has 6: " in few.stderr
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "adapter.safetensors").read_bytes())
    done = run("sets", alone, "--data", photos, "--score", "aps", "--out", out)
    assert done.exit_code == 0, done.output
    assert f"warning: a training run of {alone} is not here" in done.stderr
    assert "18 images: the set holds the true class for at least 90 % of images like the 18 calib" in done.stdout
    measured = json.loads(run("eval", out, "--data", photos, "--part", "all", "--sets", "0.9", "--json").stdout)["sets"]
    assert measured["coverage"] >= 0.9
    told = run("eval", out, "--data", photos, "--part", "all", "--sets", "0.9").stdout
    assert f"sets at 0.9: {100 * measured['coverage']:.1f} % (" in told
    picture = photos / "test" / "sky" / "0.png"
    found = json.loads(run("predict", out, picture, "--sets", "0.9", "--json").stdout)
    ranked = [each["class"] for each in found["top"]]
    assert found["set"] == ranked[: len(found["set"])]
    assert run("predict", out, picture, "--sets", "0.9").stdout.startswith(f"{picture}  {{{', '.join(found['set'])}}}")
    header, row = run("predict", out, picture, "--sets", "0.9", "--csv").stdout.splitlines()
    assert (header, row.split(",")[3]) == ("image,class,probability,set", "|".join(found["set"]))
    assert "has no calibrated sets" in run("predict", folder, picture, "--sets", "0.9").stderr
    together, test = tmp_path / "together.safetensors", photos / "test"
    done = run("sets", alone, "--data", photos, "--together", "--out", together)
    assert f"adapt predict {together} IMAGES --together --sets 0.9" in done.stdout
    told = run("predict", together, "--together", test, "--sets", "0.9", "--csv")
    assert "answered together as one batch (not one after another)" in told.stderr
    rows = [row.split(",") for row in told.stdout.splitlines()]
    model = load(together)
    expected = model.predict_together([row[0] for row in rows[1:]], sets=0.9)
    assert [row[3] for row in rows] == ["set", *("|".join(each.set or ()) for each in expected)]
    assert "sets at 0.9: 1" in run("eval", together, "--data", photos, "--part", "all", "--sets", "0.9").stdout
    assert "lac, over all images, answered together, calibrated on 18 images" in run("inspect", together).stdout
    assert (
        "leave out threshold, explain and at_a_time"
        in run("predict", together, "--together", "--at-a-time", "3", test, "--sets", "0.9").stderr
    )


@pytest.mark.full
def test_sets_without_images_held_back(
    run, refused, trained, tmp_path: Path, five_classes: Path, model_folder: Path
) -> None:
    """As many answers as folds, whose sets are those of the file, of a folder, of evaluation and of Python."""
    (tmp_path / "mean.yaml").write_text(
        f"method: {{name: nearest_mean}}\nbackbone: {model_folder}\ndata: {{source: {five_classes}}}\n"
    )
    folder, out = tmp_path / "run", tmp_path / "crossed.safetensors"
    assert run("train", tmp_path / "mean.yaml", "--out", folder, "--quiet").exit_code == 0
    done = run("sets", folder, "--folds", 5, "--out", out)
    assert done.exit_code == 0, done.output
    [first, second] = done.stdout.splitlines()
    assert first.startswith(
        "averages 5 adapters, each trained without one of 5 random parts of 20 images: the set holds the true class "
        "for at least 67.5 % (in practice some 90 %) of images like the 20 training images, on average over draws"
    )
    assert f"{out} ({out.stat().st_size / 1024:.1f} KiB)" in second
    model, pictures = load(out), sorted((five_classes / "test").rglob("*.png"))
    assert len(read_header(out).sets["scores"]) == 5
    assert [len(each) for each in model.sets_at(0.9).scores] == [4] * 5
    expected = [each.set for each in model.predict(pictures, sets=0.9)]
    assert any(len(each) < 5 for each in expected)
    rows = run("predict", out, five_classes / "test", "--sets", "0.9", "--json")
    assert "at least 67.5 % (in practice some 90 %)" in rows.stderr
    assert [json.loads(row)["set"] for row in rows.stdout.splitlines()] == list(map(list, expected))
    found = json.loads(run("eval", out, "--data", five_classes, "--sets", "0.9", "--json").stdout)["sets"]
    right = [path.parent.name in each for path, each in zip(pictures, expected, strict=True)]
    assert (found["coverage"], found["size"]) == (sum(right) / 20, sum(map(len, expected)) / 20)
    assert "lac, crossed, 5 folds, calibrated on 20 images" in run("inspect", out).stdout
    again = run("sets", folder, "--folds", 5, "--out", tmp_path / "again.safetensors")
    assert again.exit_code == 0
    assert load(tmp_path / "again.safetensors").answers.sets == model.answers.sets
    refused(run("predict", out, pictures[0], "--sets", "0.5"), "promise nothing at 0.5: ask for more")
    other = ("--out", tmp_path / "other.safetensors")
    refused(run("sets", folder, "--folds", 21, *other), "folds is 21; expected 2 to 20, one for each image")
    refused(run("sets", folder, "--folds", 1, *other), "folds is 1; expected 2 to 20, one for each image")
    refused(
        run("sets", folder, "--folds", 5, "--data", five_classes, *other), "give --data, new labelled images to cal"
    )
    refused(run("sets", folder, "--folds", 5, "--by-class", *other), "without --root, --names, --part, --by-class and")
    refused(run("sets", folder, *other), "or --folds, which is by those that were learned from")
    refused(run("sets", trained("coop"), "--folds", 2, *other), "Calibrate this coop on images that it has not")
    refused(run("sets", out, "--folds", 2, *other), "is a soup or an average of several adapters: make it")
    assert "a random one of 2 folds cannot be left out: " in run("sets", folder, "--folds", 2, *other).stderr


def test_intervals_of_numbers(run, tmp_path: Path, photos: Path, model_folder: Path) -> None:
    pictures = sorted(photos.rglob("*.png"))
    rows = [f"{path},{number % 5}" for number, path in enumerate(pictures)]
    (tmp_path / "numbers.csv").write_text("\n".join(["path,target", *rows]))
    items = tuple(load_data(str(tmp_path / "numbers.csv"), root=str(photos)).items())
    model = wrap(load_backbone(str(model_folder)), methods.Ridge(alpha=1.0), ["bad", "poor", "fair", "good", "perfect"])
    fit(model, items, progress=False)
    adapter, out = model.save(tmp_path / "ridge.safetensors"), tmp_path / "intervals.safetensors"
    data = ("--data", tmp_path / "numbers.csv", "--root", photos, "--part", "all")
    refused = run("sets", adapter, *data, "--score", "aps", "--out", out)
    assert "predicts a number, whose interval is by the errors of numbers: leave out score" in refused.stderr
    done = run("sets", adapter, *data, "--out", out)
    assert (
        "the interval holds the true number for at least 90 % of images like the 18 calibration images" in done.stdout
    )
    [prediction] = load(out).predict(pictures[0], sets=0.9)
    assert prediction.number is not None
    assert prediction.interval is not None
    header, row = run("predict", out, pictures[0], "--sets", "0.9", "--csv").stdout.splitlines()
    assert header == "image,class,probability,number,low,high"
    expected = [prediction.number, *prediction.interval]
    assert [float(cell) for cell in row.split(",")[3:]] == pytest.approx(expected, rel=1e-4)
    low, high = prediction.interval
    told = run("predict", out, pictures[0], "--sets", "0.9").stdout.splitlines()[0]
    assert told == f"{pictures[0]}  {prediction.number:.3g} ({low:.3g} to {high:.3g})"
    assert "intervals at 0.9: 100.0 % (" in run("eval", out, *data, "--sets", "0.9").stdout


def test_one_adapter_against_another(run, trained, photos: Path, tmp_path: Path) -> None:
    coop, lora = trained("coop"), trained("lora")
    told = run("eval", coop, "--data", photos, "--against", lora)
    assert told.exit_code == 0, told.output
    alone = run("eval", lora, "--data", photos).stdout.splitlines()[0]
    first, second, apart, *_ = told.stdout.splitlines()
    assert (first, second) == (run("eval", coop, "--data", photos).stdout.splitlines()[0], f"{lora}: {alone}")
    measured = json.loads(run("eval", coop, "--data", photos, "--against", lora, "--json").stdout)
    difference = measured["against"]["difference"]
    assert measured["against"]["adapter"] == str(lora)
    assert difference["merit"] == pytest.approx(measured["accuracy"] - measured["against"]["accuracy"])
    assert apart.startswith(f"the first minus the second: {100 * difference['merit']:+.1f} points of accuracy (")
    assert "by McNemar's exact test" in apart
    models = [load(coop), load(lora)]
    paths = [str(path) for path in sorted((photos / "test").glob("*/*.png"))]
    answers = {path: [model.predict(path)[0].class_name for model in models] for path in paths}
    differ = {path: pair for path, pair in answers.items() if pair[0] != pair[1]}
    assert differ  # or the next line says nothing
    assert {row["path"]: [row["first"], row["second"]] for row in difference["flips"]} == differ
    wrong = [row["class"] not in (row["first"], row["second"]) for row in difference["flips"]]
    assert wrong == sorted(wrong)  # what one of them has right comes first
    page = tmp_path / "difference.html"
    run("eval", coop, "--data", photos, "--against", lora, "--report", page)
    assert page.read_text().count("data:image/jpeg;base64,") == len(difference["flips"])
    assert f"First {coop}, second {lora}" in page.read_text()
    assert "the first minus the second: " in page.read_text()
    for wrong in (["--against", lora, "--report", tmp_path / "page.txt"], ["--report", page]):
        assert "expected a file that ends in .html, and --against" in run("eval", coop, "--data", photos, *wrong).stderr
    refused = run("eval", coop, "--data", photos, "--against", lora, "--blend", "0.5")
    assert "--blend or --languages is given with --against or --sets" in refused.stderr


def test_what_a_run_has_seen_is_known_through_its_start_and_a_damaged_list_is_refused(
    run, trained, tmp_path: Path, photos: Path, recipe: Path
) -> None:
    first, second, out = trained("coop"), tmp_path / "second", tmp_path / "sets.safetensors"
    other = shutil.copytree(photos / "test", tmp_path / "other" / "train")
    started = run("train", recipe, "--data", other.parent, f"--set=start={first}", "--out", second, "--quiet")
    assert started.exit_code == 0, started.output
    refused = run("sets", second, "--data", photos, "--part", "train", "--out", out)
    assert "the adapter has learned from 6 of these 6 images" in refused.stderr
    listed = second / "seen_images.csv"
    for content in ("image,part\n", "picture,part\nabc,train\n", "image,part\nno hash,train\n"):
        listed.write_text(content)
        damaged = run("sets", second, "--data", photos, "--part", "train", "--out", out)
        assert damaged.exit_code == 2
        assert "is damaged: delete it" in damaged.stderr
    shutil.copy(trained("lora") / "adapter.safetensors", second / "strange.safetensors")
    other_run = run("sets", second / "strange.safetensors", "--data", photos, "--out", out)
    assert "strange.safetensors is not here" in other_run.stderr
