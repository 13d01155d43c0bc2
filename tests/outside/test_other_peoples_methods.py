"""Methods of other people: an installed package's, found by its entry point, and a file's of one's own.

The method is the example of docs/write_a_method.md.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pages
import pytest
import torch
import yaml
from click.testing import CliRunner
from stopping import assert_goes_on_exactly

import adapt
from adapt import AdaptError, methods
from adapt.cli import main
from adapt.data import Split
from adapt.methods.base import Method, Training
from adapt.protocols.protocol import base_to_new, run_protocol
from adapt.recipe import build_recipe, read_recipe
from adapt.recipe.shipped import known_recipes

from .conftest import Install

SOURCE = str(next(iter(pages.document(pages.ROOT / "docs" / "write_a_method.md").examples())).parsed)


@pytest.fixture
def package(install: Install) -> None:
    install("their_package", SOURCE, "[adapt.methods]\nshift = their_package:Shift\n")


def test_a_package_ships_recipes(package: None, install: Install, tmp_path: Path) -> None:
    install("their_recipes", "", "[adapt.recipes]\ntheirs = their_recipes\n")
    folder = tmp_path / "site/their_recipes/shift"
    folder.mkdir()
    (folder / "few_shot.yaml").write_text("method: {name: shift, start: 0.2}\ntrain: {epochs: 1}\n")
    recipe = read_recipe("shift", data="emoji")
    assert (recipe.method, recipe.train.epochs) == ({"name": "shift", "start": 0.2}, 1)
    assert "shift/few_shot" in CliRunner().invoke(main, ["recipes"]).output
    install("more_recipes", "", "[adapt.recipes]\nmore = more_recipes\n")
    shutil.copytree(folder, tmp_path / "site/more_recipes/shift")
    known_recipes.cache_clear()
    with pytest.raises(AdaptError, match=r"two packages have a recipe called 'shift/few_shot'"):
        read_recipe("shift", data="emoji")


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods._listing, "_registered", {})
    monkeypatch.setattr(methods, "_plugins", {})


def test_an_installed_method_trains_resumes_saves_and_loads(
    package: None, open_clip: adapt.Backbone, tiny_split: Split, tmp_path: Path
) -> None:
    assert "shift" in methods.names()
    recipe = {"method": {"name": "shift", "start": 0.1}, "data": {"source": "emoji"}, "train": {"epochs": 1}}
    assert build_recipe(recipe, "theirs").method_config == {"start": 0.1}
    model = adapt.wrap(open_clip, methods.find("shift")(start=0.01), tiny_split.class_names)
    settings = {"epochs": 2, "lr": 0.01, "augment": "none", "workers": 0, "progress": False, "out": tmp_path / "run"}
    result = adapt.fit(model, tiny_split.train, tiny_split.test, **settings)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert set(result.history[0]["terms"]) == {"cross_entropy", "size"}
    images = torch.randn(2, 3, 32, 32)
    loaded = adapt.load(tmp_path / "run", open_clip)
    assert type(loaded.method).__name__ == "Shift"
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(AdaptError, match=r"unknown key .*'form'|start"):
        build_recipe(recipe | {"method": {"name": "shift", "from": "mine.py"}}, "theirs")


def test_a_stopped_training_of_an_installed_method_goes_on(
    package: None, open_clip: adapt.Backbone, tiny_split: Split, tmp_path: Path
) -> None:
    settings = {"epochs": 3, "batch_size": 4, "lr": 0.01, "augment": "none", "workers": 0, "progress": False}

    def new() -> adapt.AdaptedModel:
        return adapt.wrap(open_clip, methods.find("shift")(), tiny_split.class_names)

    assert_goes_on_exactly(new, partial(adapt.fit, train_set=tiny_split.train, **settings), tmp_path / "run", step=5)


def recipe_on(backbone: Path, data: Path, **steps: Any) -> dict[str, Any]:
    return {
        "method": {"name": "shift"},
        "backbone": str(backbone),
        "data": {"source": str(data), "shots": 2},
        "train": {"batch_size": 3, "augment": "none", "workers": 0, **steps},
        "cache": False,
    }


@pytest.mark.full
def test_an_installed_method_runs_base_to_new(
    package: None, model_folder: Path, five_classes: Path, tmp_path: Path
) -> None:
    recipe = build_recipe(recipe_on(model_folder, five_classes, epochs=2, lr=0.1), "theirs")
    found = run_protocol(base_to_new(recipe, (1, 2)), tmp_path / "b2n")
    (summary,) = found["summary"]
    assert summary["runs"] == 2
    assert set(summary["mean"]) == {"base", "new", "harmonic"}
    loaded = adapt.load(tmp_path / "b2n" / "seed-1")
    assert type(loaded.method).__module__ == "their_package"
    assert float(loaded.method.shift.detach().norm()) > 0


def test_a_package_that_cannot_be_imported_is_named(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "their_package", None)
    with pytest.raises(AdaptError, match="'shift' of their_package:Shift cannot be imported"):
        methods.find("shift")


def test_a_file_of_ones_own_by_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    listed = CliRunner().invoke(main, ["--plugin", str(tmp_path / "mine.py"), "methods", "shift"])
    assert listed.exit_code == 0
    assert "Where the shift starts" in listed.output
    (tmp_path / "none.py").write_text("x = 1\n")
    for file, message in (("none.py", "defines no method"), ("missing.py", "expected a Python file with methods")):
        refused = CliRunner().invoke(main, ["--plugin", str(tmp_path / file), "methods"])
        assert refused.exit_code == 2
        assert message in refused.output


def test_what_is_registered_is_found_and_names_are_unique() -> None:
    class Mine(methods.ZeroShot):
        name = "mine"

    assert methods.register(Mine) is Mine
    assert methods.find("mine") is Mine
    assert methods.register(Mine) is Mine

    class Other(methods.ZeroShot):
        name = "mine"

    class Taken(methods.ZeroShot):
        name = "coop"

    for cls in (Other, Taken):
        with pytest.raises(AdaptError, match=f"already: give {cls.__name__} another name"):
            methods.register(cls)
    with pytest.raises(AdaptError, match="is not a method"):
        methods.register(dict)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("code", "message"),
    [("def broken(:", "cannot be run: SyntaxError"), ("raise SystemExit(0)", "cannot be run: SystemExit")],
)
def test_a_file_that_cannot_be_run_is_named(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    refused = CliRunner().invoke(main, ["--plugin", str(tmp_path / "bad.py"), "methods"])
    assert refused.exit_code == 2
    assert message in refused.output


def test_what_methods_are_made_from_is_no_method(tmp_path: Path) -> None:
    (tmp_path / "kin.py").write_text(
        "from adapt.methods import CoOp\nclass Base(CoOp):\n    pass\nclass A(Base):\n    name = 'kin'\n"
    )
    listed = CliRunner().invoke(main, ["--plugin", str(tmp_path / "kin.py"), "methods"])
    assert listed.exit_code == 0
    assert "kin              kin" in listed.output  # a title is not needed


@pytest.mark.parametrize("change", [{"name": ""}, {"name": "a/b"}, {"Config": dict}, {"serves": ("a clip",)}])
def test_a_class_that_is_no_whole_method_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(AdaptError, match=r"give the class a `name`|expected"):
        methods.register(type("Odd", (methods.ZeroShot,), {"name": "odd"} | change))


@pytest.mark.full
def test_workers_know_the_methods_of_files(tmp_path: Path, model_folder: Path, five_classes: Path) -> None:
    (tmp_path / "shift_of_mine.py").write_text(SOURCE)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe_on(model_folder, five_classes, epochs=1)))
    words = ["--plugin", tmp_path / "shift_of_mine.py", "base-to-new", tmp_path / "mine.yaml"]
    done = CliRunner().invoke(main, [*map(str, words), "--out", str(tmp_path / "b2n"), "--seeds", "1,2", "--jobs", "2"])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "b2n").glob("*/metrics.json"))) == 2


def test_a_file_may_import_those_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "starts_of_mine.py").write_text("START = 0.25\n")
    (tmp_path / "ends_of_mine.py").write_text("END = 0.5\n")
    (tmp_path / "mine.py").write_text(
        f"import starts_of_mine\n{SOURCE}\nShift.example = {{'start': starts_of_mine.START}}\n"
        "def later():\n    from ends_of_mine import END\n    return END\nShift.later = staticmethod(later)\n"
    )
    methods.run_plugins([tmp_path / "mine.py"])
    assert methods.find("shift").example == {"start": 0.25}
    assert methods.find("shift").later() == 0.5


def test_edits_without_the_towers_that_they_touch_are_refused() -> None:
    with pytest.raises(AdaptError, match=r"Lost defines edits but no touches.* touches = frozenset"):
        type("Lost", (methods.ZeroShot,), {"name": "lost", "edits": lambda self, tower, context: []})


class KeptConfig(methods.ZeroShot.Config):
    rows: int | None = None


class Kept(methods.ZeroShot):
    """Keeps the training images' features, of which `rows` says how many there are, where `declared`."""

    name = "kept"
    Config = KeptConfig
    takes_steps = False
    declared = True

    def build(self, backbone: Any, class_names: Sequence[str]) -> None:
        self.register_buffer("features", torch.zeros(self.config.rows or 0, backbone.embed_dim))

    def prepare(self, training: Training) -> None:
        self.features = training.features("train")
        if self.declared:
            self.config = self.config.model_copy(update={"rows": len(self.features)})


