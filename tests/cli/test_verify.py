"""`adapt verify`, on a miniature in EuroSAT's published layout, with published figures made to agree and not to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from miniatures import EUROSAT
from PIL import Image

from adapt.protocols import papers

COUNTS = {"train": 2, "val": 1, "test": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EuroSAT with five images a class, each of its class's colour."""
    root = tmp_path_factory.mktemp("published")
    home, colours = root / "eurosat", torch.Generator().manual_seed(4)
    parts: dict[str, list[Any]] = {part: [] for part in COUNTS}
    for label, (folder, name) in enumerate(EUROSAT.items()):
        (home / "2750" / folder).mkdir(parents=True)
        colour = torch.randint(20, 236, (3,), generator=colours)
        for part, count in COUNTS.items():
            for i in range(count):
                path = f"{folder}/{part}-{i}.png"
                shade = colour + torch.randint(-15, 16, (3,), generator=colours)
                Image.new("RGB", (12, 8), tuple(shade.tolist())).save(home / "2750" / path)
                parts[part].append([path, label, name])
    (home / "split_zhou_EuroSAT.json").write_text(json.dumps(parts))
    return root


Publish = Callable[..., None]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """`publish(row, ...)`: rows that stand in place of the papers', of RN50 on EuroSAT where they do not say."""

    def write(*rows: dict[str, Any]) -> None:
        lines = ['backbones = {RN50 = ["open_clip:RN50-quickgelu/openai"]}', "templates = {two = ['a {}.', '{}.']}"]
        lines += ['recipes = {Tip-Adapter = "tip_adapter/few_shot"}']
        for row in rows:
            given = {"protocol": "zero_shot", "data": "eurosat", "method": "CLIP zero-shot", "backbone": "RN50"}
            given |= {"from": "F", "source": "somebody/code, log.txt"} | row
            lines += ["[[row]]", *(f"{key} = {_toml(value)}" for key, value in given.items())]
        table = tmp_path / "papers.toml"
        table.write_text("\n".join(lines))
        papers.rows.cache_clear()
        papers._table.cache_clear()
        monkeypatch.setattr(papers, "TABLE", table)

    yield write
    papers.rows.cache_clear()
    papers._table.cache_clear()


def _toml(value: Any) -> str:
    pairs = ", ".join(f'"{key}" = "{each}"' for key, each in value.items()) if isinstance(value, dict) else ""
    return f"{{ {pairs} }}" if isinstance(value, dict) else json.dumps(value)


@pytest.fixture
def measured(run, root: Path, model_folder: Path) -> float:
    """Zero-shot accuracy in per cent, by the command that publishes nothing."""
    template = "a centered satellite photo of {}."
    given = ("--data", "eurosat", "--root", root, "--backbone", model_folder, "--template", template)
    return 100 * json.loads(run("zeroshot", *given, "--json").stdout)["accuracy"]


