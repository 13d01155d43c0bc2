"""The schema of recipes: overrides, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from adapt import AdaptError
from adapt.recipe import Recipe, build_recipe, read_recipe

_RAW: dict[str, Any] = {
    "method": {"name": "coop", "n_ctx": 4},
    "data": {"source": "photos"},
    "train": {"epochs": 2},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(_RAW))
    return file


def test_defaults(path: Path) -> None:
    recipe = read_recipe(path)
    assert (recipe.backbone, recipe.seed, recipe.device) == ("mini-clip", 1, "auto")
    assert (recipe.data.shots, recipe.data.template) == (16, "a photo of a {}.")
    assert recipe.method_config == {"n_ctx": 4}


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("seed=7", lambda recipe: recipe.seed, 7),
        ("data.shots=4", lambda recipe: recipe.data.shots, 4),
        ("data.shots=null", lambda recipe: recipe.data.shots, None),
        ("method.n_ctx=8", lambda recipe: recipe.method_config, {"n_ctx": 8}),
        ("method={name: lora, towers: [text]}", lambda recipe: recipe.method["towers"], ["text"]),
        ("data.source=a=b", lambda recipe: recipe.data.source, "a=b"),
        ("train.lr=1e-3", lambda recipe: recipe.train.lr, 0.001),
        ("train.epochs={1: 5}", lambda recipe: recipe.train.epochs, {1: 5}),
        ("fast=true", lambda recipe: recipe.fast, True),
        ("fast=off", lambda recipe: recipe.fast, False),
        (("data.root", "a: b # c \N{GRINNING FACE}"), lambda recipe: recipe.data.root, "a: b # c \N{GRINNING FACE}"),
    ],
)
def test_overrides(path: Path, override: Any, read: Any, expected: object) -> None:
    assert read(read_recipe(path, [override])) == expected


def test_the_last_override_wins_and_the_file_stays(path: Path) -> None:
    before = path.read_bytes()
    assert read_recipe(path, ["seed=2", "seed=3"]).seed == 3
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", r"override 'seed' is not of the form key=value"),
        ("=3", r"override '=3' is not of the form key=value"),
        ("seed.x=3", r"seed: Input should be a valid integer"),
        ("data.source.deep=3", r"override 'data.source.deep=3': 'source' is a value, not a section"),
        ("data.shots=[1", r"the value is not valid YAML"),
        ("data..shots=1", r"unknown key 'data\.'"),
        ("data.shot=4", r"unknown key 'data.shot'; did you mean 'shots'"),
        ("data.shots=!!python/object/apply:os.getcwd []", r"the value is not valid YAML"),
    ],
)
def test_bad_overrides(path: Path, override: str, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        read_recipe(path, [override])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": 1}, r"^mine: unknown key 'sead'; did you mean 'seed'\? Also near: start"),
        (
            {"xyzzy": 1},
            r"^mine: unknown key 'xyzzy'; none of the \d+ valid names .*: `adapt recipes --schema` lists them",
        ),
        ({"data": {"source": "x", "shot": 1}}, r"^mine: unknown key 'data.shot'; did you mean 'shots'\?"),
        ({"train": {"epochs": 1, "batchsize": 1}}, r"^mine: unknown key 'train.batchsize'; did you mean 'batch_size'"),
        (
            {"train": {"epochs": 1, "leraning_rate": 1}},
            r"^mine: unknown key 'train.leraning_rate'; did you mean 'lr'",
        ),
        ({"train": {"epochs": 1, "speed": 1}}, r"^mine: unknown key 'train.speed'; none of"),
        ({"method": {"name": "coop", "n_ctxt": 4}}, r"^mine: method: unknown key 'n_ctxt'; did you mean 'n_ctx'\?"),
        ({"data": {}}, r"^mine: the key 'data.source' is missing"),
        ({"data": None}, r"^mine: data"),
        ({"method": {}}, r"^mine: method: give the method's name, as in"),
        ({"method": {"name": 3}}, r"^mine: method: give the method's name"),
        ({"method": {"name": "cop"}}, r"^unknown method 'cop'; did you mean 'coop'\? Also near: "),
        ({"method": {"name": "coop", "n_ctx": 0}}, r"^mine: method: n_ctx is 0: .*greater than or equal to 1"),
        ({"method": {"name": "coop", "class_position": "back"}}, r"class_position is 'back': .*'end', 'middle' or"),
        ({"data": {"source": "x", "shots": 0}}, r"^mine: data.shots is 0: "),
        ({"data": {"source": "x", "template": "a photo"}}, r"^mine: data.template is 'a photo': .* must contain \{\}"),
        ({"seed": -1}, r"^mine: seed is -1: "),
        ({"train": {"epochs": "many"}}, r"^mine: train.epochs is 'many': .*integer"),
        ({"train": {"epochs": {"one": 5}}}, r"^mine: train.epochs is 'one': .*valid integer"),
        ({"train": {"epochs": 1, "lr": "fast"}}, r"^mine: train.lr is 'fast': .*number"),
        (
            {"train": {"epochs": 1, "optimizer": "adagrad"}},
            r"^mine: train.optimizer is 'adagrad': .*'sgd', 'adam' or 'adamw'",
        ),
        ({"train": {"lr": 1}}, r"^mine: train: give exactly one of epochs, iterations and iterations_per_shot"),
        (
            {"train": {"iterations": 5, "iterations_per_shot": 2}},
            r"^mine: train: give exactly one of .*; iterations 5 and iterations_per_shot 2 are given: leave one out",
        ),
        ({3: 4}, r"^mine: "),
    ],
)
def test_bad_recipes(change: dict[Any, Any], message: str) -> None:
    with pytest.raises(AdaptError, match=message) as info:
        build_recipe(_RAW | change, "mine")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("method: !!python/object/apply:os.mkdir [MARK]", "is not valid YAML: could not determine a constructor"),
        ("- a list", "is not a recipe: expected keys"),
        ("", "is not a recipe: expected keys"),
        (b"\xff\xfe\x00", "is not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "bad.yaml"
    mark = tmp_path / "mark"
    file.write_bytes(text if isinstance(text, bytes) else text.replace("MARK", str(mark)).encode())
    with pytest.raises(AdaptError, match=message):
        read_recipe(file)
    assert not mark.exists()


def test_all_values_survive_the_resolved_form() -> None:
    raw = _RAW | {"data": {"source": "x", "shots": None}, "method": {"name": "lora", "logit_scale": None}}
    raw["train"] = {"epochs": {1: 50}, "views": 2}
    recipe = build_recipe(raw, "mine")
    again = Recipe(**yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert again.data.shots is None
    assert again.method["logit_scale"] is None


_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_LAUGHS, r"recipes have no references \(\*name\): write the value out"),
        ("method: " + "[" * 5000, "the data is nested too deep"),
        ("method: " + "[" * 40 + "]" * 40, "the data is nested too deep"),
        ("seed: " + "9" * 5000, "is not valid YAML: Exceeds the limit"),
        ("seed: 2020-13-45", "is not valid YAML: month must be in"),
        ("# " + "x" * 2**20, "is larger than 1,048,576 bytes, the most that a recipe may have"),
        (yaml.safe_dump(_RAW | {"seed": 2**70}), "an integer has 71 bits; expected at most 64"),
        (yaml.safe_dump(_RAW | {"method": {"name": "zero_shot", "template": []}}), "give at least one template"),
        (yaml.safe_dump(_RAW | {"method": {"name": "coop", "ctx_init": "x" * 2000}}), "a text has 2,000 characters"),
    ],
)  # fmt: skip
def test_recipes_that_are_too_much(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(AdaptError, match=message) as caught:
        read_recipe(tmp_path / "mine.yaml")
    assert str(caught.value).startswith(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["9" * 5000, "*x", "[" * 5000])
def test_overrides_that_are_too_much(value: str, path: Path) -> None:
    with pytest.raises(AdaptError, match="the value is not valid YAML"):
        read_recipe(path, [f"seed={value}"])
