"""The installed package holds what the checkout holds, under a name of its own, and its extras are what is missed."""

from __future__ import annotations

import ast
import importlib.metadata as metadata_library
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
import yaml
from selection import by_turns

import adapt
from adapt import methods

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "adapt").rglob("*.py"))


def test_every_package_is_listed() -> None:
    settings = PYPROJECT["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "adapt").rglob("__init__.py")}

    assert found | set(settings["package-dir"]) == set(settings["packages"])


def test_its_name_is_not_that_of_another_project() -> None:
    assert PYPROJECT["project"]["name"] == metadata("adapt-vlm")["Name"] == "adapt-vlm"
    assert adapt.__version__ == version("adapt-vlm")


def test_the_version_is_written_alike_in_three_places() -> None:
    own = PYPROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, latest, *_ = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", changelog, flags=re.M)
    assert unreleased == ("Unreleased", "")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert own == latest[0] == citation["version"]
    assert latest[1] == str(citation["date-released"])


def test_a_copy_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata_library.PackageNotFoundError(name)

    monkeypatch.setattr(metadata_library, "version", absent)
    assert runpy.run_path(str(ROOT / "adapt/common/version.py"))["__version__"] == "0+unknown"


def test_what_is_heavy_and_seldom_needed_is_an_extra() -> None:
    base = " ".join(PYPROJECT["project"]["dependencies"])
    for library in ("bitsandbytes", "matplotlib", "ray", "datasets", "pandas"):
        assert library not in base


def test_the_extras_that_messages_name_are_declared() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"].keys()
    places = {"missing": 2, "needing": 2, "check_installed": 1}  # of the extra among the arguments
    calls = [
        (node, places.get(ast.unparse(node.func)))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    given = [node.args[place] for node, place in calls if place is not None]
    named = {argument.value for argument in given if isinstance(argument, ast.Constant)}
    assert {"hf-data", "mlflow", "plot", "quantize", "ray", "serve", "slurm", "words"} <= named <= extras


def test_no_other_message_tells_what_to_install() -> None:
    told = {path.name for path in MODULES if 'pip install "' in path.read_text(encoding="utf-8")}
    assert told == {"errors.py"}
    assert [path.name for path in MODULES if 'install -e "' in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("package", [adapt, adapt.data])
def test_every_name_is_there_and_no_other(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="lode"):
        package.lode  # type: ignore[attr-defined]  # noqa: B018


def test_editors_see_every_method() -> None:
    """Those that are imported for type checkers are those that are found by their files."""
    tree = ast.parse((ROOT / "adapt/methods/__init__.py").read_text(encoding="utf-8"))
    listed = {
        (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    } - {("adapt.methods.base", "Method")}
    assert listed == {(methods.find(name).__module__, methods.find(name).__name__) for name in methods.names()}


@pytest.mark.parametrize("target", ["quickstart", "test", "test-full"])
def test_make_says_first_what_it_does_and_how_long_it_takes(target: str) -> None:
    minutes = f"{target.replace('-', '_').upper()}_MINUTES=7"
    asked = ["make", "-n", target, minutes, "VENV=/nowhere/venv"]
    lines = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if "pip install" in line)
    told = " ".join(lines[:first])
    assert f"{target}: installs adapt with" in told
    assert "about 7 minutes on two quiet cores" in told


@by_turns("target", ["quickstart", "serve", "test", "docs"])
def test_an_install_by_make_is_one_that_editors_see_through(target: str, tmp_path: Path) -> None:
    """Who reads types runs no import hook: it follows folders that a `.pth` names, and then py.typed."""
    pytest.importorskip("setuptools", minversion="77")
    asked = subprocess.run(
        ["make", "-n", target, "VENV=/nowhere/venv"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    installs = [line for line in asked.stdout.splitlines() if "pip install" in line and "--editable" in line]
    settings = {tuple(re.findall(r"--config-settings (\S+)=(\S+)", line)) for line in installs}
    assert len(settings) == 1
    for part in ("adapt", "checkpoints", "recipes", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        (tmp_path / part).symlink_to(ROOT / part)
    build = f"import setuptools.build_meta as by; by.build_editable({str(tmp_path)!r}, {dict(*settings)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [hook] = [name for name in archive.namelist() if name.endswith(".pth")]
        [line] = archive.read(hook).decode().splitlines()
    assert (Path(line) / "adapt" / "py.typed").is_file(), line


def test_workflows_run_the_scripts_that_people_run() -> None:
    files = [ROOT / ".github/workflows" / f"{name}.yml" for name in ("tests", "release")]
    tests, release = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    assert [step["run"] for step in tests["jobs"]["tests"]["steps"] if "run" in step] == [".ci/run"]
    steps = [step["run"] for step in release["jobs"]["build"]["steps"] if "run" in step]
    assert steps[1:] == [".ci/release", "make docs"]
    assert release[True]["push"]["tags"] == ["v*"]  # YAML reads `on` as true
    assert release["permissions"] == tests["permissions"] == {"contents": "read"}
    assert release["jobs"]["publish"]["needs"] == ["tests", "build"]
    assert release["jobs"]["tests"] == {"uses": "./.github/workflows/tests.yml"}
    assert "workflow_call" in tests[True]
    for script in (".ci/run", ".ci/release"):
        assert subprocess.run(["bash", "-n", script], cwd=ROOT, check=False).returncode == 0
        assert (ROOT / script).stat().st_mode & 0o111


@pytest.mark.parametrize(("tag", "released"), [("v{}", True), ("v{}1", False), ("{}", True), ("v9.9.9", False)])
def test_a_tag_releases_its_own_version_alone(tag: str, released: bool) -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    [check] = [step for step in workflow["jobs"]["build"]["steps"] if step.get("name") == "The tag is the version"]
    named = {"GITHUB_REF_NAME": tag.format(PYPROJECT["project"]["version"]), "PATH": os.environ["PATH"]}
    status = subprocess.run(["bash", "-c", check["run"]], cwd=ROOT, env=named, check=False).returncode
    assert (status == 0) is released
