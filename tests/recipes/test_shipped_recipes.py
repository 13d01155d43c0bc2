"""Every recipe that ships parses, builds, opens with what a reader needs, and carries the paper's settings."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import tiny_backbones
import yaml

from adapt.backbones.base import Backbone
from adapt.recipe import Recipe, build_recipe, read_recipe, shipped
from adapt.training import run_recipe

_FOLDER = Path(__file__).resolve().parents[2] / "recipes"
_FILES = sorted(_FOLDER.rglob("*.yaml"))
_ELEVEN = {
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397",
    "dtd", "eurosat", "ucf101",
}  # fmt: skip
_COOP_TEMPLATES = {
    "oxford_pets": "a photo of a {}, a type of pet.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "food101": "a photo of {}, a type of food.",
    "ucf101": "a photo of a person doing {}.",
}

every_recipe = pytest.mark.parametrize("path", _FILES, ids=lambda path: path.relative_to(_FOLDER).as_posix())
every_data_set = pytest.mark.parametrize("name", sorted(_ELEVEN))


def _header(path: Path) -> str:
    lines = path.read_text().splitlines()
    count = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:count])


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbones.backbone("open_clip")


@every_recipe
def test_it_builds(
    path: Path, backbone: Backbone, class_names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_recipe, "load_backbone", lambda *_: backbone)
    recipe = read_recipe(path)
    model = run_recipe.build(recipe, class_names)
    assert model.method.name == recipe.method["name"]
    assert (recipe.train is not None) == model.method.name.startswith(("coop", "lora"))


@every_recipe
def test_its_resolved_form_is_the_same_recipe(path: Path) -> None:
    recipe = read_recipe(path)
    assert build_recipe(yaml.safe_load(recipe.to_yaml()), "resolved") == recipe


@every_recipe
def test_its_header_says_what_to_run_and_what_to_expect(path: Path) -> None:
    name = path.relative_to(_FOLDER).with_suffix("").as_posix()
    title, *rest = header = _header(path).splitlines()
    (command,) = (shlex.split(line) for line in header if line.startswith("adapt train "))
    assert title
    assert command[2] == name
    assert "--out" in command
    overrides = [command[at + 1] for at, word in enumerate(command) if word == "--set"]
    assert isinstance(read_recipe(path, overrides), Recipe)
    for word in ("Paper:", "Expected:"):
        assert any(line.startswith(word) for line in rest), word


def test_all_are_listed_by_their_names() -> None:
    assert list(shipped().values()) == _FILES
    assert {f"{method}/{name}" for method in ("coop", "lora") for name in _ELEVEN} < shipped().keys()


@every_data_set
def test_coop_has_the_papers_settings(name: str) -> None:
    recipe = read_recipe(_FOLDER / "coop" / f"{name}.yaml")
    assert recipe.method == {"name": "coop", "n_ctx": 16, "class_position": "end"}
    assert recipe.backbone == "open_clip:ViT-B-16/openai"
    assert (recipe.data.shots, recipe.seed) == (16, 1)
    assert recipe.data.template == _COOP_TEMPLATES.get(name, "a photo of a {}.")
    train = recipe.train
    assert train is not None
    epochs = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200} if name != "imagenet" else dict.fromkeys((1, 2, 4, 8, 16), 50)
    assert {shots: train.at(shots).epochs for shots in epochs} == epochs
    assert (train.optimizer, train.lr, train.momentum, train.weight_decay) == ("sgd", 0.002, 0.9, 5e-4)
    assert (train.schedule, train.warmup_epochs, train.warmup_lr) == ("cosine_epoch", 1, 1e-5)
    assert (train.batch_size, train.accumulate, train.drop_last) == (32, 1, True)
    assert (train.augment, train.views) == ("published", None)


@every_data_set
def test_lora_has_the_papers_settings(name: str) -> None:
    from adapt.methods.lora import LoRAConfig

    recipe = read_recipe(_FOLDER / "lora" / f"{name}.yaml")
    config = LoRAConfig(**recipe.method_config)
    assert (config.rank, config.alpha, config.dropout, config.logit_scale) == (2, 1, 0.25, 100)
    assert (set(config.projections), set(config.towers)) == ({"q", "k", "v"}, {"text", "vision"})
    assert (config.blocks, config.tuner, config.options) == (None, "lora", {})
    assert config.template == recipe.data.template == "a photo of a {}."
    assert recipe.backbone == "open_clip:ViT-B-16/openai"
    train = recipe.train
    assert train is not None
    assert {shots: train.at(shots).iterations for shots in (1, 4, 16)} == {1: 500, 4: 2000, 16: 8000}
    assert (train.optimizer, train.lr, train.weight_decay) == ("adamw", 2e-4, 1e-2)
    assert (train.schedule, train.min_lr) == ("cosine_iteration", 1e-6)
    assert (train.batch_size, train.accumulate, train.drop_last) == (32, 1, False)
    assert (train.augment, train.views) == ("published", None)


@every_data_set
def test_both_methods_read_the_same_files(name: str) -> None:
    coop, lora = (read_recipe(_FOLDER / method / f"{name}.yaml").data for method in ("coop", "lora"))
    assert (coop.source, coop.root) == (lora.source, lora.root)
