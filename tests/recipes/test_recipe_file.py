"""A recipe's file: what is put over it for some data, what the data bring, what is refused; and recipes by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from adapt import AdaptError
from adapt.recipe import read_recipe
from adapt.recipe.file import read_file
from adapt.recipe.shipped import find_recipe, recipe_of, shipped, short

_TEXT = """\
# A title
#
#   adapt train mine.yaml --data photos
method: {name: lora, rank: 4}
data: {shots: 8}
train: {epochs: {1: 5, 16: 50}, lr: 0.1}
on:
  dtd: {train: {epochs: {16: 100}}, data: {shots: 16}}
  own: {method: {rank: 1, logit_scale: null}, train: {epochs: 3}}
  emoji: {backbone: mini-clip, method: {template: "an icon of {}."}}
  emoji@noto: {seed: 7}
expected:
  dtd: "1 / 2 / 3 %
    of nothing"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(_TEXT)
    return file


def test_what_the_file_says(path: Path) -> None:
    file = read_file(path, "mine")
    assert (file.title, file.comment.splitlines()[2]) == ("A title", "  adapt train mine.yaml --data photos")
    assert file.settings.keys() == {"method", "data", "train"}
    assert list(file.on) == ["dtd", "own", "emoji", "emoji@noto"]
    assert file.expected_on("dtd") == file.expected_on("DescribableTextures") == "1 / 2 / 3 % of nothing"
    assert file.expected_on("eurosat") is None


@pytest.mark.parametrize("data", ["dtd", "DescribableTextures"])
def test_a_published_set_has_its_root_and_template_and_its_changes_go_deep(path: Path, data: str) -> None:
    recipe = read_recipe(path, data=data)
    assert (recipe.data.source, recipe.data.root, recipe.data.template) == (data, "data", "{} texture.")
    assert (recipe.data.shots, recipe.train.epochs, recipe.train.lr) == (16, {1: 5, 16: 100}, 0.1)
    assert recipe.method == {"name": "lora", "rank": 4}


def test_a_published_set_without_changes(path: Path) -> None:
    recipe = read_recipe(path, data="eurosat")
    assert recipe.data.template == "a centered satellite photo of {}."
    assert (recipe.data.shots, recipe.train.epochs) == (8, {1: 5, 16: 50})


def test_given_keys_win_over_the_sets_own(path: Path) -> None:
    given = read_recipe(path, ["data.root=null", "data.template='{}.'", "train.epochs=2"], data="dtd")
    assert (given.data.root, given.data.template, given.train.epochs) == (None, "{}.", 2)


@pytest.mark.parametrize("data", ["photos/", "some.csv", "hf:beans", "torchvision:DTD", "./dtd", "on"])
def test_all_else_is_ones_own(path: Path, data: str) -> None:
    recipe = read_recipe(path, data=data)
    assert recipe.method == {"name": "lora", "rank": 1, "logit_scale": None}
    assert (recipe.data.root, recipe.data.template) == (None, "a photo of a {}.")
    assert read_recipe(path, [f"data.source={data!r}"]) == recipe


@pytest.mark.parametrize(
    ("data", "backbone", "seed"),
    [("emoji", "mini-clip", 1), ("emoji@fluent-3d", "mini-clip", 1), ("emoji-concepts", "mini-clip", 1)]
    + [("emoji@noto", "mini-clip", 7)],
)
def test_styles_of_emoji_are_emoji_unless_they_have_their_own(path: Path, data: str, backbone: str, seed: int) -> None:
    recipe = read_recipe(path, data=data)
    assert (recipe.backbone, recipe.seed) == (backbone, seed)
    assert ("template" in recipe.method) == (seed == 1)


def test_the_file_may_name_its_data_and_another_may_be_asked_for(path: Path) -> None:
    path.write_text(path.read_text().replace("data: {shots: 8}", "data: {source: dtd, shots: 8}"))
    assert read_recipe(path) == read_recipe(path, data="dtd")
    assert read_recipe(path, data="photos").method["rank"] == 1


