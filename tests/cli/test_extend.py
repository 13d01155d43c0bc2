"""`adapt extend`: closed forms are fitted as if from the start, shared tensors go on, other methods are refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

import adapt
from adapt.recipe import DataSection
from adapt.training.extending import extended


@pytest.fixture
def halves(five_classes: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Folders with three and with two of five classes."""
    parts = (("goldfish", "lime tree", "red panda"), ("sky", "tin can"))
    for folder, names in zip(("known", "more"), parts, strict=True):
        for part in ("train", "test"):
            for name in names:
                shutil.copytree(five_classes / part / name, tmp_path / folder / part / name)
    return tmp_path / "known", tmp_path / "more"


@pytest.fixture
def train(run, model_folder: Path, tmp_path: Path):
    """`train(method, data, name)`: the folder of a run."""

    def trained(method: str, data: Path, name: str) -> Path:
        recipe = tmp_path / f"{name}.yaml"
        steps = "" if "gda" in method or "ss_text" in method else "train: {epochs: 1, augment: none, workers: 0}\n"
        recipe.write_text(f"method: {method}\nbackbone: {model_folder}\ndata: {{source: {data}, shots: 3}}\n{steps}")
        result = run("train", recipe, "--out", tmp_path / name, "--quiet")
        assert result.exit_code == 0, result.output
        return tmp_path / name

    return trained


def test_a_closed_form_is_that_of_all_images(run, train, halves: tuple[Path, Path], tmp_path: Path) -> None:
    known, more = halves
    first = train("{name: gda, alpha: 1.0}", known, "first")
    result = run("extend", first, "--data", more, "--out", tmp_path / "second", "--quiet")
    assert result.exit_code == 0, result.output
    second = adapt.load(tmp_path / "second")
    assert second.class_names == ("goldfish", "lime tree", "red panda", "sky", "tin can")
    with (tmp_path / "second/images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [sum(row["split"] == part for row in rows) for part in ("train", "val", "test")] == [15, 0, 20]
    drawn = {row["path"] for row in rows if row["split"] == "train"}
    for folder in (first, tmp_path / "second"):
        with (folder / "train_images.csv").open() as file:
            assert {row["path"].lstrip("/") for row in csv.DictReader(file)} <= drawn
    for part, count in (("train", 15), ("test", 20)):
        whole = tmp_path / "whole" / part
        for row in rows:
            if row["split"] == part:
                path = Path("/", row["path"])
                (whole / row["label"]).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, whole / row["label"] / path.name)
        assert len(list(whole.rglob("*.png"))) == count
    fresh = adapt.load(train("{name: gda, alpha: 1.0}", tmp_path / "whole", "fresh"))
    for name, tensor in fresh.method.state_dict().items():
        assert torch.allclose(tensor, second.method.state_dict()[name], atol=1e-5), name


def test_all_classes_are_added_to_a_run_of_some(
    train, halves: tuple[Path, Path], model_folder: Path, tmp_path: Path
) -> None:
    """The parts of the run's own data are not those of the new data; descriptions go along."""
    known, more = halves
    (tmp_path / "part").mkdir()
    table = tmp_path / "described.csv"
    rows = [
        f"{image.relative_to(more)},{image.parent.name},a picture,{part}"
        for part in ("train", "test")
        for image in sorted((more / part).glob("*/*"))
    ]
    table.write_text("\n".join(["path,label,caption,split", *rows]))
    data = f"{{source: {known}, shots: 3, classes: base}}"
    recipe_file = tmp_path / "part/recipe.yaml"
    recipe_file.write_text(f"method: {{name: gda, alpha: 1.0}}\nbackbone: {model_folder}\ndata: {data}\n")
    recipe = extended(tmp_path / "part", DataSection(source=str(table), root=str(more)), tmp_path / "out")
    split = adapt.data.load(recipe.data.source, root=recipe.data.root)
    assert split.class_names == ("goldfish", "lime tree", "sky", "tin can")
    assert {item.label.caption for item in split.items() if item.answer in ("sky", "tin can")} == {"a picture"}
    assert {item.label.caption for item in split.items() if item.answer == "goldfish"} == {""}


def test_shared_tensors_go_on_from_the_adapter(run, train, halves: tuple[Path, Path], tmp_path: Path) -> None:
    known, more = halves
    first = train("{name: coop, n_ctx: 2}", known, "first")
    assert run("extend", first, "--data", more, "--out", tmp_path / "second", "--quiet").exit_code == 0
    second = adapt.load(tmp_path / "second")
    assert len(second.class_names) == 5
    assert second.metadata["recipe"]["start"] == str(first)
    assert not torch.equal(second.method.ctx, adapt.load(first).method.ctx)


