"""Systems that learn features anew, or ask more of images than a class, against their published implementations."""

from __future__ import annotations

import math
from typing import Any

import published
import pytest
import tiny_clip
import torch
from published import LIBRARIES, TOLERANCE
from selection import by_turns
from torch import Tensor, nn
from trainings import Given, stepped

import adapt
from adapt.methods.base import Encoded, PairStep, contrast, total

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EVERY_LIBRARY = by_turns("library", LIBRARIES)


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


def vl2v(name: str, library: str) -> adapt.AdaptedModel:
    settings, expected = published.case(name)
    method = adapt.methods.VL2V(student="test_vit", pretrained=False, image_share=settings["lmd"])
    model = adapt.wrap(published.backbone(library), method, settings["names"])
    method.student, method.proj_lyr = student(), nn.Linear(96, 64)
    method._pixels = lambda images: images
    method.proj_lyr.load_state_dict(expected.under("param.proj_lyr."))
    return model


@EVERY_LIBRARY
@pytest.mark.parametrize(("name", "prefix"), [("vl2v_stage1", ""), ("vl2v_stage2", "featurizer.network.")])
def test_vl2v(name: str, prefix: str, library: str) -> None:
    """Losses are the published ones plus one; after.* are parameters after a step of Adam."""
    _, expected = published.case(name)
    model = vl2v(name, library)
    method, batch = model.method, (expected["images"], expected["labels"])
    step = model.step(*batch)
    expected.scaled("student_features", method.student(expected["images"]))
    expected.scaled("teacher_image_features", step.frozen_features)
    scaled_texts = step.class_features * model.backbone.logit_scale
    expected.scaled("class_weights", scaled_texts)
    expected.scaled("teacher_text_features_scaled", scaled_texts[expected["labels"]])
    expected.scaled("logits", step.logits)
    gradients: dict[str, Tensor] = {}

    def one(parameters: Any, count: int) -> list[Tensor]:
        trained = list(parameters)
        losses = [*stepped(model, [batch], torch.optim.Adam(trained, lr=5e-5), count)]
        known = {id(each): key for key, each in method.named_parameters()}
        gradients.update({known[id(each)]: each.grad for each in trained})
        return losses

    if name == "vl2v_stage1":
        training: Any = Given(model, batch[0][None], batch[1], steps=one, iterations=1)
        method.prepare(training)
        assert training.stages == ["aligning"]
        [loss] = training.losses
        assert all(parameter.grad is None for parameter in method.student.parameters())
    else:
        [loss] = one(method.trains(), 1)
    expected.scaled("loss", loss - 1)
    own = {f"{prefix}{key.removeprefix('student.')}": key for key in gradients}
    tensors = dict(method.named_parameters())
    for key in [key.removeprefix("grad.") for key in expected if key.startswith("grad.")]:
        expected.relative(f"grad.{key}", gradients[own[key]])
        # Adam's first step goes by the sign: where a gradient is zero but for rounding, as of keys' biases, anywhere
        told = expected[f"grad.{key}"].abs() > 1e-6
        assert told.float().mean() > 0.5, key
        value, stepped_to = tensors[own[key]], expected[f"after.{key}"]
        expected.scaled(f"after.{key}", torch.where(told, value, stepped_to))
        expected.scaled(f"after.{key}", value, within=2 * 5e-5 + TOLERANCE)  # a step forth, and not back, at the most


