"""Tasks of other people: soft labels, the example of docs/add_a_task.md, and triplets of images."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pages
import pytest
import torch
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient
from selection import by_turns
from stopping import assert_goes_on_exactly

import adapt
from adapt import AdaptError, data, tasks
from adapt.cli import main
from adapt.data import Item, open_image
from adapt.evaluation.sets import calibrated, measured
from adapt.serving.adapters import ServedAdapters
from adapt.serving.app import create_app

from .conftest import Install

SOFT_LABELS = str(next(iter(pages.document(pages.ROOT / "docs" / "add_a_task.md").examples())).parsed)
TRIPLETS = Path(__file__).with_name("triplets.py").read_text()
QUICK = ["--set=train.epochs=2", "--set=train.batch_size=8", "--set=train.workers=0", "--set=train.augment=none"]


@pytest.fixture(scope="module")
def emoji() -> data.Split:
    return data.load("emoji").few_shot(4, 1)


@pytest.fixture
def soft(install: Install, emoji: data.Split, tmp_path: Path) -> Path:
    """A list of drawings of three groups, each of which belongs to the next group by a quarter."""
    install("their_task", SOFT_LABELS, "[adapt.tasks]\nsoft_labels = their_task:SoftLabels\n")
    names = emoji.class_names[:3]

    def shares(item: Item) -> dict[str, float]:
        place = names.index(item.answer)
        return {f"p_{name}": {0: 0.75, 1: 0.25}.get((number - place) % 3, 0.0) for number, name in enumerate(names)}

    return _listed(emoji, names, tmp_path, "photos", lambda item, files: [shares(item)])


@pytest.fixture
def triplets(install: Install, emoji: data.Split, tmp_path: Path) -> Path:
    """A list of triplets: two drawings of a group, and one of another."""
    install("their_triplets", TRIPLETS, "[adapt.tasks]\ntriplets = their_triplets:Triplets\n")
    return _listed(emoji, emoji.class_names[:3], tmp_path, "triplets", _triplets)


def _triplets(item: Item, files: dict[str, list[str]]) -> list[dict[str, Any]]:
    own, others = files[item.answer], [each[0] for name, each in files.items() if each and name != item.answer]
    return [{"anchor": own[0], "nearer": own[1], "farther": others[0]}] if len(own) > 1 and others else []


def _listed(split: data.Split, names: Sequence[str], folder: Path, name: str, row: Any) -> Path:
    """A CSV about some of the split's drawings, which lie beside it."""
    rows: list[dict[str, Any]] = []
    for part in ("train", "val", "test"):
        files: dict[str, list[str]] = {each: [] for each in names}
        for item in [item for item in getattr(split, part) if item.answer in names][:18]:
            file = f"{part}-{len(rows)}-{sum(map(len, files.values()))}.png"
            open_image(item).save(folder / file)
            files[item.answer].insert(0, file)
            of_image = {"path": file} if name == "photos" else {}
            rows += [of_image | {"split": part} | cells for cells in row(item, files)]
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / f"{name}.csv"


def _adapt(*arguments: Any) -> Result:
    result = CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def _metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


@by_turns("method", ["coop", "lora", "linear_probe"])
def test_soft_labels_are_learned_saved_and_answered(soft: Path, tmp_path: Path, method: str) -> None:
    run, adapter = tmp_path / "run", tmp_path / "run" / "adapter.safetensors"
    steps = [] if method == "linear_probe" else QUICK
    _adapt("train", method, "--data", soft, "--shots", 4, "--out", run, "--backbone", "mini-clip", *steps)
    figures = _metrics(run)["adapted"]
    assert {"accuracy", "calibration_error", "negative_log_likelihood"} <= figures.keys()
    measured = _adapt("eval", adapter, "--data", soft).output
    assert f"negative log-likelihood {figures['negative_log_likelihood']:.3f}" in measured
    picture = next(tmp_path.glob("test-*.png"))
    names = data.load(soft).class_names
    assert any(name in _adapt("predict", adapter, picture).output for name in names)


def test_a_linear_probe_learns_the_shares_and_not_the_likeliest_class(soft: Path, tmp_path: Path) -> None:
    split = data.load(soft)
    backbone = adapt.load_backbone("mini-clip", "cpu")
    model = adapt.wrap(backbone, adapt.methods.LinearProbe(strength=1000.0), split.class_names)
    adapt.fit(model, split.train, progress=False)
    said = model.probabilities(split.train).double()
    own = split.task.shares(split.train, split.class_names)
    assert float((said - own).abs().max()) < 0.1  # a quarter is said to be the next group's
    assert float(said.gather(1, own.argmax(-1, keepdim=True)).mean()) == pytest.approx(0.75, abs=0.05)