@pytest.mark.parametrize(("of_item", "method"), [(1, "{name: coop, n_ctx: 2}"), (2, "{name: abmil, by: view}")])
def test_views_of_items_go_along(
    run, train, halves: tuple[Path, Path], tmp_path: Path, of_item: int, method: str
) -> None:
    lists = []
    for folder in halves:
        images = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
        rows = [f"{each},{each.parts[1]},{each.parts[0]},{number // of_item},{('front', 'side')[number % 2]}"
                for number, each in enumerate(images)]  # fmt: skip
        lists.append(folder / "list.csv")
        lists[-1].write_text("\n".join(["path,label,split,item,view", *rows]))
    first = train(method, lists[0], "first")
    result = run("extend", first, "--data", lists[1], "--out", tmp_path / "second", "--quiet")
    assert result.exit_code == 0, result.output
    second = adapt.load(tmp_path / "second")
    if of_item > 1:
        assert second.method.config.view_names == ("front", "side")
    assert len(second.class_names) == 5
    with (tmp_path / "second/images.csv").open() as file:
        assert {row["view"] for row in csv.DictReader(file)} == {"front", "side"}


def test_unlabelled_images_go_along(run, train, halves: tuple[Path, Path], tmp_path: Path) -> None:
    known, more = halves
    for folder, name in ((known, "red panda"), (more, "sky")):
        (folder / "unlabelled" / "any").mkdir(parents=True)
        for image in sorted((folder / "test" / name).iterdir())[:2]:
            shutil.move(image, folder / "unlabelled" / "any")
    first = train("{name: ss_text, variant: SS-Text-U}", known, "first")
    result = run("extend", first, "--data", more, "--out", tmp_path / "second", "--quiet")
    assert result.exit_code == 0, result.output
    assert len(adapt.load(tmp_path / "second").class_names) == 5


def test_what_the_run_has_is_not_missed_in_the_new_data(
    run, train, halves: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, more = halves
    first = train("{name: gda, alpha: 1.0}", known, "first")
    for part in ("train", "test"):
        shutil.rmtree(more / part / "tin can")
        shutil.copytree(known / part / "goldfish", more / part / "goldfish")
    for path in sorted((more / "train/goldfish").iterdir())[1:] + sorted((more / "train/sky").iterdir())[2:]:
        path.unlink()
    shutil.copytree(known / "test/lime tree", more / "test/lime tree")
    caplog.clear()
    result = run("extend", first, "--data", more, "--out", tmp_path / "second", "--quiet")
    assert result.exit_code == 0, result.output
    lacks = [each for each in caplog.messages if "class" in each]
    assert lacks == ["1 class has fewer than 3 training images ('sky' 2): all images are used"]
    shutil.rmtree(more / "train/goldfish")
    caplog.clear()
    assert run("extend", first, "--data", more, "--out", tmp_path / "third", "--quiet").exit_code == 0
    assert [each for each in caplog.messages if "class" in each] == lacks


def test_an_image_of_two_classes_is_refused_and_its_copies_are_told(
    run, refused, train, halves: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, more = halves
    first = train("{name: gda, alpha: 1.0}", known, "first")
    images = sorted((known / "train/goldfish").iterdir())
    (tmp_path / "more.csv").write_text(
        "path,label\n" + "".join(f"{each.relative_to(tmp_path)},sky\n" for each in images)
    )
    out = tmp_path / "second"
    refused(
        run("extend", first, "--data", tmp_path / "more.csv", "--out", out),
        f"known and more: '{images[0].parent}", "is of two classes, 'goldfish' and 'sky'",
    )  # fmt: skip
    assert not out.exists()
    with (first / "train_images.csv").open() as file:
        learned = next(Path("/", row["path"]) for row in csv.DictReader(file) if "goldfish" in row["path"])
    sky, cans = (sorted((more / "train" / name).iterdir()) for name in ("sky", "tin can"))
    for path in (sky[3], *cans[1:]):  # all that stay are drawn
        path.unlink()
    shutil.copy(learned, sky[0])
    shutil.copy(cans[0], sky[1])
    caplog.clear()
    assert run("extend", first, "--data", more, "--out", out, "--quiet").exit_code == 0
    told = f"{sky[0]}, train 'sky' ({learned}, train 'goldfish'), {cans[0]}, train 'tin can' ({sky[1]}, train 'sky')"
    assert f"the same picture with another label: {told}" in caplog.messages


def test_what_cannot_be_extended_is_refused_before_anything_is_written(
    run, refused, train, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    known, more = halves
    tensors_of_classes = train("{name: task_res}", known, "first")
    out = tmp_path / "second"
    chosen = tmp_path / "chosen"
    shutil.copytree(tensors_of_classes, chosen)
    recipe = (chosen / "recipe.yaml").read_text().replace("name: task_res", "name: das\n  skip: 1")
    (chosen / "recipe.yaml").write_text(recipe)
    refused(run("extend", chosen, "--data", more, "--out", out), "das with these settings chooses ")
    refused(
        run("extend", tensors_of_classes, "--data", more, "--out", out),
        "task_res with these settings learns tensors for each class by gradient steps", "such as gda",
    )  # fmt: skip
    closed = train("{name: gda, alpha: 1.0}", known, "closed")
    refused(run("extend", closed, "--data", known, "--out", out), "known has no class that the run does not know")
    refused(run("extend", known, "--data", more, "--out", out), "is not the folder of a run")
    assert not out.exists()
    refused(run("extend", closed, "--data", more, "--out", closed), "already contains a run")
    assert not (closed / "images.csv").exists()