@EVERY_LIBRARY
def test_modx(library: str) -> None:
    """The method's loss on given features; the published scale is trained, ours is constant."""
    settings, expected = published.case("modx")
    settings.equal("batch", len(expected["image_features"]))
    images, texts = (expected[f"{each}_features"].clone().requires_grad_() for each in ("image", "text"))
    log_scale = expected["log_logit_scale"].clone().requires_grad_()
    method = adapt.methods.ModX(keep=settings["alpha"], logit_scale=float(log_scale.exp()))
    model = adapt.wrap(published.backbone(library), method, ())
    captions = [f"text {number}" for number in range(len(texts))]

    def step_of(features: list[Tensor]) -> PairStep:
        of_images, of_texts = map(published.unit, features)
        step = PairStep(model, [Encoded(of_images), captions], torch.arange(len(of_images)))
        step.text_features = of_texts
        return step

    step, old = step_of([images, texts]), step_of([expected[f"{each}_features_old"] for each in ("image", "text")])
    assert "kept" not in method.loss(step)
    training: Any = Given(model, images[None], torch.arange(len(images)))
    method.prepare(training)
    [before] = method._old
    step.under = lambda other: old if other is before else pytest.fail("another model than the old one")
    terms = method.loss(step)
    expected.scaled("loss_contrastive", terms["cross_entropy"])
    expected.scaled("loss_distill", terms["kept"] / settings["alpha"])
    loss = total(terms)
    expected.scaled("loss", loss)
    loss.backward()
    expected.relative("grad.image_features", images.grad)
    expected.relative("grad.text_features", texts.grad)
    cosines, right = published.unit(old.features) @ published.unit(old.text_features).T, torch.arange(len(images))
    expected.equal("kept_rows_image_text", cosines.argmax(-1) == right)
    expected.equal("kept_rows_text_image", cosines.T.argmax(-1) == right)
    contrast(log_scale.exp() * (step.features @ step.text_features.T).detach()).backward()
    expected.relative("grad.log_logit_scale", log_scale.grad)
    method.finish(training)
    assert "kept" not in method.loss(step)


def test_clippings() -> None:
    """Pooled pairs, their loss, and gradients of both features, before CLIP's normalisation."""
    settings, expected = published.case("clippings")
    for name, config in settings["cases"].items():
        method = adapt.methods.CLIPPINGS(**config)
        model = adapt.wrap(published.backbone("open_clip"), method, ())
        images, texts = (expected[f"{each}_features"].clone().requires_grad_() for each in ("image", "text"))
        inputs = [Encoded(published.unit(images)), [f"record {number}" for number in range(len(texts))]]
        step = PairStep(model, inputs, expected["labels"])
        step.text_features = published.unit(texts)
        expected.scaled(f"{name}.pooled", step.pair_features)
        [loss] = method.loss(step).values()
        expected.scaled(f"{name}.loss", loss)
        loss.backward()
        expected.relative(f"{name}.grad.image_features", images.grad)
        expected.relative(f"{name}.grad.text_features", texts.grad)


@EVERY_LIBRARY
def test_uniqa(library: str) -> None:
    """Scores, the loss, and gradients, of images before CLIP's normalisation."""
    _, expected = published.case("uniqa")
    backbone = published.backbone(library)
    method = adapt.methods.UniQA(between=(0.0, 1.0))
    model = adapt.wrap(backbone, method, ["bad", "poor", "fair", "good", "perfect"])
    assert method.score_level.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    method.load_state_dict(expected.under("param."))
    mean, std = (torch.tensor(each)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
    images, targets = (expected["images"] - mean) / std, expected["mos"][:, 0]
    step = model.step(images)
    step.values = targets
    expected.scaled("image_features", step.features, of=published.unit)
    expected.scaled("text_features", step.class_features, of=published.unit)
    expected.scaled("score", method.score(step.logits)[:, None])
    (loss,) = method.loss(step).values()
    expected.scaled("loss", loss)
    loss.backward()
    for key, parameter in method.named_parameters():
        expected.relative(f"grad.{key}", parameter.grad)


def test_uniqas_words() -> None:
    _, expected = published.case("uniqa")
    backbone = published.backbone("open_clip")
    model = adapt.wrap(backbone, adapt.methods.UniQA(between=(0.0, 1.0)), ["bad", "poor", "fair", "good", "perfect"])
    ids = [model.method.prompts(backbone.tokenizer, name)[0].ids for name in model.class_names]
    expected.equal("prompt_ids", [[*own, *[0] * (77 - len(own))] for own in ids])
