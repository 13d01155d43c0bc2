"""Systems that learn features anew, or ask more of images than a class, against their published implementations."""

from __future__ import annotations

import math
from typing import Any

import published
import pytest
import tiny_clip
import torch
import torch.nn.functional as F
from checks import relative, scaled
from published import GRADIENT_TOLERANCE, LIBRARIES, TOLERANCE
from torch import Tensor, nn

import adapt
from adapt.methods.base import Encoded, PairStep, contrast
from adapt.methods.modx import row_divergence

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EVERY_LIBRARY = pytest.mark.parametrize("library", LIBRARIES)


def student() -> Any:
    """The small vision transformer that the published code trained; its values are drawn from the names."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=96, depth=2, num_heads=2, num_classes=0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = tiny_clip.draw(f"vl2v_student/{name}", tuple(tensor.shape))
            if name.endswith(("pos_embed", "cls_token")):
                tensor.copy_(0.05 * noise)
            elif tensor.ndim <= 1:
                tensor.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.02 * noise)
            else:
                tensor.copy_(noise / math.sqrt(math.prod(tensor.shape[1:])))
    return model


def vl2v(library: str, settings: dict[str, Any], expected: dict[str, Tensor]) -> adapt.AdaptedModel:
    method = adapt.methods.VL2V(student="test_vit", pretrained=False, image_share=settings["lmd"])
    model = adapt.wrap(published.backbone(library), method, settings["names"])
    method.student, method.proj_lyr = student(), nn.Linear(96, 64)
    method._pixels = lambda images: images
    method.proj_lyr.load_state_dict(
        {key.removeprefix("param.proj_lyr."): value for key, value in expected.items() if key.startswith("param.")}
    )
    return model


@EVERY_LIBRARY
@pytest.mark.parametrize(("name", "prefix"), [("vl2v_stage1", ""), ("vl2v_stage2", "featurizer.network.")])
def test_vl2v(name: str, prefix: str, library: str) -> None:
    """Losses are the published ones plus one; after.* are parameters after a step of Adam."""
    settings, expected = published.case(name)
    model = vl2v(library, settings, expected)
    method = model.method
    step = model.step(expected["images"], expected["labels"])
    assert scaled(method.student(expected["images"]), expected["student_features"]) < TOLERANCE
    assert scaled(step.frozen_features, expected["teacher_image_features"]) < TOLERANCE
    assert scaled(step.class_features * model.backbone.logit_scale, expected["class_weights"]) < TOLERANCE
    assert scaled(step.logits, expected["logits"]) < TOLERANCE
    loss = sum(method.loss(step).values())
    assert scaled(loss - 1, expected["loss"]) < TOLERANCE
    trained = dict(method.named_parameters() if name == "vl2v_stage1" else method.student.named_parameters())
    optimizer = torch.optim.Adam(list(trained.values()), lr=5e-5)
    loss.backward()
    gradients = {key.removeprefix(f"grad.{prefix}") for key in expected if key.startswith("grad.")}
    for key in gradients:
        assert relative(trained[key].grad, expected[f"grad.{prefix}{key}"]) < GRADIENT_TOLERANCE, key
    optimizer.step()
    for key in gradients:
        # Adam's first step goes by the sign: where a gradient is zero but for rounding, as of keys' biases, anywhere
        told = expected[f"grad.{prefix}{key}"].abs() > 1e-6
        off = (trained[key] - expected[f"after.{prefix}{key}"]).abs()
        assert told.float().mean() > 0.5, key
        assert off[told].max() < TOLERANCE, key
        assert off.max() < 2 * 5e-5 + TOLERANCE, key  # there a step forth, and not back, at the most


def test_modx() -> None:
    """The losses on given features; the published scale is trained, ours is constant."""
    settings, expected = published.case("modx")
    images, texts = (expected[f"{each}_features"].clone().requires_grad_() for each in ("image", "text"))
    log_scale = expected["log_logit_scale"].clone().requires_grad_()
    new = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    old = F.normalize(expected["image_features_old"], dim=-1) @ F.normalize(expected["text_features_old"], dim=-1).T
    right = torch.arange(len(new))
    assert (old.argmax(-1) == right).tolist() == expected["kept_rows_image_text"].tolist()
    assert (old.T.argmax(-1) == right).tolist() == expected["kept_rows_text_image"].tolist()
    plain = contrast(log_scale.exp() * new)
    kept = (row_divergence(new, old, right) + row_divergence(new.T, old.T, right)) / 2
    assert scaled(plain, expected["loss_contrastive"]) < TOLERANCE
    assert scaled(kept, expected["loss_distill"]) < TOLERANCE
    loss = plain + settings["alpha"] * kept
    assert scaled(loss, expected["loss"]) < TOLERANCE
    loss.backward()
    assert relative(images.grad, expected["grad.image_features"]) < GRADIENT_TOLERANCE
    assert relative(texts.grad, expected["grad.text_features"]) < GRADIENT_TOLERANCE
    assert relative(log_scale.grad, expected["grad.log_logit_scale"]) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", ["half", "third"])
def test_clippings(name: str) -> None:
    """Pooled pairs, their loss, and gradients of both features, before CLIP's normalisation."""
    settings, expected = published.case("clippings")
    method = adapt.methods.CLIPPINGS(**settings["cases"][name])
    model = adapt.wrap(published.backbone("open_clip"), method, ())
    images, texts = (expected[f"{each}_features"].clone().requires_grad_() for each in ("image", "text"))
    inputs = [Encoded(F.normalize(images, dim=-1)), [f"record {number}" for number in range(len(texts))]]
    step = PairStep(model, inputs, expected["labels"])
    step.text_features = F.normalize(texts, dim=-1)
    assert scaled(step.pair_features, expected[f"{name}.pooled"]) < TOLERANCE
    [loss] = method.loss(step).values()
    assert scaled(loss, expected[f"{name}.loss"]) < TOLERANCE
    loss.backward()
    assert relative(images.grad, expected[f"{name}.grad.image_features"]) < GRADIENT_TOLERANCE
    assert relative(texts.grad, expected[f"{name}.grad.text_features"]) < GRADIENT_TOLERANCE


@EVERY_LIBRARY
def test_uniqa(library: str) -> None:
    """Scores, the loss, and gradients, of images before CLIP's normalisation."""
    _, expected = published.case("uniqa")
    backbone = published.backbone(library)
    method = adapt.methods.UniQA(between=(0.0, 1.0))
    model = adapt.wrap(backbone, method, ["bad", "poor", "fair", "good", "perfect"])
    assert method.score_level.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    method.load_state_dict(
        {key.removeprefix("param."): value for key, value in expected.items() if key.startswith("param.")}
    )
    mean, std = (torch.tensor(each)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
    images, targets = (expected["images"] - mean) / std, expected["mos"][:, 0]
    labels = torch.stack([torch.zeros(len(targets), dtype=torch.double), targets.double()], dim=-1)
    step = model.step(images, labels)
    assert scaled(step.features, F.normalize(expected["image_features"], dim=-1)) < TOLERANCE
    assert scaled(step.class_features, F.normalize(expected["text_features"], dim=-1)) < TOLERANCE
    assert scaled(method.score(step.logits), expected["score"][:, 0]) < TOLERANCE
    (loss,) = method.loss(step).values()
    assert scaled(loss, expected["loss"]) < TOLERANCE
    loss.backward()
    for name, parameter in method.named_parameters():
        assert relative(parameter.grad, expected[f"grad.{name}"]) < GRADIENT_TOLERANCE, name