@pytest.fixture
def verified(run, root: Path, model_folder: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """`verified(*options)`: the exit code, and the result as JSON."""

    def give(*options: object) -> tuple[int, dict[str, Any]]:
        own = ("--root", root) if "--root" not in options else ()
        result = run("verify", model_folder, "--data", "eurosat", *own, "--as", "RN50", "--json", *options)
        return result.exit_code, json.loads(result.stdout)

    return give


def test_a_figure_that_is_found_again_is_reproduced(verified, publish: Publish, measured: float) -> None:
    publish({"values": {"test": f"{measured + 0.15:.2f}"}})
    code, found = verified()
    assert (code, found["verdict"]) == (0, "reproduced")
    (compared,) = found["compared"]
    assert compared["here"] == pytest.approx(measured)
    assert (compared["apart"], compared["tolerance"], compared["origin"]) == (-0.15, 0.2, "F")
    assert compared["templates"] == ["a centered satellite photo of {}."]


def test_a_figure_that_is_not_found_again(verified, publish: Publish, measured: float) -> None:
    publish({"values": {"test": f"{measured + 0.25:.2f}"}})
    code, found = verified()
    assert (code, found["verdict"], found["compared"][0]["reproduced"]) == (1, "not reproduced", False)


def test_what_differs_is_said_and_what_does_not(run, publish: Publish, root: Path, model_folder: Path) -> None:
    publish({"values": {"test": "99.00"}})
    result = run("verify", model_folder, "--data", "eurosat", "--root", root, "--as", "RN50")
    assert (result.exit_code, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert "CLIP zero-shot: somebody/code, log.txt, with 'a centered satellite photo of {}.'" in lines
    for line in (
        f"backbone {model_folder}; published open_clip:RN50-quickgelu/openai",
        "image size 32; published 224",
        "resizing the shorter edge to 32; published the shorter edge to 224",
        "mean 0.5000 0.5000 0.5000; published 0.4815 0.4578 0.4082",
        "test images 20; published 8,100",
    ):
        assert f"differs: {line}" in lines
    assert "the same: interpolation, resized by, class names" in lines
    digest = hashlib.sha256((root / "eurosat/split_zhou_EuroSAT.json").read_bytes()).hexdigest()
    assert f"read: split_zhou_EuroSAT.json, SHA-256 {digest[:16]}" in lines
    assert f"torch {version('torch')}, torchvision " in lines[-2]
    assert lines[-1] == "not reproduced"


def test_names_of_folders_are_not_the_published_class_names(verified, root: Path, tmp_path: Path) -> None:
    split = json.loads((root / "eurosat/split_zhou_EuroSAT.json").read_text())
    renamed = {part: [[path, label, path.split("/")[0]] for path, label, _ in split[part]] for part in split}
    (tmp_path / "eurosat").mkdir()
    (tmp_path / "eurosat/2750").symlink_to(root / "eurosat/2750")
    (tmp_path / "eurosat/split_zhou_EuroSAT.json").write_text(json.dumps(renamed))
    _, found = verified("--root", tmp_path)
    (names,) = (each for each in found["conditions"] if each["what"] == "class names")
    assert (names["same"], names["here"]) == (
        False,
        "without Annual Crop Land, Herbaceous Vegetation Land, Highway or Road, Industrial Buildings, Pasture Land and "
        "3 more",
    )


def test_a_secondary_source_decides_nothing(verified, publish: Publish, measured: float) -> None:
    publish({"from": "S", "values": {"test": "99.00"}}, {"from": "R", "method": "recalled", "values": {"test": "1.00"}})
    code, found = verified()
    assert (code, found["verdict"]) == (0, "no official figure")
    assert [(each["origin"], each["reproduced"]) for each in found["compared"]] == [("S", False)]


def test_each_row_is_measured_by_its_own_templates(verified, publish: Publish, measured: float) -> None:
    publish(
        {"values": {"test": f"{measured:.2f}"}},
        {"method": "two templates", "templates": "two", "values": {"test": "50.00"}},
    )
    _, found = verified()
    assert [each["templates"] for each in found["compared"]] == [
        ["a centered satellite photo of {}."],
        ["a {}.", "{}."],
    ]
    assert found["measured"].keys() == {"CLIP zero-shot", "two templates"}


def test_a_backbone_that_nobody_published(run, publish: Publish, root: Path, model_folder: Path, measured) -> None:
    publish({"values": {"test": "99.00"}})
    result = run("verify", model_folder, "--data", "eurosat", "--root", root)
    assert result.exit_code == 0
    assert f"{measured:.2f}" in result.stdout
    assert "there are no published figures for this backbone; --as compares with one of RN50" in result.stdout
    assert result.stdout.endswith("\nno official figure\n")


TIP = ("--recipe", "tip_adapter", "--shots", 1, "--set", "method.views=0")


def test_a_recipe_beside_its_figure(run, verified, publish: Publish, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    publish({"protocol": "few_shot", "method": "Tip-Adapter", "seeds": [1], "values": {"1": "1.00"}})
    code, found = verified(*TIP, "--seeds", "1,2", "--out", out)
    assert (code, found["verdict"]) == (1, "not reproduced")
    mean = 100 * json.loads((out / "few_shot.json").read_text())["summary"][0]["mean"]["test"]
    assert found["measured"]["tip_adapter/few_shot, shots: 1"] == pytest.approx(mean)
    assert found["departures"].startswith("alpha and beta are searched on min(shots, 4) validation images a class")
    assert "\n" not in found["departures"]
    differs = {each["what"]: (each["published"], each["here"]) for each in found["conditions"] if not each["same"]}
    assert differs.keys() >= {"training images", "validation images"}
    assert (differs["seeds"], differs["set by hand"]) == (("1", "1, 2"), ("nothing", "method.views=0"))
    made = (out / "shots-1-seed-1/adapter.safetensors").stat().st_mtime_ns

    publish({"protocol": "few_shot", "method": "Tip-Adapter", "values": {"1": f"{mean + 0.9:.2f}"}})
    code, found = verified(*TIP, "--seeds", "1,2", "--out", out)
    assert (code, found["verdict"], found["compared"][0]["tolerance"]) == (0, "reproduced", 1.0)
    assert (out / "shots-1-seed-1/adapter.safetensors").stat().st_mtime_ns == made  # nothing is trained twice


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "eurosatt"], "--data eurosatt is not a published data set; did you mean 'eurosat'?"),
        (["--as", "RN5"], "--as RN5 is not the name of a published backbone; did you mean 'RN50'?"),
        (["--recipe", "coop"], "--recipe coop needs a folder for its training runs: give a folder with --out"),
        (["--out", "runs"], "--out and --set apply only to a recipe's runs: add --recipe"),
        (["--set", "train.lr=1"], "--out and --set apply only to a recipe's runs: add --recipe"),
        (["--recipe", "cop", "--out", "runs"], "nor a recipe called 'cop'"),
        (["--recipe", "coop", "--seeds", "x", "--out", "runs"], "--seeds is 'x'"),
        (["--root", "nowhere"], "'eurosat': there is no folder"),
    ],
)
def test_refusals(run, refused, root: Path, model_folder: Path, options: list[str], words: str) -> None:
    given = {"--data": "eurosat", "--root": root} | dict(zip(options[::2], options[1::2], strict=True))
    refused(run("verify", model_folder, *chain(*given.items())), words)
