"""Sizes, tokenizers, transforms and fingerprints come from the model; what cannot be mapped is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import tiny_backbones
import torch
from checks import scaled
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import adapt
from adapt import AdaptError, Backbone
from adapt.backbones import fingerprint, timm_images

TEXTS = ["a photo of a sea cucumber.", "X X X X red panda.", "a"]
SIZES = {
    "open_clip": {"text": (128, 2, 3), "vision": (192, 3, 3)},
    "open_clip_timm": {"text": (64, 2, 2), "vision": (64, 4, 2)},
    "open_clip_resnet": {"text": (64, 2, 2)},
    "hf_clip": {"text": (128, 2, 3), "vision": (192, 3, 3)},
    "hf_siglip": {"text": (64, 4, 2), "vision": (64, 4, 2)},
}


@pytest.mark.parametrize("kind", tiny_backbones.KINDS)
def test_sizes_are_read_from_the_model(kind: str) -> None:
    towers = tiny_backbones.backbone(kind).towers
    assert {name: (t.width, t.heads, len(t.blocks)) for name, t in towers.items()} == SIZES[kind]
    assert all(tower.projections == ("q", "k", "v", "out", "fc1", "fc2") for tower in towers.values())
    assert towers["text"].form.causal == (kind != "hf_siglip")


@pytest.mark.parametrize("kind", ["open_clip", "open_clip_timm", "open_clip_resnet"])
def test_ids_are_those_of_open_clips_tokenizer(kind: str) -> None:
    assert torch.equal(tiny_backbones.backbone(kind).tokenize(TEXTS), tiny_backbones.clip_tokenizer()(TEXTS))


@pytest.mark.parametrize("backbone", ["hf_clip", "hf_siglip"], indirect=True)
def test_ids_are_those_of_transformers_tokenizer(backbone: Backbone) -> None:
    tokenizer = tiny_backbones.hf_clip_tokenizer() if "CLIPModel" in backbone.describe() else None
    tokenizer = tokenizer or tiny_backbones.siglip_tokenizer()
    expected = tokenizer(TEXTS, padding="max_length", return_tensors="pt")["input_ids"]
    assert torch.equal(backbone.tokenize(TEXTS), expected)


@pytest.mark.parametrize("backbone", tiny_backbones.KINDS, indirect=True)
def test_a_text_that_is_too_long_is_refused_not_cut(backbone: Backbone) -> None:
    length = backbone.tokenizer.context_length
    with pytest.raises(AdaptError, match=rf"a prompt has \d+ tokens, but the text tower reads at most {length}"):
        backbone.tokenize(["x " * length])


@pytest.mark.parametrize("backbone", tiny_backbones.KINDS, indirect=True)
def test_images_are_transformed_to_the_models_size(backbone: Backbone) -> None:
    picture = Image.new("RGB", (50, 40), (255, 0, 0))
    for train in (True, False):
        pixels = backbone.transform(train)(picture)
        assert pixels.shape == (3, 32, 32)
        red = (1 - backbone.preprocess.mean[0]) / backbone.preprocess.std[0]
        assert pixels[0].mean().item() == pytest.approx(red, abs=1e-3)


def test_the_models_own_statistics_are_kept(hf_siglip: Backbone, hf_clip: Backbone) -> None:
    assert hf_siglip.preprocess.mean == (0.5, 0.5, 0.5)
    assert (hf_siglip.preprocess.resize, hf_clip.preprocess.resize) == ("squash", "shortest")


def test_a_given_transform_is_used_and_described() -> None:
    import open_clip
    from open_clip.transform import image_transform

    model = tiny_backbones.native_clip()
    own = image_transform(32, is_train=False, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    backbone = Backbone.from_open_clip(model, open_clip.get_tokenizer("ViT-B-16"), own)
    assert backbone.transform(train=False) is own
    assert backbone.preprocess.mean == (0.1, 0.2, 0.3)


def test_a_vision_tower_without_blocks_is_refused_by_name(open_clip_resnet: Backbone) -> None:
    with pytest.raises(AdaptError, match=r"the vision tower of CLIP has no transformer blocks.*editable towers: text"):
        open_clip_resnet.tower("vision")
    none = timm_images.build(timm.create_model("test_resnet", num_classes=0))
    with pytest.raises(AdaptError, match=r"has no transformer blocks .*, nor has any other tower: use a method"):
        none.tower("vision")


def test_a_folder_of_timm_is_told_its_name(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_vit", num_classes=0), tmp_path, safe_serialization=True)
    with pytest.raises(AdaptError, match=rf"is a model of timm: name it timm:{tmp_path}$"):
        adapt.load_backbone(str(tmp_path))
    assert adapt.load_backbone(f"timm:{tmp_path}", "cpu").kind == "vision encoder"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Backbone.from_open_clip(nn.Linear(1, 1), None), "got a Linear; expected open_clip's CLIP"),
        (
            lambda: Backbone.from_transformers(nn.Linear(1, 1), None),
            r"got a Linear; expected a model of type .*clip, .*vilt",
        ),
        (lambda: Backbone.from_open_clip(tiny_backbones.native_clip(), str), "the tokenizer is a type"),
    ],
)
def test_what_is_no_model_is_refused(make: Any, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        make()


def test_a_fingerprint_survives_rounding_and_tells_weights_apart(open_clip: Backbone, hf_clip: Backbone) -> None:
    original = open_clip.fingerprint
    assert original.matches(fingerprint.of_model(tiny_backbones.backbone("open_clip").model.bfloat16()))
    torch.manual_seed(9)
    assert not original.matches(fingerprint.of_model(tiny_backbones.native_clip()))
    assert original.structure != hf_clip.fingerprint.structure


@pytest.mark.parametrize(("change", "same"), [(1.004, True), (1.03, False), (0.97, False), (-1.0, False)])
def test_a_fingerprint_forgives_what_rounding_does_and_no_more(change: float, same: bool, open_clip: Backbone) -> None:
    changed = tiny_backbones.backbone("open_clip")
    with torch.no_grad():
        for parameter in changed.model.parameters():
            parameter.mul_(change)
    assert open_clip.fingerprint.matches(changed.fingerprint) is same
    assert changed.fingerprint.matches(open_clip.fingerprint) is same


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mini-clp", "unknown backbone 'mini-clp'.*did you mean 'mini-clip'"),
        ("open_clip:ViT-B-17", "no architecture 'ViT-B-17'; did you mean .*ViT-B-16"),
        ("open_clip:ViT-B-16/openia", "no pretrained weights 'openia' for ViT-B-16; did you mean 'openai'"),
        ("no/such/folder", "expected an existing folder or a name of a known form"),
        ("ViT-B-32", "did you mean open_clip:ViT-B-32/PRETRAINED with PRETRAINED one of openai, .* more"),
        ("ViT-B32/openai", r"did you mean hf:ViT-B32/openai or open_clip:ViT-B-32/openai\?"),
        ("vit_tiny_patch16_224", r"did you mean timm:vit_tiny_patch16_224\?"),
        ("someone/some-clip", r"is no folder either; did you mean hf:someone/some-clip\?"),
        (
            "timm:mine/model.safetensors",
            r"mine/model.safetensors is no folder .*timm:NAME/FILE.safetensors.*save_for_hf\(model, FOLDER",
        ),
    ],
)
def test_an_unknown_spec_names_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        adapt.load_backbone(spec)


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"expected open_clip_config.json or config.json in the folder"):
        adapt.load_backbone(str(tmp_path))


def test_a_folder_of_transformers(hf_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    hf_clip.export(tmp_path / "model", hf_clip.model)
    loaded = adapt.load_backbone(str(tmp_path / "model"))
    assert loaded.fingerprint.matches(hf_clip.fingerprint)
    assert torch.equal(loaded.tokenize(TEXTS), hf_clip.tokenize(TEXTS))
    assert scaled(loaded.encode_image(images), hf_clip.encode_image(images)) < 1e-6
    assert loaded.preprocess == hf_clip.preprocess


def _in_configuration(vision: dict[str, Any], whole: dict[str, Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"] |= vision
        (folder / "config.json").write_text(json.dumps(config | whole))

    return change


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_model.final_layer_norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_tensor, "lacks 1 of its tensors, such as text_model.final_layer_norm.weight"),
        (_in_configuration({"num_hidden_layers": 4}, {}), "lacks 16 of its tensors"),
        (_in_configuration({"num_attention_heads": 0}, {}), "ZeroDivisionError"),
        (_in_configuration({"num_attention_heads": "x"}, {}), "num_attention_heads|'int' and 'str'"),  # since 5.0
        (_in_configuration({"hidden_act": "os.system"}, {}), "KeyError 'os.system'"),
        (_in_configuration({}, {"architectures": 5}), "TypeError"),
        (_in_configuration({}, {"quantization_config": {"quant_method": "quanto"}}), "quantization_config is"),
    ],
)  # fmt: skip
def test_a_damaged_folder_of_transformers(
    damage: Callable[[Path], None], message: str, hf_clip: Backbone, tmp_path: Path
) -> None:
    """Nothing that is missing is drawn at random, and what the library makes of nonsense is an error of one line."""
    hf_clip.export(tmp_path / "clip", hf_clip.model)
    damage(tmp_path / "clip")
    with pytest.raises(AdaptError, match=message) as caught:
        adapt.load_backbone(str(tmp_path / "clip"))
    assert "\n" not in str(caught.value)
