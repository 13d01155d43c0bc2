"""`adapt repeat` and `adapt diff`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from adapt import load_backbone, methods, wrap
from adapt.common import plain
from adapt.formats import tensor_file
from adapt.formats.adapter import NAME

TEN = {  # closed forms, caches, heads on features, prompts, and edits of either tower
    "nearest_mean": "",
    "gda": "",
    "lda": "",
    "tip_adapter": "",
    "linear_probe": "",
    "coop": "n_ctx: 2",
    "clip_adapter": "",
    "lora": "projections: v",
    "ln_tuning": "",
    "ivlp": "depth_text: 1, depth_vision: 1",
}
CLOSED = ("nearest_mean", "gda", "lda", "tip_adapter", "linear_probe")
ALWAYS = ("gda", "lora")  # the others in the full run


@pytest.fixture
def train(run, recipe: Path, photos: Path, tmp_path: Path) -> Callable[..., Path]:
    """`train(method, *settings, data=, out=)`: the folder of a new run, of two steps if the method takes any."""

    def make(method: str, *settings: str, data: Path = photos, out: str = "first") -> Path:
        steps = "train=null" if method in CLOSED else "train.warmup_epochs=0"
        given = [f"--set={each}" for each in (f"method={{name: {method}, {TEN[method]}}}", steps, *settings)]
        made = run("train", recipe, "--data", data, "--out", tmp_path / out, "--quiet", *given)
        assert made.exit_code == 0, made.output
        return tmp_path / out

    return make


def told(run, *arguments: object) -> dict[str, object]:
    result = run(*arguments, "--json")
    assert result.exit_code in (0, 1), result.stderr
    return json.loads(result.stdout)


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def with_header(adapter: Path, **changes: object) -> None:
    """Change entries of an adapter's header, as if it had been written so."""
    with safe_open(adapter, "pt") as file:
        header = {key: plain.parse(value) for key, value in file.metadata().items() if key != tensor_file.CHECKSUM}
    metadata = {key: plain.dump(value) for key, value in (header | changes).items() if value is not None}
    tensor_file.write(load_file(adapter), adapter, metadata)


@pytest.mark.parametrize(
    "method", [method if method in ALWAYS else pytest.param(method, marks=pytest.mark.full) for method in TEN]
)
def test_a_training_repeats_bit_for_bit(run, train, method: str) -> None:
    first = train(method)
    before = content(first)
    again = run("repeat", first, "--quiet")
    assert again.exit_code == 0, again.output
    assert "the same   all that is recorded" in again.stdout
    assert "\nthe same bits\n" in again.stdout
    assert content(first) == before


