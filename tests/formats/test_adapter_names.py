"""Names of adapters by their paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapt.formats import distinct_names, name_of_adapter


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/coop", "coop"),
        ("runs/coop/adapter.safetensors", "coop"),
        ("runs/train.lr=0.01", "train.lr=0.01"),
        ("mine/best.v2.safetensors", "best.v2"),
        ("hf://user/coop@v2", "coop@v2"),
    ],
)
def test_an_adapter_is_called_by_its_run_or_file(path: str, name: str) -> None:
    assert name_of_adapter(Path(path)) == name


def test_folders_tell_adapters_of_one_name_apart() -> None:
    paths = ["a/x/coop", "b/x/coop/adapter.safetensors", "b/lora.safetensors", "hf://user/lora", "b/gda"]
    names = distinct_names([Path(path) for path in paths])
    assert names == ["a/x/coop", "b/x/coop", "b/lora", "user/lora", "gda"]


def test_a_folder_beside_the_file_in_it() -> None:
    paths = ["runs/coop", "runs/coop/adapter.safetensors"]
    assert distinct_names([Path(path) for path in paths]) == paths
