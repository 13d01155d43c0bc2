"""One domain after the other is left out: what is learned from, what is tested, and the table of it."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from adapt import AdaptError
from adapt.data import load
from adapt.protocols import protocol as protocols
from adapt.protocols.protocol import run_protocol
from adapt.protocols.tables import read_results, table
from adapt.recipe import DataSection, Recipe, build_recipe

DOMAINS = ("art", "photo", "sketch")
CLASSES = ("barn owl", "sky")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of each of two classes in each of three domains."""
    root, colours = tmp_path_factory.mktemp("domains"), torch.Generator().manual_seed(3)
    for domain in DOMAINS:
        for name in CLASSES:
            (root / domain / name).mkdir(parents=True)
            for number in range(5):
                pixels = torch.randint(256, (8, 8, 3), generator=colours, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / domain / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def recipe(raw: dict[str, Any], folder: Path) -> Recipe:
    return build_recipe(raw | {"data": {"source": f"domains:{folder}", "shots": 2}}, "domains")


def test_folders_of_domains(folder: Path) -> None:
    split = load(f"domains:{folder}")
    assert (split.class_names, split.domains, split.test) == (CLASSES, DOMAINS, ())
    for domain in DOMAINS:
        of_it = [item for item in split.items() if item.domain == domain]
        assert len(of_it) == 10
        assert all(f"/{domain}/{item.answer}/" in item.path for item in of_it)
    assert Counter((item.domain, item.answer) for item in split.val) == dict.fromkeys(product(DOMAINS, CLASSES), 1)


def test_what_is_left_out_is_tested_whole_and_never_learned_from(folder: Path) -> None:
    split = DataSection(source=f"domains:{folder}", leave_out="sketch").load()
    assert {item.domain for item in split.train} == {item.domain for item in split.val} == {"art", "photo"}
    assert [item.domain for item in split.test] == ["sketch"] * 10


def test_of_divided_data_the_test_images_alone_are_tested() -> None:
    whole, split = load("emoji"), load("emoji").leaving_out("noto")
    assert split.test == tuple(item for item in whole.test if item.domain == "noto")
    assert split.train == tuple(item for item in whole.train if item.domain != "noto")


def test_each_domain_has_its_turn(recipe: Recipe, tmp_path: Path) -> None:
    seeds = (1, 2)
    found = run_protocol(protocols.leave_one_out(recipe, DOMAINS, seeds), tmp_path)
    assert [row["run"] for row in found["runs"]] == [f"{each}-seed-{seed}" for each in DOMAINS for seed in seeds]
    for row in found["runs"]:
        picked = (tmp_path / row["run"] / "train_images.csv").read_text()
        assert f"/{row['setting']}/" not in picked
        tested = (tmp_path / row["run"] / "predictions.csv").read_text()
        assert tested.count(f"/{row['setting']}/") == 10
    (header, zero_shot, ours), written = table([found]), json.loads((tmp_path / "leave_one_out.json").read_text())
    assert header == ["", *DOMAINS, "average"]
    by_seed = [statistics.mean(row["test"] for row in found["runs"] if row["seed"] == seed) for seed in seeds]
    average, spread = 100 * statistics.mean(by_seed), 100 * statistics.stdev(by_seed)
    assert ours[0] == "coop, tiny"
    assert str(ours[-1]) == f"{average:.1f} ± {spread:.1f}"
    frozen = [100 * statistics.mean(r["zero_shot_test"] for r in found["runs"] if r["setting"] == d) for d in DOMAINS]
    assert [*map(str, zero_shot[1:])] == [f"{each:.1f}" for each in [*frozen, statistics.mean(frozen)]]
    assert read_results(tmp_path) == [written]


@pytest.mark.parametrize(
    ("domain", "message"),
    [("cartoon", "has no domain 'cartoon' to leave out; its domains: 'art', 'photo', 'sketch'")],
)
def test_a_domain_that_is_not_there(folder: Path, domain: str, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        DataSection(source=f"domains:{folder}", leave_out=domain).load()


def test_one_domain_is_too_few(recipe: Recipe) -> None:
    with pytest.raises(AdaptError, match="needs two or more different domains"):
        protocols.leave_one_out(recipe, ("art",), (1,))


@pytest.mark.parametrize("names", [("a b", "a_b"), ("average", "art")])
def test_domains_that_results_cannot_tell_apart(recipe: Recipe, names: tuple[str, ...]) -> None:
    with pytest.raises(AdaptError, match="names that clash as folders or columns of the results"):
        protocols.leave_one_out(recipe, names, (1,))


def test_folders_without_classes(tmp_path: Path) -> None:
    (tmp_path / "art").mkdir()
    with pytest.raises(AdaptError, match="Expected DOMAIN/CLASS/IMAGE"):
        load(f"domains:{tmp_path}")
