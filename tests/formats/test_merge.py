"""Merging changed weights: a copy of the backbone that computes what the adapted model does."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_natives
import torch
import torch.nn.functional as F
from checks import assert_untouched, perturb, scaled, snapshot
from safetensors import safe_open
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone
from adapt.formats.merge import merge, merged_model
from adapt.models.prediction import Answers

NAMES = ("goldfish", "red_panda", "sea cucumber")
LoRA = adapt.methods.LoRA


@pytest.mark.parametrize("backbone", ["open_clip", "open_clip_timm", "hf_clip", "hf_siglip"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_a_merged_model_computes_the_adapted_features(
    backbone: Backbone, options: dict[str, bool], images: Tensor
) -> None:
    before = snapshot(backbone.model)
    method = LoRA(projections=("q", "k", "v", "out", "fc1", "fc2"), options=options)
    model = perturb(adapt.wrap(backbone, method, NAMES)).eval()
    expected = model.image_features(images)
    merged = merged_model(model)
    assert_untouched(backbone.model, before)
    assert [name for name, _ in merged.named_modules()] == [name for name, _ in backbone.model.named_modules()]
    if hasattr(merged, "encode_image"):
        features = merged.encode_image(images)
    else:
        features = merged.get_image_features(pixel_values=images).pooler_output
    assert scaled(F.normalize(features, dim=-1), expected) < 1e-5
    assert scaled(model.image_features(images), expected) == 0


@pytest.mark.parametrize("method", [LoRA, adapt.methods.CLIPSVD])
def test_a_merged_checkpoint_loads_by_its_folder(
    hf_clip: Backbone, images: Tensor, tmp_path: Path, method: type[adapt.methods.Method]
) -> None:
    model = perturb(adapt.wrap(hf_clip, method(), NAMES)).eval()
    loaded = adapt.load_backbone(str(merge(model, tmp_path / "merged")))
    zero_shot = adapt.wrap(loaded, adapt.methods.ZeroShot(), NAMES)
    assert scaled(zero_shot.image_features(images), model.image_features(images)) < 1e-5
    assert scaled(zero_shot.class_features(), model.class_features()) < 1e-5


@pytest.mark.parametrize("backbone", ["open_clip", "hf_siglip"], indirect=True)
def test_a_merged_model_is_as_sure_as_the_adapted_one(backbone: Backbone, images: Tensor) -> None:
    """LoRA's scale of the logits is not the backbone's own."""
    model = perturb(adapt.wrap(backbone, LoRA(), NAMES)).eval()
    assert backbone.logit_scale < 20 < model.method.logit_scale == 100
    merged = copy.copy(backbone)
    merged.model = merged_model(model)
    assert merged.logit_scale == pytest.approx(100, rel=1e-5)
    assert merged.logit_bias == backbone.logit_bias
    cosines = model.image_features(images) @ model.class_features().T
    assert scaled(merged.logit_scale * cosines + merged.logit_bias, model(images)) < 1e-5
    assert backbone.logit_scale < 20


@pytest.mark.parametrize("backbone", ["open_clip", "hf_siglip"], indirect=True)
def test_a_temperature_goes_into_the_scale_and_a_blend_is_refused(backbone: Backbone, images: Tensor) -> None:
    if getattr(backbone.model, "logit_bias", None) is not None:
        backbone.model.logit_bias.data.fill_(-3.0)  # which a new SigLIP has at 0
    model = perturb(adapt.wrap(backbone, LoRA(), NAMES)).eval()
    model.answers = Answers(temperature=2.5)
    merged = copy.copy(backbone)
    merged.model = merged_model(model)
    cosines = model.image_features(images) @ model.class_features().T
    assert scaled(merged.logit_scale * cosines + merged.logit_bias, model(images)) < 1e-5
    with pytest.raises(AdaptError, match=r"25% of this adapter's predictions are zero-shot"):
        merged_model(model.blended(0.75))


def test_nothing_is_overwritten(open_clip: Backbone, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="exists already"):
        merge(adapt.wrap(open_clip, LoRA(), NAMES), tmp_path)


def test_a_backbone_of_unknown_format_leaves_no_folder(open_clip: Backbone, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="its file format is not known"):
        merge(adapt.wrap(open_clip, LoRA(), NAMES), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_only_changed_weights_merge(open_clip: Backbone) -> None:
    both = adapt.methods.Compose([adapt.methods.CoOp(n_ctx=2), LoRA()])
    for method in (adapt.methods.CoOp(n_ctx=2), both):
        with pytest.raises(AdaptError, match=f"{method.name} cannot be merged; expected a method that changes only"):
            merged_model(adapt.wrap(open_clip, method, NAMES))


@pytest.mark.parametrize("backbone", ["open_clip", "hf_siglip"], indirect=True)
def test_merged_singular_values_answer_as_the_adapted_model(backbone: Backbone, images: Tensor) -> None:
    """Of separate and of fused weights, at its own scale."""
    model = perturb(adapt.wrap(backbone, adapt.methods.CLIPSVD(), NAMES)).eval()
    merged = copy.copy(backbone)
    merged.model = merged_model(model)
    if hasattr(merged.model, "encode_image"):
        features = merged.model.encode_image(images)
    else:
        features = merged.model.get_image_features(pixel_values=images).pooler_output
    logits = merged.logit_scale * F.normalize(features, dim=-1) @ model.class_features().T + merged.logit_bias
    assert scaled(logits, model(images)) < 1e-5
    assert scaled(model(images), adapt.wrap(backbone, adapt.methods.ZeroShot(), NAMES).eval()(images)) > 0.01


def test_merging_does_not_touch_what_the_optimiser_holds(open_clip: Backbone) -> None:
    model = perturb(adapt.wrap(open_clip, LoRA(), NAMES))
    before = {name: tensor.clone() for name, tensor in model.method.state_dict().items()}
    merged_model(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.method.state_dict().items())


def test_weights_that_are_not_finite_are_refused(open_clip: Backbone, tmp_path: Path) -> None:
    model = adapt.wrap(open_clip, LoRA(), NAMES).eval()
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.fill_(3e38)
    with pytest.raises(AdaptError, match=r"merged weights of q in block 0 of the text tower are not finite, .*float32"):
        merge(model, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


_VISION = {"llava", "llava_next", "llava_onevision", "paligemma", "gemma3"}
_OF_QWEN = {"qwen2_vl": ("model.layers.", "visual.blocks."), "qwen2_5_vl": ("model.layers.", "visual.blocks.")}


@by_turns("kind", tiny_natives.KINDS, take=3)
def test_a_merged_folder_has_the_names_of_published_checkpoints(kind: str, tmp_path: Path) -> None:
    """By which vLLM, SGLang and llama.cpp find the tensors; transformers itself reads the folder back."""
    backbone = tiny_natives.backbone(kind)
    model = perturb(adapt.wrap(backbone, LoRA(towers=("decoder",)))).eval()
    folder = merge(model, tmp_path / "merged")
    with safe_open(folder / "model.safetensors", "pt") as opened:
        names = set(opened.keys())
    if kind in ("smolvlm", "idefics3"):
        decoder, eyes = "model.text_model.layers.", "model.vision_model.encoder.layers."
    elif kind == "qwen3_vl":
        decoder, eyes = "model.language_model.layers.", "model.visual.blocks."
    else:
        decoder = "language_model.model.layers."
        eyes = "vision_tower.vision_model.encoder.layers." if kind in _VISION else "vision_tower.encoder.layer."
    decoder, eyes = _OF_QWEN.get(kind, (decoder, eyes))
    assert f"{decoder}0.self_attn.q_proj.weight" in names
    assert any(name.startswith(eyes) for name in names)
    assert not any("vision_tower.encoder.layers." in name for name in names)
    merged, loaded = merged_model(model).state_dict(), type(backbone.model).from_pretrained(folder).state_dict()
    assert loaded.keys() == merged.keys()
    assert all(torch.equal(loaded[name], merged[name]) for name in merged)
