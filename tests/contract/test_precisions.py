"""open_clip's own low precisions keep norms, embeddings and the scale in float32; every method runs in them."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import tiny_backbones
import torch
from cases import ALL, NAMES, OWN_WEIGHTS, TRAINED_BY_STEPS, fits, new
from checks import loss_of, perturb, relative
from open_clip.model import convert_weights_to_lp
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptedModel, Backbone

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
OPEN_CLIP = ("open_clip", "open_clip_resnet")  # for trunks of timm it lowers everything
FITTING = [(method, kind) for method in ALL for kind in OPEN_CLIP if fits(method, kind)]


def lowered(kind: str, precision: str) -> Backbone:
    """As `open_clip.create_model(..., precision=precision)` leaves a model."""
    model = copy.deepcopy(tiny_backbones.backbone(kind).model)
    convert_weights_to_lp(model, dtype=LOW[precision])
    return tiny_backbones.from_open_clip(model)


def _model(method: str, backbone: Backbone, fast: bool | None) -> AdaptedModel:
    torch.manual_seed(0)
    return perturb(adapt.wrap(backbone, new(method), NAMES, fast=fast))


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_the_precision_is_the_towers(kind: str, precision: str) -> None:
    backbone = lowered(kind, precision)
    assert backbone.model.logit_scale.dtype == torch.float32
    assert backbone.dtype == backbone.tower("text").dtype == LOW[precision]
    assert backbone.to("cpu").logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


@by_turns("precision", LOW)
@by_turns(("method", "kind"), FITTING, take=14)
def test_both_paths(method: str, kind: str, precision: str, images: Tensor, labels: Tensor) -> None:
    whole = _model(method, tiny_backbones.backbone(kind), None).eval()(images)
    for fast in (None, False):
        model = _model(method, lowered(kind, precision), fast)
        assert model.text_path in ("none", "fast" if fast is None and method not in OWN_WEIGHTS else "plain")
        assert relative(model.eval()(images).float(), whole) < 0.1
        loss = loss_of(model, images, labels)
        assert loss.isfinite()
        if method in TRAINED_BY_STEPS:
            loss.backward()
            assert all(parameter.grad.isfinite().all() for parameter in model.method.parameters())


def _vitamin() -> Any:
    """A tiny ViT with ViTamin's gated MLP, in open_clip's CustomTextCLIP."""
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vitamin import GeGluMlp

    model: Any = tiny_backbones._timm_clip()
    model.visual.trunk = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=4, num_classes=0, global_pool="avg",
        class_token=False, mlp_ratio=2.0, mlp_layer=GeGluMlp,
    )  # fmt: skip
    return model


@by_turns("method", [name for name in ALL if name != "dino_linear"], take=5)  # which has no class token
def test_every_method_on_vitamin(method: str, images: Tensor, labels: Tensor) -> None:
    backbone = tiny_backbones.from_open_clip(_vitamin())
    assert backbone.tower("vision").projections == ("q", "k", "v", "out", "gate", "up", "down")
    loss = loss_of(_model(method, backbone, None), images, labels)
    assert loss.isfinite()
    lora = adapt.methods.LoRA(towers=("vision",), projections=("gate", "down"))
    assert adapt.wrap(backbone, lora, NAMES)(images).isfinite().all()
    with pytest.raises(adapt.AdaptError, match="fc1"):
        adapt.wrap(backbone, adapt.methods.LoRA(towers=("vision",), projections=("fc1",)), NAMES)


def test_the_architectures_of_vitamin_are_mapped() -> None:
    with torch.device("meta"):
        model = open_clip.create_model("ViTamin-S", device="meta")
    tower = tiny_backbones.from_open_clip(model).tower("vision")
    assert (tower.width, tower.heads, len(tower.blocks), tower.form.pooling) == (384, 6, 14, "mean")


def test_an_mlp_of_unknown_form_leaves_the_tower_unmapped(images: Tensor) -> None:
    model: Any = tiny_backbones._timm_clip()
    for block in model.visual.trunk.blocks:
        block.mlp = torch.nn.Linear(64, 64)
    backbone = tiny_backbones.from_open_clip(model)
    assert adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=2), NAMES)(images).isfinite().all()
    with pytest.raises(adapt.AdaptError, match="the vision tower of CustomTextCLIP has no transformer blocks"):
        adapt.wrap(backbone, adapt.methods.MaPLe(depth=2), NAMES)
