"""Recipes as no one should write them: a recipe or an AdaptError of one line."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hostile import damaged, survives
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapt import AdaptError, methods
from adapt.recipe import Recipe, read_recipe
from adapt.recipe.file import set_key
from adapt.recipe.settings import TrainSettings
from adapt.recipe.shipped import shipped

_quick = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_text = st.text(max_size=12)
_value: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)


def _section(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(keys) | _text, _value, max_size=4)


def _named(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return _section(*methods.find(name).Config.model_fields).map(lambda config: {"name": name} | config)


_method = st.sampled_from(methods.names()).flatmap(_named)
_recipe = st.fixed_dictionaries(
    {
        "method": _method | _value,
        "data": _section("source", "shots", "template", "classes", "root", "names") | _value,
    },
    optional={
        "train": _section(*TrainSettings.model_fields) | _value,
        "on": st.dictionaries(st.sampled_from(["emoji", "own"]) | _text, _value, max_size=2) | _value,
        "expected": _value,
        **{key: _value for key in Recipe.model_fields if key not in ("method", "data", "train")},
    },
)


@pytest.mark.full
@_quick
@given(_recipe | _value)
def test_recipes_that_are_made_up(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), errors="replace")
    survives(lambda: read_recipe(tmp_path / "a.yaml").to_yaml())


@_quick
@given(st.text(max_size=60), st.binary(max_size=60))
def test_texts_that_are_made_up(tmp_path: Path, text: str, content: bytes) -> None:
    for written in (text.encode(errors="replace"), content):
        (tmp_path / "a.yaml").write_bytes(written)
        survives(lambda: read_recipe(tmp_path / "a.yaml"))
    survives(lambda: set_key({"data": {"source": "photos"}}, text))


@pytest.mark.parametrize(("name", "path"), sorted(shipped().items())[::4])
def test_damaged_recipes(tmp_path: Path, name: str, path: Path) -> None:
    stream = Random(name)
    for _ in range(20):
        (tmp_path / "a.yaml").write_bytes(damaged(path.read_bytes(), stream))
        survives(lambda: read_recipe(tmp_path / "a.yaml").to_yaml())


@pytest.mark.parametrize("section", ["variants", "train", "preferred"])
def test_thousands_of_keys_are_refused_in_a_word(tmp_path: Path, section: str) -> None:
    """Which took time by their square, and filled the screen."""
    keys = "".join(f"  k{number}: 1\n" for number in range(10_000))
    (tmp_path / "a.yaml").write_text(f"method: {{name: coop}}\ndata: {{source: emoji}}\n{section}:\n{keys}")
    with pytest.raises(AdaptError, match="k0") as caught:
        read_recipe(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 500


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("method: {name: coop, n_ctx: 4, n_ctx: 5}\ndata: {source: emoji}\n")
    with pytest.raises(AdaptError, match="the key 'n_ctx' appears twice"):
        read_recipe(tmp_path / "a.yaml")
