"""Whose code a module is follows from what is installed, wherever it was installed."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import types
from importlib.metadata import version
from pathlib import Path

import pytest

import adapt
from adapt.backbones.preprocess import Preprocess
from adapt.data.decoding import whose_code
from adapt.data.decoding.transform_key import transform_key
from adapt.data.decoding.whose_code import library_version

SCRIPT = """
from adapt.backbones.preprocess import Preprocess
from adapt.data.decoding import whose_code
from adapt.data.decoding.transform_key import transform_key
from adapt.data.decoding.whose_code import library_version
read = Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
print(transform_key(read.evaluation()), transform_key(read.training()), library_version("torch"))
"""


def test_libraries_outside_site_packages_are_the_same_libraries(tmp_path: Path) -> None:
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for each in Path(folder).iterdir():
            if each.suffix != ".pth":
                (tmp_path / each.name).symlink_to(each)
    paths = f"{tmp_path}:{Path(adapt.__file__).parents[1]}"
    command = [sys.executable, "-S", "-c", SCRIPT]  # without site-packages
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": paths})
    assert run.returncode == 0, run.stderr
    read = Preprocess(32, (0.5,) * 3, (0.25,) * 3)
    assert run.stdout.split() == [*map(transform_key, (read.evaluation(), read.training())), version("torch")]


def test_a_module_that_answers_to_any_name_has_a_key() -> None:
    class Namespace(types.ModuleType):
        def __getattr__(self, name: str) -> Namespace:
            return self

    assert transform_key(Namespace("mine")) == transform_key(Namespace("mine"))


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, metadata: str, *lists: str) -> str:
    """A module in `folder`, whose metadata stand beside it: the name of the module."""
    described = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n"
    beside = folder / f"{name}{metadata}"
    beside.mkdir()
    for file, text in {
        "METADATA": described,
        "PKG-INFO": described,
        "top_level.txt": name,
        **dict.fromkeys(lists, "x"),
    }.items():
        (beside / file).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    module = types.ModuleType(name)
    module.__file__ = str(folder / f"{name}.py")
    monkeypatch.setitem(sys.modules, name, module)
    whose_code._by_package.cache_clear()  # what is installed changes here while a process runs
    whose_code._installed_version.cache_clear()
    return name


def test_what_was_installed_in_a_folder_is_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library_version(made(tmp_path, monkeypatch, "target", "-1.5.dist-info")) == "1.5"
    older = made(tmp_path, monkeypatch, "older", "-1.5.egg-info", "SOURCES.txt", "installed-files.txt")
    assert library_version(older) == "1.5"


def test_source_trees_and_editable_installs_are_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library_version(made(tmp_path, monkeypatch, "tree", ".egg-info", "SOURCES.txt")) is None
    name = made(tmp_path, monkeypatch, "editable", "-1.5.dist-info")
    sys.modules[name].__file__ = str(tmp_path.parent / f"{tmp_path.name}-source" / f"{name}.py")
    assert library_version(name) is None
    assert library_version("__main__") is library_version("no_such_module") is None
    assert library_version("dis") == library_version("os.path") == sys.version
