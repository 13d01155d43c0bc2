"""The key of a transform: the same only for the same known steps with the same settings, in other processes too."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import adapt
from adapt import Backbone
from adapt.backbones import preprocess as module
from adapt.backbones.preprocess import OfUpright, Preprocess, transform_key
from adapt.data import Split
from adapt.models import features
from adapt.models.features import item_features

SETTINGS: dict[str, Any] = {"size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
CHANGES: list[dict[str, Any]] = [
    {"size": 24},
    {"mean": (0.5, 0.5, 0.4)},
    {"std": (0.25, 0.25, 0.2)},
    {"interpolation": "bilinear"},
    {"resize": "squash"},
    {"edge": 36},
    {"floor_crop": True},
    {"on_tensors": True},
]


def read(**changes: Any) -> Preprocess:
    return Preprocess(**SETTINGS | changes)


def test_every_setting_tells_transforms_apart() -> None:
    keys = [transform_key(read(**change).evaluation()) for change in ({}, *CHANGES)]
    keys += [transform_key(read().training()), transform_key(OfUpright(read().evaluation()))]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert transform_key(read().evaluation()) == keys[0]


def test_views_follow_the_size_and_the_statistics() -> None:
    keys = [transform_key(read(**change).training()) for change in ({}, *CHANGES[:3])]
    assert None not in keys
    assert len(set(keys)) == 4


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_open_clips_own_transforms_are_known(mode: str) -> None:
    keys = {
        transform_key(image_transform_v2(PreprocessCfg(size=size, resize_mode=mode), is_train=False))
        for size in (32, 48, 48)
    }
    assert None not in keys
    assert len(keys) == 2


@pytest.mark.full
def test_another_process_has_the_same_key() -> None:
    script = (
        "from adapt.backbones.preprocess import Preprocess, transform_key\n"
        f"read = Preprocess(**{SETTINGS!r})\nprint(transform_key(read.evaluation()), transform_key(read.training()))\n"
    )
    environment = {"PYTHONPATH": str(Path(adapt.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == [transform_key(each) for each in (read().evaluation(), read().training())]


def test_another_version_of_a_library_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = transform_key(read().evaluation())
    monkeypatch.setattr(module, "_versions", lambda: ("0",))
    assert transform_key(read().evaluation()) != key


class Doubled(v2.Normalize):
    def forward(self, *inputs: Any) -> Any:
        return super().forward(*inputs) * 2


def _halved(pixels: Tensor) -> Tensor:
    return pixels / 2


def _hooked() -> nn.Module:
    step = v2.CenterCrop(32)
    step.register_forward_hook(lambda step, inputs, output: output)
    return step


@pytest.mark.parametrize(
    "step",
    [
        Doubled([0.5], [0.5]),
        v2.Lambda(_halved),
        v2.Lambda(lambda pixels: pixels),
        v2.Lambda(functools.partial(_halved)),
        v2.RandomApply(nn.ModuleList([Doubled([0.5], [0.5])])),
        v2.Compose([v2.Compose([_halved])]),
        _hooked(),
        v2.ToDtype({torch.Tensor: torch.float32}),
        _halved,
        nn.Identity(),
        object(),
    ],
    ids=lambda step: type(step).__name__,
)
def test_other_peoples_code_has_no_key(step: Any) -> None:
    assert transform_key(step) is None
    assert transform_key(v2.Compose([step])) is None


def test_what_other_peoples_code_reads_is_computed_each_time(
    open_clip: Backbone,
    tiny_split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    features._note_unknown.cache_clear()  # another test may have been told

    def read_by(by: float, **options: Any) -> Tensor:
        def transform(picture: Any) -> Tensor:
            return F.pil_to_tensor(F.resize(picture, [32, 32])).float() / by

        backbone = Backbone.from_open_clip(open_clip.model, open_clip.tokenizer._tokenizer, transform)
        model = adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=2), tiny_split.class_names)
        return item_features(model, tiny_split.test, workers=0, **options)

    first = read_by(255)
    assert torch.equal(first, read_by(255, cache=False))
    assert torch.equal(read_by(127), read_by(127, cache=False))
    assert not torch.allclose(read_by(127), first, atol=1e-3)
    assert not (tmp_path / "cache").exists()
    (record,) = caplog.records
    assert "not cached on disk but computed each time" in record.getMessage()
    read_by(255, views=2)  # by the papers' augmentation, which is known
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_random_views_are_encoded_once_for_all_seeds(
    open_clip: Backbone, tiny_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hang on the image and on the number of the view alone."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    for seed in (1, 2):
        model = adapt.wrap(open_clip, adapt.methods.TipAdapter(views=3), tiny_split.class_names)
        adapt.fit(model, tiny_split.train, seed=seed, progress=False)
    shards = [len([*folder.iterdir()]) for folder in (tmp_path / "cache").iterdir()]
    assert shards == [1, 1]  # of the images, and of their views
