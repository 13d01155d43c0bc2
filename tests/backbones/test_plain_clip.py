"""CLIP in plain torch is open_clip's model of the same folder to the bit, and takes none of its imports."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from checks import released
from PIL import Image

import adapt
from adapt import AdaptError
from adapt.backbones import plain_clip
from adapt.backbones.base import DualEncoder
from adapt.backbones.families import open_clip_models
from adapt.backbones.sources import bundled

TEXTS = [
    "a photo of a red panda.",
    "",
    "na\u00efve caf\u00e9 \u2014 \u732b &amp; \U0001f63a",
    "A  B\n c <|endoftext|> x",
]


def by_open_clip(folder: Path) -> DualEncoder:
    """The folder as open_clip loads it."""
    backbone = open_clip_models._of_folder(folder, None, True, open_clip_models._configuration(folder))
    return cast("DualEncoder", backbone)


@pytest.fixture(scope="module")
def both() -> tuple[DualEncoder, DualEncoder]:
    """The bundled CLIP, of ours and of open_clip."""
    return adapt.load_backbone("mini-clip"), by_open_clip(bundled())


def test_features_gradients_and_identity_are_open_clips(both: tuple[DualEncoder, DualEncoder]) -> None:
    ours, theirs = both
    assert type(ours.model).__module__ == plain_clip.__name__ != type(theirs.model).__module__
    assert ours.fingerprint == theirs.fingerprint
    assert ours.content() == theirs.content()
    images = torch.randn(3, 3, 64, 64)
    for each in both:
        each.model.zero_grad()
        features = each.encode_image(images), each.encode_text(each.tokenize(TEXTS))
        sum(x.square().sum() for x in features).backward()  # type: ignore[union-attr]
    assert torch.equal(ours.encode_image(images), theirs.encode_image(images))
    assert torch.equal(ours.encode_text(ours.tokenize(TEXTS)), theirs.encode_text(theirs.tokenize(TEXTS)))
    gradients = [{name: x.grad for name, x in each.model.named_parameters() if x.grad is not None} for each in both]
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == len(list(ours.model.parameters())) - 1  # the logit scale has none
    assert all(torch.equal(x, gradients[1][name]) for name, x in gradients[0].items())


def test_tokens_are_open_clips(both: tuple[DualEncoder, DualEncoder]) -> None:
    ours, theirs = (each.tokenizer for each in both)
    assert all(ours.row(text) == theirs.row(text) and ours.pieces(text) == theirs.pieces(text) for text in TEXTS)
    assert all(ours.token(number) == theirs.token(number) for number in range(10_000))
    assert ours.pad_id == theirs.pad_id
    assert ours.context_length == theirs.context_length


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_pixels_are_open_clips(both: tuple[DualEncoder, DualEncoder], mode: str) -> None:
    ours, theirs = (each.transform(train=False) for each in both)
    assert both[0].preprocess == both[1].preprocess
    for width, height in [(64, 64), (65, 64), (64, 201), (31, 17), (500, 333), (333, 500), (1, 90), (7, 1)]:
        drawn = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(drawn).convert(mode)
        assert torch.equal(ours(image), theirs(image)), (width, height)


def test_an_exported_copy_is_loaded_by_open_clip(both: tuple[DualEncoder, DualEncoder], tmp_path: Path) -> None:
    ours, theirs = both
    ours.export(tmp_path / "copy", ours.model)
    again = by_open_clip(tmp_path / "copy")
    assert again.content() == theirs.content()
    assert again.tokenize(TEXTS).equal(theirs.tokenize(TEXTS))
    assert plain_clip.load(tmp_path / "copy", None, True) is not None


def copied(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the bundled CLIP with a change to its file `name`."""
    copy = shutil.copytree(bundled(), folder / "copy", ignore=shutil.ignore_patterns("build", "*.png"))
    content = json.loads((copy / name).read_text())
    change(content)
    (copy / name).write_text(json.dumps(content))
    return Path(copy)