def test_sets_of_soft_labels_are_of_the_likeliest_class(soft: Path) -> None:
    split, backbone = data.load(soft), adapt.load_backbone("mini-clip", "cpu")
    model = adapt.wrap(backbone, adapt.methods.LinearProbe(strength=10.0), split.class_names)
    adapt.fit(model, split.train, progress=False)
    sets = calibrated(model, split.test)
    model.answers = replace(model.answers, sets=sets)
    items = split.test[1:]  # others than those of the calibration
    likeliest = split.task.numbers(items, split.class_names)
    held = sets.hold(model.probabilities(items), 0.8).gather(1, likeliest[:, None])
    assert measured(model, items, 0.8).coverage == pytest.approx(float(held.double().mean()))


@pytest.mark.parametrize("method", ["coop", "kgcoop"])
def test_a_loss_that_is_no_dict_is_the_tasks(method: str, soft: Path, tmp_path: Path) -> None:
    """The method is not blamed, though its own loss may add to the task's."""
    split = data.load(soft)
    wrong = type("Wrong", (type(split.task),), {"loss": lambda self, step: step.cross_entropy})()
    model = adapt.wrap(adapt.load_backbone("mini-clip", "cpu"), adapt.methods.find(method)(), split.class_names)
    step = model.step(torch.randn(4, 3, 64, 64)).of(wrong, split.train[:4])
    with pytest.raises(AdaptError, match=r"^the task soft_labels: the function loss returned tensor.*a dict of terms"):
        model.method.loss(step)


def test_a_stopped_training_on_soft_labels_goes_on(soft: Path, tmp_path: Path) -> None:
    split, backbone = data.load(soft), adapt.load_backbone("mini-clip", "cpu")
    settings = {"epochs": 3, "batch_size": 4, "lr": 0.01, "augment": "none", "workers": 0, "progress": False}

    def new() -> adapt.AdaptedModel:
        torch.manual_seed(0)
        return adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=2), split.class_names)

    assert_goes_on_exactly(new, partial(adapt.fit, train_set=split.train, **settings), tmp_path / "run", step=5)


@pytest.mark.full
def test_soft_labels_in_a_table_over_seeds_a_report_and_a_server(soft: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    asked = ["--shots", "1,2", "--seeds", "1,2", "--backbone", "mini-clip", "--out", runs, *QUICK]
    _adapt("few-shot", "coop", "--data", soft, *asked)
    assert "±" in _adapt("table", runs).output
    _adapt("report", runs, "--out", tmp_path / "report.html")
    assert "coop" in (tmp_path / "report.html").read_text()
    served = ServedAdapters([str(next(runs.rglob("adapter.safetensors")))], None)
    with TestClient(create_app(served)) as client:
        picture = next(tmp_path.glob("test-*.png")).read_bytes()
        answer = client.post("/predict", files={"images": ("a.png", picture, "image/png")}).json()
    assert any(name in json.dumps(answer) for name in data.load(soft).class_names)


@pytest.mark.usefixtures("in_workers")
@by_turns("method", ["ln_tuning", "lora"])
def test_triplets_are_learned_and_scored(triplets: Path, tmp_path: Path, method: str) -> None:
    run = tmp_path / "run"
    quick = [each.replace("workers=0", "workers=2") for each in QUICK]
    _adapt("train", method, "--data", triplets, "--shots", "all", "--backbone", "mini-clip", "--out", run, *quick)
    metrics = _metrics(run)
    assert set(metrics["adapted"]) >= {"accuracy", "images"}
    told = _adapt("eval", run / "adapter.safetensors", "--data", triplets).output
    assert told.startswith(f"{100 * metrics['adapted']['accuracy']:.1f} % (")
    assert f") of {metrics['adapted']['images']} test triplets" in told


def test_triplets_are_refused_where_prompts_are_learned(triplets: Path) -> None:
    split, backbone = data.load(triplets), adapt.load_backbone("mini-clip", "cpu")
    assert split.task is tasks.named("triplets")
    assert {len(item.paths) for item in split.train} == {3}
    model = adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=2), ("a", "b"))
    with pytest.raises(
        AdaptError, match=r"triplets of images.* coop learns classes: .* one of .*ln_tuning, locality, lora"
    ):
        adapt.fit(model, split.train, epochs=1, progress=False)


def test_two_tasks_that_claim_the_same_columns_are_named(install: Install, tmp_path: Path) -> None:
    for name in ("one", "other"):
        source = SOFT_LABELS.replace('name = "soft_labels"', f'name = "{name}"')
        install(f"package_{name}", source, f"[adapt.tasks]\n{name} = package_{name}:SoftLabels\n")
    (tmp_path / "a.csv").write_text("path,p_a,p_b\na.png,0.5,0.5\n")
    with pytest.raises(AdaptError, match=r"the columns p_a, p_b, path fit the tasks one and other"):
        data.load(tmp_path / "a.csv")