def test_a_changed_pixel_is_named_before_the_training(run, train, photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    first, changed = train("lora", data=data), data / "train" / "sky" / "1.png"
    image = Image.open(changed)
    image.putpixel((20, 16), (255, 255, 255))
    image.save(changed)
    again = run("repeat", first, "--quiet")
    before, _, after = again.stdout.partition("\ndiffers\n")
    assert again.exit_code == 1
    assert "train images whose file has changed  1  sky/1.png\n" in before
    assert "largest difference\n" in after
    assert "perhaps because of metrics.train_set; train images whose file has changed" in after
    found = told(run, "repeat", first, "--quiet")
    assert found["verdict"] == "differs"
    assert found["images"]["train images whose file has changed"] == [str(changed)]
    assert len(found["images"]["train images in both"]) == 5
    assert max(found["tensors"].values()) > 0
    assert found["answers"]["merit"] == 0  # on six images of three colours
    assert [*found["tensors"].values()] == sorted(found["tensors"].values(), reverse=True)


def test_images_that_have_moved_are_the_same(run, train, photos: Path, tmp_path: Path) -> None:
    here = shutil.copytree(photos, tmp_path / "here")
    first = train("gda", data=here)
    here.rename(tmp_path / "there")
    refused = run("repeat", first, "--quiet")
    assert refused.exit_code == 2
    assert "cannot be trained again" in refused.stderr
    assert "give --data if the data is elsewhere now" in refused.stderr
    again = run("repeat", first, "--quiet", "--data", tmp_path / "there", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / NAME).is_file()
    assert run("repeat", first, "--quiet", "--data", photos, "--out", tmp_path / "again").exit_code == 2


def test_what_a_run_says_against_its_adapter_is_named(run, train) -> None:
    """The seed and a library are named, and the recipe of the header is followed."""
    first = train("coop")
    recipe, environment = first / "recipe.yaml", first / "environment.json"
    recipe.write_text(recipe.read_text().replace("seed: 1\n", "seed: 2\n"))
    known = json.loads(environment.read_text())
    known["versions"]["torch"], known["processor"], known["threads"] = "1.0", "a slide rule", 3
    environment.write_text(json.dumps(known))
    found = told(run, "repeat", first, "--quiet")
    named = {key: first for key, (first, _) in found["facts"].items()}
    assert named["recipe.yaml: seed"] == 2
    assert named["environment.json: torch"] == "1.0"
    assert named["machine.processor"] == "a slide rule"
    assert "machine.threads" not in named  # they are those of the first training
    assert (found["verdict"], torch.get_num_threads()) == ("the same bits", 1)
    assert found["known_before"] == ["recipe.yaml: seed", "environment.json: torch", "machine.processor"]


def test_another_version_or_seed_in_the_header_is_named(run, train, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copy(train("gda") / NAME, alone)
    versions = {**json.loads(safe_open(alone, "pt").metadata()["versions"]), "torch": "1.0"}
    with_header(alone, versions=versions)
    again = run("repeat", alone, "--quiet")
    assert again.exit_code == 0, again.output  # the same bits under another version
    assert ["versions.torch", "1.0", version("torch")] in [line.split() for line in again.stdout.splitlines()]
    assert "unknown    threads, processor and images then: its run is not here" in again.stdout
    with_header(alone, seed=2)
    found = told(run, "repeat", alone, "--quiet")
    assert (found["facts"]["seed"], found["verdict"]) == ([2, 1], "differs")


def test_what_cannot_be_repeated_is_refused_by_name(
    run, train, refused, photos: Path, model_folder: Path, tmp_path: Path
) -> None:
    by_hand = wrap(load_backbone(str(model_folder)), methods.ZeroShot(), ["sky", "goldfish"])
    by_hand.save(tmp_path / "by_hand.safetensors")
    refused(run("repeat", tmp_path / "by_hand.safetensors"), "has no recipe in its header, as after adapt.fit")
    first = train("lora")
    soup = tmp_path / "soup.safetensors"
    assert run("soup", first, first, "--out", soup).exit_code == 0
    refused(run("repeat", soup), "is a soup or an average of several adapters: make it, or its parts, again")
    second = train("lora", f"start={first}", out="second")
    first.rename(tmp_path / "elsewhere")
    refused(run("repeat", second, "--quiet"), "second/adapter.safetensors cannot be trained again", f"put {first} back")
    refused(run("repeat", tmp_path / "elsewhere", "--backbone", "mini-clip", "--quiet"), "was trained on", "mini-clip")


@pytest.mark.full
def test_two_adapters_side_by_side(run, trained, photos: Path, tmp_path: Path) -> None:
    coop, lora = trained("coop"), trained("lora")
    shown = run("diff", coop, lora)
    assert shown.exit_code == 0, shown.output
    assert "recipe.train.lr" in shown.stdout
    found = told(run, "diff", coop, lora)
    assert found["facts"]["method.name"] == ["coop", "lora"]
    assert found["facts"]["recipe.train.lr"][1] == 0.1
    counts = {kind: len(paths) for kind, paths in found["images"].items()}
    assert counts == {"train images in both": 6, "val images in both": 6}
    assert found["equal_tensors"] == 0
    assert found["tensors"]["ctx"] == "only in the first"


def test_an_adapter_and_itself_do_not_differ(run, refused, trained, tmp_path: Path) -> None:
    coop = trained("coop")
    shown = run("diff", coop, coop)
    assert (shown.exit_code, shown.stdout.count("differs in")) == (0, 0)
    assert "\n1 with the same bits" in shown.stdout
    refused(run("diff", coop, tmp_path), "neither an adapter nor the folder of a run")


def test_lists_of_an_earlier_version_and_damaged_ones_are_named(run, refused, trained, tmp_path: Path) -> None:
    own = shutil.copytree(trained("coop"), tmp_path / "own")
    (own / "seen_images.csv").write_text("image,part\n" + "0" * 32 + ",train\n")
    refused(run("diff", own, own), "seen_images.csv", "of an earlier version: delete seen_images.csv")
    (own / "seen_images.csv").unlink()
    assert run("diff", own, trained("coop")).exit_code == 0
    (own / "environment.json").write_text('{"threads": "many", "versions": [1], "text_memory": "much"}')
    assert run("repeat", own, "--quiet").exit_code == 0  # with the threads of this process
    (own / "environment.json").write_text("[]")
    refused(run("repeat", own, "--quiet"), "environment.json contains no valid environment of a run")
