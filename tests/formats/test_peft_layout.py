"""LoRA in peft's own layout: plain peft reads what adapt writes, and adapt reads it back."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_backbones
import torch
from checks import perturb, scaled
from safetensors.torch import load_file, save_file
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone
from adapt.formats import peft_layout

NAMES = ("goldfish", "red_panda", "sea cucumber")


def lora(backbone: Backbone, **config: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return perturb(adapt.wrap(backbone, adapt.methods.LoRA(**config), NAMES)).eval()


@pytest.mark.parametrize("backbone", ["open_clip", "hf_clip"], indirect=True)
@pytest.mark.parametrize("projections", ["qkv", ("out", "fc1", "fc2")], ids=str)
def test_plain_peft_gives_the_adapted_features(
    backbone: Backbone, projections: Any, images: Tensor, tmp_path: Path
) -> None:
    model = lora(backbone, projections=projections, blocks=(1, 3))
    peft_layout.export(model, tmp_path / "peft")
    copied = copy.deepcopy(backbone.model)
    plain = adapt.split_attention(copied) if hasattr(copied, "encode_image") else copied
    loaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "peft")).eval().base_model.model
    texts = backbone.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    if hasattr(loaded, "encode_image"):
        features = loaded.encode_image(images), loaded.encode_text(texts)
    else:
        features = (
            loaded.get_image_features(pixel_values=images).pooler_output,
            loaded.get_text_features(input_ids=texts).pooler_output,
        )
    expected = model.image_features(images), model.class_features()
    for value, adapted in zip(features, expected):
        assert scaled(torch.nn.functional.normalize(value, dim=-1), adapted) < 1e-5


@pytest.mark.parametrize("backbone", ["open_clip", "open_clip_timm", "hf_clip", "hf_siglip"], indirect=True)
def test_a_round_trip_keeps_every_tensor(backbone: Backbone, images: Tensor, tmp_path: Path) -> None:
    model = lora(backbone, rank=3, alpha=2.0, projections=("q", "fc1"), towers=("vision",), blocks=(0, 1))
    loaded = peft_layout.load(peft_layout.export(model, tmp_path / "peft"), backbone, NAMES)
    state, expected = loaded.method.state_dict(), model.method.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert scaled(loaded(images), model(images)) < 1e-6


def test_the_plain_scaling_of_peft_is_kept(hf_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    """A folder that plain peft wrote, whose scaling is alpha / rank."""
    plain = copy.deepcopy(hf_clip.model)
    trained = peft.get_peft_model(plain, peft.LoraConfig(r=4, lora_alpha=6, target_modules=r".*\.(q|v)_proj"))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    trained.save_pretrained(tmp_path / "peft")
    model = peft_layout.load(tmp_path / "peft", hf_clip, NAMES)
    expected = trained.eval().base_model.model.get_image_features(pixel_values=images).pooler_output
    assert scaled(model.image_features(images), torch.nn.functional.normalize(expected, dim=-1)) < 1e-5


def test_only_plain_lora_has_the_layout(open_clip: Backbone, tmp_path: Path) -> None:
    for method in (adapt.methods.CoOp(n_ctx=2), adapt.methods.LoRA(options={"use_dora": True})):
        with pytest.raises(AdaptError, match="only plain LoRA has peft's layout"):
            peft_layout.export(adapt.wrap(open_clip, method, NAMES), tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_folder_without_a_config(open_clip: Backbone, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"has no adapter_config.json"):
        peft_layout.load(tmp_path, open_clip, NAMES)


@pytest.mark.parametrize("change", [{"peft_type": "LOHA"}, {"use_dora": True}])
def test_another_peft_method_is_refused(change: dict[str, Any], open_clip: Backbone, tmp_path: Path) -> None:
    folder = peft_layout.export(lora(open_clip), tmp_path / "peft")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(AdaptError, match="only plain LoRA can be imported"):
        peft_layout.load(folder, open_clip, NAMES)


def test_modules_of_another_model_are_named(open_clip: Backbone, tmp_path: Path) -> None:
    folder = peft_layout.export(lora(tiny_backbones.backbone("hf_clip")), tmp_path / "peft")
    with pytest.raises(AdaptError, match=r"adapts 'text_model.encoder.*, which is no projection of CLIP"):
        peft_layout.load(folder, open_clip, NAMES)


def test_scale_and_template_come_back_too(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    """Of a folder that plain peft wrote, the scale is the backbone's own."""
    open_clip.model.logit_scale.data.fill_(math.log(42.0))
    model = adapt.wrap(open_clip, adapt.methods.LoRA(logit_scale=None, template="a drawing of a {}."), NAMES).eval()
    folder = peft_layout.export(perturb(model), tmp_path / "peft")
    back = peft_layout.load(folder, open_clip, NAMES)
    assert torch.allclose(back(images), model(images), atol=1e-4)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    assert peft_layout.load(folder, open_clip, NAMES).method.config.logit_scale is None
