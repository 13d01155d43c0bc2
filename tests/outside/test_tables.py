"""The tables of files to import agree with the classes in these files, so that nothing is found by all files alone."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

import adapt
from adapt import tasks
from adapt.backbones import families
from adapt.data import readers
from adapt.data.item import _NEEDS, TASKS
from adapt.methods.base import KINDS
from adapt.models import wrap

FORMS = (
    "mini-clip", "mini-vlm", "open_clip:ViT-B-32/openai", "hf:google/siglip-base-patch16-224", "timm:resnet18",
    "vision:mini-clip", "embed:mini-vlm", "mini-clip+mini-lm", "mini-clip&hf:facebook/dinov2-small",
    "vision:mini-clip&mini-clip", "embed:mini-clip+mini-lm", "hf:a+hf:b", "unknown", "open_clip:", "./mini-clip",
)  # fmt: skip


@pytest.mark.parametrize("spec", FORMS)
def test_the_families_asked_are_those_that_claim_a_name(spec: str) -> None:
    claiming = {family.name for family in families._families() if family.claims(spec)}
    assert claiming <= set(families._files_of(spec))


def test_every_family_with_a_prefix_or_a_folder_is_in_the_tables() -> None:
    every = list(families._families())
    prefixes = {family.prefix: family.name for family in every if family.prefix}
    of_halves = {form: family.name for family in every if not family.prefix for form in family.forms}
    prefixes |= {form.removesuffix("BACKBONE"): name for form, name in of_halves.items() if form.endswith(":BACKBONE")}
    assert prefixes == families._OF_PREFIX
    with_folders = [each.name for each in every if type(each).claims_folder is not families.Family.claims_folder]
    assert sorted(families._OF_FOLDER) == sorted(with_folders)


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Names, files and folders of all kinds, which need not hold data."""
    for file in ("a.csv", "A.TSV", "a.json", "a.json.gz", "a.jsonl", "a.txt", "a.tar", "a.doc"):
        (tmp_path / file).write_text("[]")
    shards, listed, captioned = (tmp_path / name for name in ("shards", "listed", "captioned"))
    for folder in (shards, listed, captioned, tmp_path / "emoji"):
        folder.mkdir()
    (shards / "0.tar").touch()
    (listed / "labels.csv").write_text("path,label\n")
    for name in ("1.png", "1.txt"):
        (captioned / name).touch()
    prefixes = [reader.prefix + str(listed) for reader in readers._readers() if reader.prefix]
    return [*map(str, sorted(tmp_path.iterdir())), *prefixes, "emoji", "emoji@noto", "eurosat", "nothing", "b.csv"]


def test_the_readers_asked_are_those_that_claim_data(data: list[str]) -> None:
    found = set()
    for spec in data:
        claiming = {reader.name for reader in readers._readers() if reader.claims(spec)}
        assert claiming <= set(readers._files_of(spec)), spec
        found |= claiming
    assert found >= {reader.name for reader in readers._readers() if reader.prefix}
    assert len(found) >= 12


def test_the_columns_that_tasks_need_are_in_the_table() -> None:
    files = TASKS.files()
    known = map(tasks.named, tasks.names())
    assert {task.name: task.needs for task in known if task.needs and task.name in files} == _NEEDS


def test_there_is_a_model_for_every_kind_of_backbone() -> None:
    assert wrap._MODELS.keys() == set(KINDS)
    for kind, name in wrap._MODELS.items():
        module = import_module(f"adapt.models.{kind.lower().replace(' ', '_')}")
        assert issubclass(getattr(module, name), adapt.models.base.Adapted)