def trained(cls: type[Method], backbone: adapt.Backbone, split: Split) -> adapt.AdaptedModel:
    model = adapt.wrap(backbone, cls(), split.class_names)
    adapt.fit(model, split.train, progress=False)
    return model


def test_sizes_that_the_data_decides_are_settings(open_clip: adapt.Backbone, tiny_split: Split, tmp_path: Path) -> None:
    class Undeclared(Kept):
        declared = False

    class Later(Kept):
        def build(self, backbone: Any, class_names: Sequence[str]) -> None:
            pass

        def prepare(self, training: Training) -> None:
            self.register_buffer("features", training.features("train"))

    path, count = tmp_path / "kept.safetensors", len(tiny_split.train)
    misshapen = rf"'features' of this model has shape \({count}, 64\); kept .* expects \(0, 64\)\. Allocate"
    for cls, said in ((Undeclared, misshapen), (Later, "this model has the unknown features, and does not fit")):
        model = trained(cls, open_clip, tiny_split)
        with pytest.raises(AdaptError, match=f"kept could not be loaded again .*{said}"):
            model.save(path)
        assert not path.exists()
    model = trained(Kept, open_clip, tiny_split)
    drawn = torch.random.get_rng_state()
    model.save(path)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    methods.register(Kept)
    assert torch.equal(adapt.load(path, open_clip).method.features, model.method.features)