CHANGES: dict[str, list[Callable[[dict[str, Any]], object]]] = {
    plain_clip.CONFIG: [
        lambda config: config["model_cfg"]["vision_cfg"].update(ls_init_value=0.1),
        lambda config: config["model_cfg"]["vision_cfg"].update(image_size=[64, 64]),
        lambda config: config["model_cfg"]["vision_cfg"].update(layers=True),
        lambda config: config["model_cfg"]["text_cfg"].update(pool_type="last"),
        lambda config: config["model_cfg"]["text_cfg"].update(context_length=77),  # resized to by open_clip
        lambda config: config["model_cfg"]["text_cfg"].pop("hf_tokenizer_name"),
        lambda config: config["model_cfg"].update(custom_text=True),
        lambda config: config["preprocess_cfg"].update(resize_mode="squash"),
        lambda config: config["preprocess_cfg"].update(interpolation="nearest"),
        lambda config: config["preprocess_cfg"].update(std=[0, 1, 1]),
        lambda config: config["preprocess_cfg"].update(mean=["a", "b", "c"]),
        lambda config: config["preprocess_cfg"].update(mean=0.5),
        lambda config: config["preprocess_cfg"].update(size=64.0),
        lambda config: config.update(preprocess_cfg=[]),
        lambda config: config.pop("preprocess_cfg"),
    ],
    "tokenizer_config.json": [
        lambda config: config.update(bos_token={"content": "<|startoftext|>"}),
        lambda config: config.update(tokenizer_class="CLIPTokenizer"),
        lambda config: config.update(pad_token="another"),
    ],
    "tokenizer.json": [
        lambda rules: rules.update(truncation={"max_length": 4, "strategy": "LongestFirst", "stride": 0}),
        lambda rules: rules.update(padding={"strategy": {"Fixed": 20}, "pad_id": 0}),
    ],
}


@pytest.mark.parametrize(("name", "change"), [(name, each) for name, changes in CHANGES.items() for each in changes])
def test_whatever_has_another_option_is_left_to_open_clip(
    tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object]
) -> None:
    assert plain_clip.load(copied(tmp_path, name, change), None, True) is None


def test_other_weights_are_left_to_open_clip(tmp_path: Path) -> None:
    folder = copied(tmp_path, plain_clip.CONFIG, lambda config: None)
    assert plain_clip.load(folder, None, True) is not None
    for content in (b"", b"damaged"):
        (folder / plain_clip.WEIGHTS).write_bytes(content)
        assert plain_clip.load(folder, None, True) is None
    (folder / plain_clip.WEIGHTS).unlink()
    assert plain_clip.load(folder, None, True) is None
    with pytest.raises(AdaptError, match="cannot be loaded with open_clip"):
        adapt.load_backbone(str(folder))


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path, "tokenizer.json", lambda rules: rules["model"].pop("vocab"))
    with pytest.raises(AdaptError, match=r"tokenizer\.json is damaged: .*; fetch the folder again"):
        adapt.load_backbone(str(folder))


def test_quick_gelu_is_open_clips(tmp_path: Path) -> None:
    folder = copied(tmp_path, plain_clip.CONFIG, lambda config: config["model_cfg"].update(quick_gelu=True))
    ours, theirs = cast("DualEncoder", adapt.load_backbone(str(folder))), by_open_clip(folder)
    assert ours.tower("vision").blocks[0].quick_gelu
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.encode_image(images), theirs.encode_image(images))
    assert ours.fingerprint == theirs.fingerprint


@pytest.mark.parametrize(
    "method", [adapt.methods.ProLIP(), adapt.methods.LoRA(), adapt.methods.MaPLe(n_ctx=2, depth=2)]
)
def test_edits_of_the_model_itself_are_those_of_open_clips(
    method: adapt.methods.Method, both: tuple[DualEncoder, DualEncoder]
) -> None:
    torch.manual_seed(0)
    models = [adapt.wrap(each, copy.deepcopy(method), ("plant", "food", "animal"), fast=False).eval() for each in both]
    models[1].method.load_state_dict(models[0].method.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for name, parameter in models[0].method.named_parameters():
            parameter.add_(0.01)
            models[1].method.get_parameter(name).add_(0.01)
    assert torch.equal(models[0](images), models[1](images))


def test_predict_imports_no_other_library_of_models(tmp_path: Path) -> None:
    model = adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.CoOp(), ("plant", "food", "animal"))
    model.save(tmp_path / "adapter.safetensors")
    Image.new("RGB", (90, 70), (200, 30, 30)).save(tmp_path / "red.png")
    code = (
        "import sys; from adapt.cli import main\n"
        "try: main(['predict', sys.argv[1], sys.argv[2]])\n"
        "except SystemExit as end: print(end.code, *sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "adapter.safetensors"), str(tmp_path / "red.png")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    *_, last = printed.splitlines()
    assert "red.png" in printed
    status, *modules = last.split()
    assert status == "0"
    assert "torch" in modules
    assert {"open_clip", "timm", "torchvision", "transformers", "sklearn"}.isdisjoint(modules)
    if released(torch) >= (2, 13):  # earlier ones import their compiler themselves
        assert {"torch._dynamo", "sympy"}.isdisjoint(modules)
