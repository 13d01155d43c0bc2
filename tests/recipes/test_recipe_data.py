"""The data sections of shipped recipes: published names, templates and the paper's own picks."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapt.data import published
from adapt.recipe import read_recipe, shipped

_PUBLISHED = [(name, path) for name, path in shipped().items() if read_recipe(path).data.root is not None]


def test_every_recipe_with_a_root_reads_one_of_the_eleven() -> None:
    assert len(_PUBLISHED) >= 56
    assert {read_recipe(path).data.source for _, path in _PUBLISHED} == set(list(published.sets())[:11])


@pytest.mark.parametrize(("name", "path"), _PUBLISHED, ids=[name for name, _ in _PUBLISHED])
def test_its_data_are_the_published_ones(name: str, path: Path) -> None:
    data = read_recipe(path).data
    method, data_set = name.split("/")
    entry = published.sets()[data_set.removesuffix("_transfer")]
    is_lora = method == "lora"
    assert (data.source, data.root) == (entry.name, "data")
    assert data.template == ("a photo of a {}." if is_lora else entry.template)
    assert data.sampling == ("clip-lora" if is_lora else "coop")
    assert f"adapt data check {entry.name} data" in path.read_text(encoding="utf-8")
