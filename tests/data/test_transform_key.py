"""The key of a transform: the same only for the same code with the same parameters, in other processes too."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

import adapt
from adapt import Backbone
from adapt.backbones.preprocess import Preprocess
from adapt.data import Split
from adapt.data.decoding.transform_key import transform_key
from adapt.features import item_features

CELL = """
import torch
from torchvision.transforms.v2 import functional as F

class Scale:
    def __init__(self, by): self.by = by
    def __call__(self, pixels): return pixels * self.by

SIZE, scale = 32, Scale(2.0)

def resized(picture):
    return F.pil_to_tensor(F.resize(picture, [SIZE, SIZE])).float()

def transform(picture, shift=0.0):
    return scale(resized(picture)) / 255 + shift
"""


def cell(*change: str) -> Any:
    """What a notebook's cell defines, when it is run once more after a change."""
    names: dict[str, Any] = {"__name__": "__main__"}
    text = CELL.replace(*change) if change else CELL
    assert not change or text != CELL
    exec(text, names)
    return names["transform"]


CHANGES = [
    ("/ 255 + shift", "/ 127 + shift"),  # its body
    ("shift=0.0", "shift=0.5"),  # a default
    (".float()", ".double()"),  # the body of a function that it calls
    ("SIZE, scale = 32", "SIZE, scale = 24"),  # a global of that function
    ("Scale(2.0)", "Scale(3.0)"),  # the state of an object
    ("pixels * self.by", "pixels + self.by"),  # the code of that object's class
]


def test_a_cell_that_is_run_again_shares() -> None:
    assert transform_key(cell()) == transform_key(cell())


@pytest.mark.parametrize("change", CHANGES)
def test_a_cell_that_was_edited_does_not(change: tuple[str, str]) -> None:
    assert transform_key(cell()) != transform_key(cell(*change))


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.register_buffer("by", torch.tensor(by))

    def forward(self, picture: Any) -> Tensor:
        return v2.functional.pil_to_tensor(picture).float() / 255 + self.by


def _closure(by: float) -> Any:
    return lambda picture: by


def test_parameters_tell_transforms_apart() -> None:
    for make in (Shift, _closure, lambda by: functools.partial(_closure, by), lambda by: v2.Lambda(_closure(by))):
        assert transform_key(make(1.0)) == transform_key(make(1.0))
        assert transform_key(make(1.0)) != transform_key(make(2.0))
    assert transform_key(Shift(1.0).forward) != transform_key(Shift(2.0).forward)
    changed = Shift(1.0)
    before = transform_key(changed)
    changed.by.add_(1)
    assert transform_key(changed) == transform_key(Shift(2.0)) != before


def test_a_module_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers = types.ModuleType("helpers")
    monkeypatch.setitem(sys.modules, "helpers", helpers)

    def transform(picture: Any) -> Any:
        import helpers  # type: ignore[import-not-found]

        return helpers.prepare(picture)

    helpers.prepare = lambda picture: picture  # type: ignore[attr-defined]
    before = transform_key(transform)
    assert transform_key(transform) == before
    helpers.prepare = lambda picture: picture + 1  # type: ignore[attr-defined]
    assert transform_key(transform) != before


def test_hidden_state_is_shared_with_nobody() -> None:
    drawing = v2.Lambda(random.Random(1).random)
    assert transform_key(drawing) == transform_key(drawing)
    assert len({transform_key(v2.Lambda(random.Random(1).random)) for _ in range(20)}) == 20  # no id is used again


def test_a_transform_that_holds_itself() -> None:
    itself: dict[str, Any] = {}
    itself["inside"] = itself
    assert transform_key(itself) == transform_key(itself)


def test_processes_share_torchvisions_transforms_and_functions(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"{CELL}\nfrom adapt.data.decoding.transform_key import transform_key\n"
        "from adapt.backbones.preprocess import Preprocess\n"
        "read = Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))\n"
        "print(transform_key(read.evaluation()), transform_key(read.training()), transform_key(transform))\n"
    )
    paths = [str(Path(adapt.__file__).parents[1])]
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env={"PYTHONPATH": paths[0]}
    )
    read = Preprocess(32, (0.5,) * 3, (0.25,) * 3)
    assert run.stdout.split() == [transform_key(each) for each in (read.evaluation(), read.training(), cell())]
    squashed = Preprocess(32, (0.5,) * 3, (0.25,) * 3, resize="squash")
    assert transform_key(squashed.evaluation()) not in run.stdout


def test_features_follow_the_transform(
    open_clip: Backbone, tiny_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))

    def features(transform: Any, **options: Any) -> Tensor:
        backbone = Backbone.from_open_clip(open_clip.model, open_clip.tokenizer._tokenizer, transform)
        model = adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=2), tiny_split.class_names)
        return item_features(model, tiny_split.test, workers=0, **options)

    first = features(cell())
    assert torch.equal(features(cell()), first)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    edited = cell("/ 255 + shift", "/ 127 + shift")
    assert torch.equal(features(edited), features(edited, cache=False))
    assert not torch.allclose(features(edited), first, atol=1e-3)
