"""The guides of the seams stand alone: their code blocks, copied into an empty folder, run without anything else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
from selection import by_turns

from adapt import AdaptError, methods

from .conftest import Install

SEAMS = {"add_a_backbone": "backbones", "add_a_task": "tasks", "add_a_reader": "readers", "write_a_method": "methods"}
BROKEN = "import nothing_of_this_name\n"


def copied(guide: str, folder: Path) -> tuple[str, str]:
    """Copies the guide's code into a module beside its entry point, and returns the names of both."""
    page = pages.ROOT / "docs" / f"{guide}.md"
    group, point, name, of = re.findall(
        r'\[project\.entry-points\."(adapt\.\w+)"\]\s+((\w+) = "(\w+):\w+")', page.read_text(encoding="utf-8")
    )[0]
    assert group == f"adapt.{SEAMS[guide]}"
    code = "\n".join(str(example.parsed) for example in pages.document(page).examples())
    (folder / f"{of}.py").write_text(code)
    about = folder / f"{of}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {of}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{point}\n".replace('"', ""))
    return of, name


@by_turns("guide", SEAMS)
def test_a_guide_is_followed_from_an_empty_folder(guide: str, tmp_path: Path) -> None:
    """Its class is registered in the process, and named by an entry point too: that is no collision."""
    module, name = copied(guide, tmp_path)
    alone = os.environ | {"PYTHONPATH": str(pages.ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, f"{module}.py"], cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ask = f"from adapt import {SEAMS[guide]} as seam; assert {name!r} in seam.names()"
    if guide == "add_a_backbone":
        ask = f"import adapt; assert adapt.load_backbone({name!r}, 'cpu').describe() == {name!r}"
    elif guide == "add_a_reader":
        ask = "import adapt; assert len(adapt.data.load('photos.seen').train) == 18"
    elif guide == "add_a_task":
        ask = "import adapt; assert adapt.data.load('photos.csv').task.name == 'soft_labels'"
    subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, env=alone, check=True)


def test_a_class_may_be_registered_and_named_by_its_entry_point(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods._listing, "_registered", {})
    source = (
        "from adapt import methods\n\n\n@methods.register\nclass Mine(methods.ZeroShot):\n    name = 'mine_of_theirs'\n"
    )
    install("their_method", source, "[adapt.methods]\nmine_of_theirs = their_method:Mine\n")
    found = methods.find("mine_of_theirs")
    assert (found.__module__, methods.find("mine_of_theirs")) == ("their_method", found)

    class Mine(methods.ZeroShot):
        name = "mine_of_theirs"

    with pytest.raises(AdaptError, match="there is a method called 'mine_of_theirs' already"):
        methods.register(Mine)


@pytest.mark.parametrize("seam", SEAMS.values())
def test_a_package_that_cannot_be_imported_stops_only_what_needs_it(
    seam: str, install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import adapt
    from adapt.recipe.schema import recipe_schema

    install(f"broken_{seam}", BROKEN, f"[adapt.{seam}]\nbroken_of_{seam} = broken_{seam}:Nothing\n")
    assert adapt.load_backbone("mini-clip", "cpu").describe() == "mini-clip"
    assert len(adapt.data.load("emoji").class_names) == 24
    adapt.tasks.reading(frozenset({"path", "label"}))
    recipe_schema()
    warned = [each for each in caplog.messages if f"broken_of_{seam}" in each]
    assert len(warned) == 1
    assert "cannot be imported: ModuleNotFoundError" in warned[0]
    assert "it is left out; repair or uninstall the package" in warned[0]
    if seam == "methods":
        with pytest.raises(AdaptError, match="'broken_of_methods' of broken_methods:Nothing cannot be imported"):
            methods.find("broken_of_methods")


def test_a_package_without_recipes_stops_no_recipe(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    from adapt.recipe import read_recipe

    install("no_recipes", "", "[adapt.recipes]\ntheirs = nothing_of_this_name.inside\n")
    assert read_recipe("coop", data="emoji").method["name"] == "coop"
    assert caplog.messages == ["adapt.recipes:theirs must name a package: nothing_of_this_name.inside is left out"]
