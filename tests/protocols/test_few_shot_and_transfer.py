"""Few-shot curves and transfer to other data: what is trained, what is measured, what is refused beforehand."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import by_hand, contents
from PIL import Image
from stopping import interrupt, stopped_at

import adapt
from adapt import AdaptError, methods
from adapt.data import Item, Split, read_folder
from adapt.data.item import items_id
from adapt.protocols import protocol as protocols
from adapt.protocols.plain_runs import plain_table, read_run
from adapt.protocols.protocol import run_protocol, summaries
from adapt.protocols.runs import Target
from adapt.protocols.tables import table
from adapt.recipe import DataSection, Recipe, build_recipe

SEEDS = (4, 5)
SHOTS = (1, 2)


# Few-shot curves


@pytest.fixture(scope="module")
def curve_recipe(raw: dict[str, Any]) -> Recipe:
    """Two epochs of one step for one shot, three of three steps for two shots."""
    return build_recipe(raw | {"train": raw["train"] | {"epochs": {1: 2, 2: 3, 4: 1}}}, "curve")


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory, curve_recipe: Recipe) -> Path:
    """The folder of a curve over both seeds; not to be written to."""
    out = tmp_path_factory.mktemp("curve") / "whole"
    run_protocol(protocols.few_shot(curve_recipe, SHOTS, SEEDS), out)
    return out


def read(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / name).read_text())
    return found


def test_a_run_for_every_number_of_shots_and_seed(curve: Path) -> None:
    rows = read(curve, "few_shot.json")["runs"]
    expected = [(f"shots-{shots}-seed-{seed}", shots, seed) for shots in SHOTS for seed in SEEDS]
    assert [(row["run"], row["shots"], row["seed"]) for row in rows] == expected
    assert {path.parent.name for path in curve.glob("*/adapter.safetensors")} == {name for name, *_ in expected}
    steps = {name: read(curve / name, "metrics.json")["steps"] for name, *_ in expected}
    assert steps == {name: {1: 2, 2: 9}[shots] for name, shots, _ in expected}


def test_each_run_sees_the_picks_of_its_shots_and_seed(curve: Path, split: Split) -> None:
    rows = read(curve, "few_shot.json")["runs"]
    picks = [split.few_shot(row["shots"], row["seed"]).train for row in rows]
    assert [row["train_set"] for row in rows] == [items_id(each) for each in picks]
    assert len({row["train_set"] for row in rows}) == 4
    assert [len(each) for each in picks] == [5, 5, 10, 10]


def test_a_curve_is_measured_on_all_classes(curve: Path, split: Split, model_folder: Path) -> None:
    frozen = adapt.wrap(adapt.load_backbone(str(model_folder)), methods.ZeroShot("{} texture."), split.class_names)
    for row in read(curve, "few_shot.json")["runs"]:
        adapted = adapt.load(curve / row["run"] / "adapter.safetensors")
        assert (row["test"], row["zero_shot_test"]) == (by_hand(adapted, split.test), by_hand(frozen, split.test))


def test_summaries_are_by_shots(curve: Path) -> None:
    found = read(curve, "few_shot.json")
    assert [(group["shots"], group["runs"]) for group in found["summary"]] == [(1, 2), (2, 2)]
    for group in found["summary"]:
        values = [row["test"] for row in found["runs"] if row["shots"] == group["shots"]]
        assert group["mean"] == {"test": statistics.mean(values)}
        assert group["std"] == {"test": statistics.stdev(values)}
        assert group["std"]["test"] > 0
        assert group["zero_shot"] == {"test": found["runs"][0]["zero_shot_test"]}


def test_another_number_of_shots_is_added_to_those_that_are_there(
    curve: Path, curve_recipe: Recipe, trained: list[int], tmp_path: Path
) -> None:
    before = read(curve, "few_shot.json")
    out = Path(shutil.copytree(curve, tmp_path / "copy"))
    found = run_protocol(protocols.few_shot(curve_recipe, (1, 4, 2), SEEDS), out)
    assert trained == list(SEEDS)
    assert [row["run"] for row in found["runs"][4:]] == ["shots-4-seed-4", "shots-4-seed-5"]
    assert found["runs"][:4] == before["runs"]
    assert found["summary"][:2] == before["summary"]


def test_results_of_other_seeds_and_shots_stay(
    curve: Path, curve_recipe: Recipe, trained: list[int], tmp_path: Path
) -> None:
    """They are among the results of the next command, unless their runs are gone."""
    before = read(curve, "few_shot.json")
    out, told = Path(shutil.copytree(curve, tmp_path / "copy")), list[str]()
    found = run_protocol(protocols.few_shot(curve_recipe, (4,), SEEDS[:1]), out, progress=told.append)
    assert trained == list(SEEDS[:1])
    assert found["runs"][:4] == before["runs"]
    assert [(each["shots"], each["runs"]) for each in found["summary"]] == [(1, 2), (2, 2), (4, 1)]
    assert told[-1] == f"4 finished runs of earlier commands in {out} are among the results"
    shutil.rmtree(out / "shots-1-seed-4")
    found = run_protocol(protocols.few_shot(curve_recipe, (4,), SEEDS[:1]), out)
    assert [row["run"] for row in found["runs"]] == [
        "shots-1-seed-5", "shots-2-seed-4", "shots-2-seed-5", "shots-4-seed-4",
    ]  # fmt: skip


def test_runs_on_different_test_images_share_no_average(curve: Path, curve_recipe: Recipe, tmp_path: Path) -> None:
    out = Path(shutil.copytree(curve, tmp_path / "copy"))
    metrics = json.loads((out / "shots-2-seed-5/metrics.json").read_text())
    (out / "shots-2-seed-5/metrics.json").write_text(json.dumps(metrics | {"test_set": "0" * 16}))
    with pytest.raises(AdaptError, match="shots-1-seed-4 and shots-2-seed-5 are of different images or labels"):
        run_protocol(protocols.few_shot(curve_recipe, (1, 2), SEEDS), out)


def test_a_run_from_another_start_is_not_read(curve: Path, curve_recipe: Recipe, tmp_path: Path) -> None:
    other = curve_recipe.model_copy(update={"start": str(curve / "shots-1-seed-5")})
    out = Path(shutil.copytree(curve, tmp_path / "copy"))
    with pytest.raises(AdaptError, match="holds results of another recipe"):
        run_protocol(protocols.few_shot(other, (1, 2), SEEDS), out)
    (out / "few_shot.json").unlink()
    with pytest.raises(AdaptError, match="shots-1-seed-4 holds a run of another recipe"):
        run_protocol(protocols.few_shot(other, (1, 2), SEEDS), out)


def test_a_finished_run_of_other_data_is_not_read(curve_recipe: Recipe, five_classes: Path, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(five_classes, tmp_path / "photos"))
    data = curve_recipe.data.model_copy(update={"source": str(photos)})
    few_shot = protocols.few_shot(curve_recipe.model_copy(update={"data": data}), (1,), SEEDS[:1])
    found = run_protocol(few_shot, tmp_path / "out")
    assert run_protocol(few_shot, tmp_path / "out") == found
    changes = [(path, path.with_name("other")) for path in (photos / "train/sky", photos / "test/sky")]
    for path, other in changes:
        path.rename(other)
    with pytest.raises(AdaptError, match="photos' have changed since the run in"):
        run_protocol(few_shot, tmp_path / "out")
    for path, other in changes:
        other.rename(path)
    image = next((photos / "test/sky").iterdir())
    content = image.read_bytes()
    image.write_bytes(next((photos / "test/tin can").iterdir()).read_bytes())
    with pytest.raises(AdaptError, match="delete that folder to train again"):
        run_protocol(few_shot, tmp_path / "out")
    image.write_bytes(content)
    assert run_protocol(few_shot, tmp_path / "out") == found
    image.unlink()
    with pytest.raises(AdaptError, match="delete that folder to train again"):
        run_protocol(few_shot, tmp_path / "out")


def test_an_interrupted_run_goes_on_with_the_same_names_alone(
    curve_recipe: Recipe, five_classes: Path, tmp_path: Path
) -> None:
    photos = Path(shutil.copytree(five_classes, tmp_path / "photos"))
    names, table = sorted(path.name for path in (photos / "train").iterdir()), tmp_path / "photos.csv"

    def label(*called: str) -> None:
        rows = [f"{part}/{name}/{name}-{i}.png,{own},{part}" for part in ("train", "test")
                for name, own in zip(names, called, strict=True) for i in range(4)]  # fmt: skip
        table.write_text("\n".join(["path,label,split", *rows]))

    data = curve_recipe.data.model_copy(update={"source": str(table), "root": str(photos)})
    few_shot = protocols.few_shot(curve_recipe.model_copy(update={"data": data}), (2,), SEEDS[:1])
    label(*names)
    with stopped_at(4, interrupt):
        run_protocol(few_shot, tmp_path / "out")
    for called in (["fish", *names[1:]], [names[1], names[0], *names[2:]]):
        label(*called)
        with pytest.raises(AdaptError, match="another recipe, to other images or names of classes"):
            run_protocol(few_shot, tmp_path / "out")
    label(*names)
    run_protocol(few_shot, tmp_path / "out")


def listed(folder: Path, table: Path, called: Sequence[str], parts: Sequence[str] = ("train", "test")) -> None:
    """Write a list of the images in a folder of parts and classes, whose classes are called by other names."""
    names = sorted(path.name for path in (folder / parts[0]).iterdir())
    rows = [
        f"{image.relative_to(folder)},{own},{part}"
        for part in parts
        for name, own in zip(names, called, strict=True)
        for image in sorted((folder / part / name).iterdir())
    ]
    table.write_text("\n".join(["path,label,split", *rows]))


def test_runs_of_classes_that_changed_names_share_no_average(
    curve_recipe: Recipe, five_classes: Path, tmp_path: Path
) -> None:
    names, table = sorted(path.name for path in (five_classes / "train").iterdir()), tmp_path / "photos.csv"
    data = curve_recipe.data.model_copy(update={"source": str(table), "root": str(five_classes)})
    recipe = curve_recipe.model_copy(update={"data": data})
    listed(five_classes, table, names)
    run_protocol(protocols.few_shot(recipe, (1,), SEEDS[:1]), tmp_path / "out")
    listed(five_classes, table, [*names[1:], names[0]])  # the same numbers of the same names
    with pytest.raises(AdaptError, match="shots-1-seed-4 and shots-1-seed-5 are of different images or labels"):
        run_protocol(protocols.few_shot(recipe, (1,), SEEDS[1:]), tmp_path / "out")


def test_a_finished_run_without_its_recipe_is_of_no_recipe(curve: Path, curve_recipe: Recipe, tmp_path: Path) -> None:
    out = Path(shutil.copytree(curve, tmp_path / "copy"))
    (out / "shots-1-seed-4/recipe.yaml").unlink()
    with pytest.raises(AdaptError, match="shots-1-seed-4 holds a run of another recipe"):
        run_protocol(protocols.few_shot(curve_recipe, (1, 2), SEEDS), out)


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        ((2, 1, 2), r"shots are \[2, 1, 2\]; expected different numbers from 1 on"),
        ((0, 1), r"shots are \[0, 1\]; expected different numbers from 1 on"),
        ((), r"shots are \[\]; expected different numbers from 1 on"),
    ],
)
def test_shots_are_refused_before_anything_is_trained(
    curve_recipe: Recipe, trained: list[int], tmp_path: Path, shots: tuple[int, ...], message: str
) -> None:
    with pytest.raises(AdaptError, match=message):
        run_protocol(protocols.few_shot(curve_recipe, shots, SEEDS), tmp_path / "none")
    assert trained == []
    assert not (tmp_path / "none").exists()


# Transfer


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of test images only: other classes in `drawings`, the source's own in `sketches`; 7 of each."""
    folder, colours = tmp_path_factory.mktemp("others"), torch.Generator().manual_seed(7)
    classes = {
        "drawings": ("apple", "barn owl", "sky"),
        "sketches": ("goldfish", "lime tree", "red panda", "sky", "tin can"),
    }
    for name, class_names in classes.items():
        for class_name in class_names:
            (folder / name / "test" / class_name).mkdir(parents=True)
            for i in range(7):
                colour = tuple(torch.randint(0, 256, (3,), generator=colours).tolist())
                Image.new("RGB", (8, 8), colour).save(folder / name / "test" / class_name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def targets(others: Path) -> dict[str, Target]:
    templates = {"drawings": "a drawing of a {}.", "sketches": "{} texture."}
    return {
        name: Target(name, DataSection(source=str(others / name), shots=None, template=template))
        for name, template in templates.items()
    }


def transfer(recipe: Recipe, targets: Sequence[Target], out: Path) -> dict[str, Any]:
    return run_protocol(protocols.transfer("cross_dataset", recipe, targets, SEEDS), out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, targets: dict[str, Target]) -> Path:
    """The folder of a transfer to both; not to be written to."""
    out = tmp_path_factory.mktemp("transfer") / "whole"
    transfer(recipe, list(targets.values()), out)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.mark.full
def test_transfer_measures_each_target_among_its_own_names(
    finished: Path, split: Split, targets: dict[str, Target], model_folder: Path
) -> None:
    parts = {"source": (split, "{} texture.")}
    parts |= {name: (read_folder(target.data.source), target.data.template) for name, target in targets.items()}
    frozen = adapt.load_backbone(str(model_folder))
    for seed, row in zip(SEEDS, read(finished, "cross_dataset.json")["runs"]):
        assert (row["run"], row["seed"]) == (f"seed-{seed}", seed)
        for name, (data, template) in parts.items():
            adapted = adapt.load(finished / f"seed-{seed}/adapter.safetensors", class_names=data.class_names)
            baseline = adapt.wrap(frozen, methods.ZeroShot(template), data.class_names)
            assert (row[name], row[f"zero_shot_{name}"]) == (by_hand(adapted, data.test), by_hand(baseline, data.test))
    assert all(row[name] != row[f"zero_shot_{name}"] for name in parts)  # neither could stand for the other


def test_transfer_trains_on_all_classes_of_the_source(finished: Path, split: Split) -> None:
    for row in read(finished, "cross_dataset.json")["runs"]:
        assert row["train_set"] == items_id(split.few_shot(2, row["seed"]).train)
        header = adapt.formats.adapter.read_header(finished / row["run"] / "adapter.safetensors")
        assert header.class_names == split.class_names


def test_the_average_is_over_the_targets_alone(recipe: Recipe, targets: dict[str, Target]) -> None:
    def row(source: float, drawings: float, sketches: float) -> dict[str, Any]:
        adapted = {"source": source, "drawings": drawings, "sketches": sketches}
        return {"shots": 2} | adapted | {f"zero_shot_{name}": value / 2 for name, value in adapted.items()}

    protocol = protocols.transfer("cross_dataset", recipe, list(targets.values()), SEEDS)
    (found,) = summaries(protocol, [row(0.9, 0.5, 0.3), row(0.7, 0.3, 0.1)])
    assert found["mean"] == pytest.approx({"source": 0.8, "drawings": 0.4, "sketches": 0.2, "average": 0.3})
    assert found["zero_shot"] == pytest.approx({"source": 0.4, "drawings": 0.2, "sketches": 0.1, "average": 0.15})
    assert found["std"]["average"] == pytest.approx(0.2 / 2**0.5)  # of 0.4 and 0.2, the averages of the seeds


def test_a_finished_transfer_is_read_again(
    out: Path, recipe: Recipe, targets: dict[str, Target], trained: list[int], measured: list[tuple[Item, ...]]
) -> None:
    before = contents(out)
    assert transfer(recipe, list(targets.values()), out) == json.loads(before["cross_dataset.json"])
    assert (trained, measured) == ([], [])
    assert contents(out) == before


def test_a_target_that_is_added_is_all_that_is_measured(
    finished: Path,
    recipe: Recipe,
    targets: dict[str, Target],
    trained: list[int],
    measured: list[tuple[Item, ...]],
    tmp_path: Path,
) -> None:
    transfer(recipe, [targets["drawings"]], tmp_path / "out")
    assert (len(trained), len(measured)) == (2, 4)  # each seed's model and the frozen one
    measured.clear()
    found = transfer(recipe, list(targets.values()), tmp_path / "out")
    assert trained == list(SEEDS)
    assert measured == [read_folder(targets["sketches"].data.source).test] * 4
    assert found == read(finished, "cross_dataset.json")


def test_a_target_whose_classes_changed_names_is_measured_again(
    out: Path, others: Path, recipe: Recipe, measured: list[tuple[Item, ...]], tmp_path: Path
) -> None:
    table, names = tmp_path / "drawings.csv", ["apple", "barn owl", "sky"]
    target = Target("drawings", DataSection(source=str(table), root=str(others / "drawings"), shots=None))
    listed(others / "drawings", table, names, ("test",))
    first = transfer(recipe, [target], out)["runs"]
    measured.clear()
    listed(others / "drawings", table, [names[1], names[2], names[0]], ("test",))
    again = transfer(recipe, [target], out)["runs"]
    assert len(measured) == 4
    assert [row["test_set_drawings"] for row in again] == [row["test_set_drawings"] for row in first]
    assert [row["zero_shot_drawings"] for row in again] != [row["zero_shot_drawings"] for row in first]


def test_runs_of_an_older_version_and_of_other_targets_share_a_file(
    out: Path, recipe: Recipe, targets: dict[str, Target], trained: list[int]
) -> None:
    """Their rows lack columns that the new ones have."""
    results = read(out, "cross_dataset.json")
    for row in results["runs"]:
        for key in [key for key in row if key.startswith(("test_set", "labels"))]:
            del row[key]
    (out / "cross_dataset.json").write_text(json.dumps(results))
    protocol = protocols.transfer("cross_dataset", recipe, [targets["drawings"]], SEEDS[:1])
    found = run_protocol(protocol, out)["runs"]
    assert trained == []
    assert [row["run"] for row in found] == [f"seed-{seed}" for seed in SEEDS]
    new, old = csv.DictReader((out / "cross_dataset.csv").open())
    assert (new["sketches"], old["test_set"], old["sketches"]) == ("", "", str(results["runs"][1]["sketches"]))
    assert new["test_set"] == items_id(read_folder(recipe.data.source).test)
    assert new["test_set_drawings"] == items_id(read_folder(targets["drawings"].data.source).test)


def test_a_broken_image_of_a_target_is_left_out(
    recipe: Recipe, others: Path, trained: list[int], tmp_path: Path
) -> None:
    sketches = Path(shutil.copytree(others / "sketches", tmp_path / "sketches"))
    first, *rest = read_folder(sketches).test
    Path(first.path).write_bytes(b"no image")
    data = DataSection(source=str(sketches), template="{} texture.", broken="skip")
    protocol = protocols.transfer("cross_dataset", recipe, [Target("sketches", data)], SEEDS[:1])
    run_protocol(protocol, tmp_path / "out")
    assert read(tmp_path / "out/seed-4", "targets.json")["sketches"]["images"] == len(rest)


@pytest.mark.parametrize("change", ["source", "template"])
def test_a_target_whose_data_changed_is_measured_again(
    out: Path,
    recipe: Recipe,
    targets: dict[str, Target],
    trained: list[int],
    measured: list[tuple[Item, ...]],
    change: str,
) -> None:
    before = read(out, "cross_dataset.json")["runs"]
    changed = {change: getattr(targets["drawings"].data, change)}
    sketches = replace(targets["sketches"], data=targets["sketches"].data.model_copy(update=changed))
    after = transfer(recipe, [targets["drawings"], sketches], out)["runs"]
    assert trained == []
    assert measured == [read_folder(sketches.data.source).test] * 4
    untouched = [key for key in before[0] if "sketches" not in key]
    assert [[row[key] for key in untouched] for row in after] == [[row[key] for key in untouched] for row in before]
    for old, new in zip(before, after):
        if change == "source":  # the same images, and a template of their own
            assert new["sketches"] == old["drawings"]
        else:
            assert new["sketches"] == old["sketches"]
            assert new["zero_shot_sketches"] != old["zero_shot_sketches"]


@pytest.mark.parametrize("taken", ["source", "average", "run", "shots", "seed", "train_set"])
def test_targets_cannot_be_called_as_other_columns_are(recipe: Recipe, targets: dict[str, Target], taken: str) -> None:
    with pytest.raises(
        AdaptError, match=f"the folder '{taken}' cannot be a target, because the results have such a column"
    ):
        protocols.transfer("cross_dataset", recipe, [replace(targets["drawings"], name=taken)], SEEDS)


@pytest.mark.parametrize("names", [(), ("drawings", "drawings")], ids=str)
def test_targets_need_names_of_their_own(recipe: Recipe, targets: dict[str, Target], names: tuple[str, ...]) -> None:
    given = [replace(targets["drawings"], name=name) for name in names]
    with pytest.raises(
        AdaptError, match=rf"cross_dataset has the targets \[{', '.join(map(repr, names))}\]; expected different names"
    ):
        protocols.transfer("cross_dataset", recipe, given, SEEDS)


@pytest.mark.parametrize(
    "method", [{"name": "linear_probe", "strength": 1.0}, {"name": "coop", "n_ctx": 2, "class_specific": True}]
)
def test_tensors_of_single_classes_are_refused_before_anything_is_trained(
    raw: dict[str, Any], targets: dict[str, Target], trained: list[int], tmp_path: Path, method: dict[str, Any]
) -> None:
    given = raw | {"method": method, "train": raw["train"] if method["name"] == "coop" else None}
    message = f"{method['name']} learns tensors for each of its classes and cannot classify new classes"
    with pytest.raises(AdaptError, match=message):
        transfer(build_recipe(given, "given"), list(targets.values()), tmp_path / "none")
    assert trained == []
    assert not (tmp_path / "none").exists()


def test_a_target_without_test_images_is_refused_before_anything_is_trained(
    recipe: Recipe, targets: dict[str, Target], five_classes: Path, trained: list[int], tmp_path: Path
) -> None:
    for part in ("train", "val"):
        shutil.copytree(five_classes / "train", tmp_path / "photos" / part)
    photos = Target("photos", DataSection(source=str(tmp_path / "photos"), shots=None))
    with pytest.raises(AdaptError, match="photos has no test images to measure 'photos' on"):
        transfer(recipe, [targets["drawings"], photos], tmp_path / "none")
    assert trained == []
    assert not (tmp_path / "none").exists()


def test_of_several_classes_an_image_the_figure_is_map(raw: dict[str, Any], split: Split, tmp_path: Path) -> None:
    """In what is kept, in tables and beside runs that no protocol made."""
    first, second = split.class_names[:2]
    lines = ["path,labels,split"]
    for part in ("train", "test"):
        lines += [f"{item.path},{item.answer}|{first}".replace(f"{first}|{first}", f"{first}|{second}") + f",{part}"
                  for item in getattr(split, part)]  # fmt: skip
    (tmp_path / "several.csv").write_text("\n".join(lines) + "\n")
    data = raw["data"] | {"source": str(tmp_path / "several.csv"), "root": "/"}
    recipe = build_recipe(raw | {"data": data}, "several")
    out = tmp_path / "out"
    results = run_protocol(protocols.few_shot(recipe, (1,), (1,)), out)
    [run] = (path.parent for path in out.glob("*/metrics.json"))
    metrics = read(run, "metrics.json")
    figures = {kind: metrics[kind]["mean_average_precision"] for kind in ("adapted", "zero_shot")}
    assert figures["adapted"] != metrics["adapted"]["accuracy"]
    [row] = results["runs"]
    assert (row["figure"], row["test"], row["zero_shot_test"]) == ("mAP", figures["adapted"], figures["zero_shot"])
    shown = [f"{100 * figures[kind]:.1f}" for kind in ("zero_shot", "adapted")]
    assert [[*map(str, row)] for row in table([results])] == [
        ["shots, mAP", "1"],
        ["zero-shot, tiny", shown[0]],
        ["coop, tiny", shown[1]],
    ]
    header, cells = plain_table([read_run(run)])
    ends = [metrics[kind]["intervals"]["mean_average_precision"] for kind in ("zero_shot", "adapted")]
    assert (row["low_test"], row["high_test"]) == tuple(ends[1])
    between = ["({:.1f} to {:.1f})".format(*(100 * end for end in each)) for each in ends]
    assert dict(zip(header, cells, strict=True))["adapted"] == f"{shown[1]} mAP {between[1]}"
    assert dict(zip(header, cells, strict=True))["zero-shot"] == f"{shown[0]} {between[0]}"