def test_the_resolved_form_keeps_neither(path: Path) -> None:
    recipe = read_recipe(path, data="dtd")
    resolved = yaml.safe_load(recipe.to_yaml())
    assert not {"on", "expected", True} & resolved.keys()
    path.write_text(recipe.to_yaml())
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("data: {shots: 8}", "data: {source: 3}", "data.source is 3"),
        ("dtd: {train", "dtb: {train", "on has 'dtb', which is not the name of a known data set; did you mean 'dtd'"),
        ("  own: {method", "  photos: {method", "on has 'photos', which is not the name of a known data set"),
        ("emoji@noto: {seed: 7}", "emoji@noto: 7", "on.emoji@noto is 7; expected recipe keys"),
        ("expected:\n  dtd", "expected:\n  dtt", "expected has 'dtt', which is not the name of"),
        ("dtd: {train", "dtd: {trian: 1, train", "unknown key 'trian'; did you mean 'train'"),
    ],
)
def test_files_that_are_refused(path: Path, old: str, new: str, message: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(AdaptError, match=message) as caught:
        read_recipe(path, data=None if "source" in new else "dtd")
    assert "\n" not in str(caught.value)


def test_on_what_is_asked_for(path: Path) -> None:
    with pytest.raises(AdaptError, match=r"mine\.yaml names no data: .* emoji, .*; for example --data emoji"):
        read_recipe(path)
    with pytest.raises(AdaptError, match=r"data\.source is 'photos', but the data is also given as 'dtd'"):
        read_recipe(path, ["data.source=photos"], data="dtd")
    with pytest.raises(AdaptError, match="unknown key 'on'"):
        read_recipe(path, ["on.dtd.seed=3"], data="dtd")


@pytest.mark.parametrize(
    ("name", "protocol", "expected"),
    [
        ("coop", None, "coop/few_shot"),
        ("coop", "few_shot", "coop/few_shot"),
        ("coop", "base_to_new", "coop/base_to_new"),
        ("coop", "cross_dataset", "coop/few_shot"),
        ("maple", "base_to_new", "maple/few_shot"),
        ("maple", "cross_dataset", "maple/cross_dataset"),
        ("maple", "domain_generalisation", "maple/cross_dataset"),
        ("vlora", None, "vlora/questions"),
        ("coop/base_to_new", "few_shot", "coop/base_to_new"),
        ("coop/few_shot.yaml", None, "coop/few_shot"),
        ("recipes/coop/few_shot.yaml", None, "coop/few_shot"),
        ("quickstart", None, "quickstart"),
    ],
)
def test_recipes_by_name(
    name: str, protocol: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_recipe(name, protocol)
    assert found.name == expected
    assert found == read_file(shipped()[expected], expected)
    assert find_recipe(short(expected, protocol), protocol) == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("compose", "compose has several recipes: choose compose/das_lora or compose/mblip or compose/vlora_lora"),
        (
            "dpl/eurosat",
            "dpl has no recipe 'eurosat': choose dpl/cross_dataset or dpl/few_shot, and choose data sets with --data",
        ),
        ("mapel", "nor a recipe called 'mapel'; did you mean 'maple'"),
        ("none.yaml", "nor a recipe called 'none.yaml'"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(AdaptError, match=message) as caught:
        find_recipe(name)
    assert len(str(caught.value)) < 250
    assert recipe_of("compose") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: {name: zero_shot}\ndata: {shots: 1}\ndata: {shots: 2}\n", "the key 'data' appears twice"),
        ("method: {name: zero_shot}\nseed: 1:30\n", "seed is '1:30'"),
        ("method: {name: zero_shot}\ntext_memory_gib: .inf\n", "text_memory_gib is inf"),
    ],
)
def test_what_yaml_takes_without_a_word_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(AdaptError, match=message):
        read_recipe(tmp_path / "a.yaml", data="emoji")


@pytest.mark.parametrize("key", ["epochs=1", "iterations=10"])
def test_a_length_that_is_set_takes_the_place_of_the_recipes(key: str) -> None:
    name, _, count = key.partition("=")
    overrides = [f"train.{key}", "train.schedule=constant"]
    train = read_recipe("lora", overrides, data="emoji").train  # whose length is in iterations_per_shot
    assert train is not None
    lengths = {each: getattr(train, each) for each in ("epochs", "iterations", "iterations_per_shot")}
    assert {each: value for each, value in lengths.items() if value is not None} == {name: int(count)}


def test_an_empty_name_of_data_and_a_name_too_long_for_a_file_are_refused() -> None:
    with pytest.raises(AdaptError, match="the data is ''; expected the name"):
        read_recipe("zero_shot", data="")
    with pytest.raises(AdaptError, match="there is neither a recipe file"):
        read_recipe("a" * 5000, data="emoji")


def test_a_setting_can_be_set_to_nothing() -> None:
    recipe = read_recipe("coop", ["method.ctx_init=", "method.n_ctx=4"], data="emoji")
    assert recipe.method["ctx_init"] == ""


def test_the_line_for_editors_is_no_part_of_the_title(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"# yaml-language-server: $schema=recipe.schema.json\n{_TEXT}")
    assert read_file(tmp_path / "mine.yaml", "mine").title == "A title"
