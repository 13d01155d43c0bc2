"""`adapt average`"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from checks import perturb

import adapt

NAMES = ("goldfish", "lime tree", "sky")


@pytest.fixture
def members(model_folder: Path, tmp_path: Path) -> list[Path]:
    """Three adapters of two methods, of which the last one differs much."""
    backbone, paths = adapt.load_backbone(str(model_folder)), []
    for seed, method in enumerate((adapt.methods.CoOp(n_ctx=2), adapt.methods.LoRA(rank=2), adapt.methods.GDA())):
        model = perturb(adapt.wrap(backbone, method, NAMES), seed=seed, size=0.5)
        for buffer in model.method.buffers():
            buffer.add_(buffer + 3 * seed)
        paths.append(model.save(tmp_path / f"{seed}.safetensors"))
    return paths


def test_a_file_answers_like_the_option(run, members: list[Path], photos: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "average.safetensors", sorted((photos / "test").rglob("*.png"))
    result = run("average", *members, "--out", out)
    size = out.stat().st_size / 1024
    assert (result.exit_code, result.stdout) == (0, f"average of 3 at {out} ({size:.1f} KiB)\n")
    models = adapt.load_many(members)
    expected = sum(model.probabilities(images) for model in models) / 3
    predictions = adapt.load(out).predict(images)
    found = [json.loads(line) for line in run("predict", out, photos / "test", "--json").stdout.splitlines()]
    assert [each["image"] for each in found] == list(map(str, images))
    for each, probabilities, prediction in zip(found, expected.tolist(), predictions, strict=True):
        top = {one["class"]: one["probability"] for one in each["top"]}
        assert [top[name] for name in NAMES] == pytest.approx(probabilities, abs=1e-6)
        assert each["disagreement"]["share"] == prediction.disagreement.share
        assert each["disagreement"]["nats"] == pytest.approx(prediction.disagreement.nats, abs=1e-6)
    assert max(each.disagreement.nats for each in predictions) > 0.01


def test_what_is_printed_of_a_disagreement(run, members: list[Path], photos: Path, tmp_path: Path) -> None:
    image, out = photos / "test/sky/0.png", tmp_path / "average.safetensors"
    run("average", *members, "--out", out)
    [prediction] = adapt.average(members).predict(image)
    share, nats = prediction.disagreement
    title, *lines = run("predict", out, image, "--top-k", 2).stdout.splitlines()
    assert title == f"{image}  {100 * share:.0f} % of the adapters disagree ({nats:.3f} nats)"
    assert lines == [f"  {100 * probability:5.1f} %  {name}" for name, probability in prediction.top[:2]]
    [row] = csv.DictReader(run("predict", out, image, "--csv").stdout.splitlines())
    assert list(row) == ["image", "class", "probability", "disagreement", "nats"]
    assert (float(row["disagreement"]), float(row["nats"])) == pytest.approx((share, nats), abs=1e-5)


def test_it_is_evaluated_and_inspected(run, members: list[Path], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "average.safetensors"
    run("average", *members, "--out", out)
    result = json.loads(run("eval", out, "--data", photos, "--json").stdout)
    split = adapt.data.load(str(photos))
    predictions = adapt.load(out).predict([item.path for item in split.test])
    right = [each.class_name == item.answer for each, item in zip(predictions, split.test, strict=True)]
    assert (result["method"], result["accuracy"]) == ("average", pytest.approx(sum(right) / len(right)))
    assert "method     average (coop, lora, gda)\n" in run("inspect", out).stdout


def test_refused(run, refused, members: list[Path], photos: Path, tmp_path: Path) -> None:
    image, out = photos / "test/sky/0.png", tmp_path / "average.safetensors"
    more = tmp_path / "more.safetensors"
    refused(run("average", members[0], "--out", more), "; expected a list with 2 or more adapters")
    refused(run("average", *members, "--out", members[0]), "exists already; name a new file")
    run("average", *members, "--out", out)
    refused(run("predict", out, image, "--sets", 0.9), "the adapter has no calibrated sets")
    refused(run("average", out, members[0], "--out", more), "is an average of several adapters already")
    renamed = adapt.load(members[0]).with_classes(["sky", "sea"]).save(tmp_path / "renamed.safetensors")
    refused(run("average", members[1], renamed, "--out", more), f"{members[1]} and {renamed} differ in classes")


@pytest.mark.full
def test_sets_of_an_average_know_what_its_members_have_learned_from(run, refused, tmp_path: Path) -> None:
    for seed in (1, 2):
        command = ("train", "gda", "--data", "emoji", "--shots", 2, "--set", "backbone=mini-clip", "--seed", seed)
        assert run(*command, "--out", tmp_path / f"run{seed}", "--quiet").exit_code == 0
    average = tmp_path / "average.safetensors"
    assert run("average", tmp_path / "run1", tmp_path / "run2", "--out", average).exit_code == 0
    refused(
        run("sets", average, "--data", "emoji", "--part", "train", "--out", tmp_path / "sets.safetensors"),
        "the adapter has learned from",
    )
