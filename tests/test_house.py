"""The house: imports run one way, no room but methods' own knows a method, one word one meaning, a budget of lines."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx
import pytest

from adapt.data import Item
from adapt.methods.base import Method
from adapt.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "adapt").rglob("*.py"))
}
# honest lazy doors: `Backbone.from_...`, `save` and `push_to_hub` open onto what is built on the base
DOORS = {
    ("adapt.models.base", "adapt.formats.adapter"),
    ("adapt.models.base", "adapt.formats.publishing"),
    ("adapt.backbones.base", "adapt.backbones.openclip"),
    ("adapt.backbones.base", "adapt.backbones.timm_images"),
    ("adapt.backbones.base", "adapt.backbones.transformers_models"),
    ("adapt.backbones.base", "adapt.backbones.vision_encoder"),
}
# files that name each other, if for types alone: a method reads a step of a model, and a model asks its method
TOGETHER = [{"methods.base", "models"}, {"methods.das"}, {"methods", "methods.compose"}, {"data.decoding"}]
NO_METHOD_BY_NAME = {"backbones", "choosing", "data", "engine", "evaluation", "models", "training"}
MOST_LINES = 62_340  # of Python in the wheel: CONTRIBUTING.md


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(module: str, types: bool = False) -> Iterator[str]:
    """The modules of adapt that `module` imports, inside functions too; if `types`, those that it imports for types."""
    typing_only = {
        inner
        for node in ast.walk(tree(module))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not types
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree(module)):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from {inner if inner in FILES else node.module} & FILES.keys()


def lazily(module: str) -> Iterator[str]:
    """What `module` takes from `adapt.methods` by the name of a class, whose file is imported then."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module == "adapt.methods":
            yield from (f"adapt.methods.{alias.name}" for alias in node.names if alias.name[0].isupper())


def test_imports_run_in_no_circle() -> None:
    arrows = {module: {to for to in imported(module) if (module, to) not in DOORS} for module in FILES}
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for to in sorted(arrows[module] - {module}):
                walk(to, (*way, module))
            done.add(module)

    for module in FILES:
        walk(module, ())
    assert done == set(FILES)


def test_types_point_one_way() -> None:
    """Rows and labels stand below, tasks above; only what `TOGETHER` lists may name each other in annotations."""
    arrows = networkx.DiGraph((module, to) for module in FILES for to in imported(module, types=True))
    arrows.remove_edges_from(DOORS)
    circles = [circle for circle in networkx.strongly_connected_components(arrows) if len(circle) > 1]
    for circle in circles:
        rooms = {module.removeprefix("adapt.") for module in circle}
        assert any(
            all(room in allowed or room.rpartition(".")[0] in allowed for room in rooms) for allowed in TOGETHER
        ), sorted(circle)
    assert sum(map(len, circles)) <= 17


@pytest.mark.parametrize("script", sorted((ROOT / "checkpoints").glob("*/build/*.py")), ids=lambda path: path.stem)
def test_what_scripts_of_the_docs_import_is_there(script: Path) -> None:
    """They run for hours by hand, beside data that a test has not."""
    modules = {}
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("adapt", "benchmarks"):
            module = importlib.import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or f"{node.module}.{name}" in FILES, name
                if f"{node.module}.{name}" in FILES:
                    modules[name] = importlib.import_module(f"{node.module}.{name}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = getattr(node.func.value, "id", "")
            if called in modules and not any(isinstance(each, ast.Starred) for each in node.args):
                takes = inspect.signature(getattr(modules[called], node.func.attr))
                takes.bind(*node.args, **{each.arg: each for each in node.keywords if each.arg})


def test_what_the_measurement_of_the_parts_of_das_sets_is_a_setting() -> None:
    script = ast.parse((ROOT / "checkpoints/mini-clip/build/das_parts.py").read_text(encoding="utf-8"))
    words = {node.value for node in ast.walk(script) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    changes = sorted(word for word in words if re.fullmatch(r"(method|train)[.]\w+=.+", word))
    assert len(changes) == 4
    read_recipe("das", changes)


def test_no_room_names_a_method() -> None:
    """But zero_shot and nearest_mean, the baselines of runs."""
    methods = {module.split(".")[2] for module in FILES if module.startswith("adapt.methods.")}
    methods -= {"base", "nearest_mean", "zero_shot"}
    assert {"coop", "das", "lora", "tip_adapter"} <= methods
    known = [
        f"{module} knows {to}"
        for module in FILES
        if module.count(".") > 1 and module.split(".")[1] in NO_METHOD_BY_NAME
        for to in {*imported(module), *lazily(module)}
        if to.startswith("adapt.methods.") and (to.split(".")[2] in methods or to.split(".")[2][0].isupper())
    ]
    assert known == []


def test_a_word_has_one_meaning() -> None:
    """No two classes or aliases of types are called the same; a folder makes a file's name unique."""
    words: dict[str, list[str]] = defaultdict(list)
    for module in FILES:
        for node in tree(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                words[node.name].append(module)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, value = node.targets[0].id, ast.dump(node.value)
                if name[0].isupper() and not name.isupper() and "TypeVar" not in value and "ParamSpec" not in value:
                    words[name].append(module)
    assert {word: where for word, where in words.items() if len(where) > 1} == {}


def test_what_enters_pays() -> None:
    """A feature that enters makes room: by fewer things, not by longer lines or thinner docstrings."""
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in FILES.values()) <= MOST_LINES


# what a label says to everybody; its fields are its task's own
SAID_BY_LABELS = {
    "caption",
    "class_names",
    "columns",
    "files",
    "identity",
    "renamed",
    "stratum",
    "task",
    "unit",
    "words",
}


@pytest.mark.parametrize("module", [module for module in FILES if not module.startswith("adapt.tasks")])
def test_tasks_are_asked_and_not_known(module: str) -> None:
    """No room but the tasks' own imports a task, reads a field of a label, or knows a task by its name."""
    names = {each.rpartition(".")[2] for each in FILES if each.startswith("adapt.tasks.")} - {"base"}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adapt.tasks."):
            assert node.module == "adapt.tasks.base", f"line {node.lineno} imports a task"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "label":
            assert node.attr in SAID_BY_LABELS, f"line {node.lineno} reads the field {node.attr} of a label"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("tasks.named"):
            assert not isinstance(node.args[0], ast.Constant), f"line {node.lineno} looks up a task by its name"
        if isinstance(node, ast.Compare) and "task.name" in ast.unparse(node):
            constants = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
            assert not constants & names, f"line {node.lineno} compares a task by its name"


def short_docstrings() -> Iterator[tuple[str, str]]:
    """Yield the place and text of each docstring of one or two lines."""
    for module in FILES:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text.splitlines()) <= 2:
                    yield f"{module}.{getattr(node, 'name', '')}", text


def test_docstrings_begin_with_what_they_are_about() -> None:
    """No first word stands for something that only the code around it tells."""
    vague = tuple(f"{word} " for word in ("What", "Those", "That", "It", "Of", "As many", "Which"))
    assert len([place for place, text in short_docstrings() if text.startswith(vague)]) < 10


def test_what_every_method_and_every_item_has_stays_small() -> None:
    declared = set(vars(Method)) | set(Method.__annotations__) | {"config", "built"}
    assert len({name for name in declared if not name.startswith("_")}) <= 33
    assert len(dataclasses.fields(Item)) <= 7
