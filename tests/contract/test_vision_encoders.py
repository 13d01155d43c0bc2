"""Every method that serves backbones of images alone, on a small one of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_vision
import torch
from checks import assert_untouched, gradient, loss_of, perturb, relative, scaled, snapshot
from PIL import Image
from selection import Decorator, by_turns

import adapt
from adapt import AdaptError, VisionModel, methods
from adapt.engine import vision
from adapt.methods.base.traits import ReadsHeads, has_trait

NAMES = ("goldfish", "red_panda", "sea cucumber")
_ON_VISION: dict[str, Any] = {"towers": ["vision"]}
CONFIGS: dict[str, dict[str, Any]] = {
    "bitfit": _ON_VISION,
    "compose": {"methods": [{"name": "ln_tuning", **_ON_VISION}, {"name": "lora", "dropout": 0.0, **_ON_VISION}]},
    "clip_svd": _ON_VISION,
    "das": {"skipped": ["vision.1"], "reduction": 2, **_ON_VISION},
    "finetune": {},
    "gpt4image": {"rank": 2},
    "ivlp": {"n_ctx_text": 0, "n_ctx_vision": 3, "depth_vision": 2},
    "ln_tuning": _ON_VISION,
    "lora": {"dropout": 0.0, **_ON_VISION},
    "patch_memory": {"normal": "goldfish", "rows": 6, "scores": 3},
}
METHODS = tuple(name for name in methods.names() if "vision encoder" in methods.find(name).serves)
WITH_CLASS_TOKEN = (
    "clip",
    "dinov2",
    "dinov2_swiglu",
    "dinov2_with_registers",
    "dinov3_vit",
    "timm_vit",
    "vit",
    "vit_msn",
)
_TRAINED = tuple(name for name in METHODS if name in CONFIGS and name not in ("gpt4image", "patch_memory"))


def fits(method: str, kind: str) -> bool:
    """Whether a method can be put on a kind of backbone; the test of refusals says why not."""
    if method == "patch_memory" and (kind == "radio" or kind.startswith("timm")):
        return kind != "radio"  # which has other tokens before its patches; timm gives the maps of all its networks
    if method in CONFIGS and kind in tiny_vision.WITHOUT_BLOCKS:
        return False
    if method == "dino_linear":
        return kind in WITH_CLASS_TOKEN
    if has_trait(methods.find(method), ReadsHeads):
        return kind == "heads"
    if kind == "aimv2":  # RMS norms
        return method not in ("bitfit", "ln_tuning", "compose")
    return (method, kind) not in (("ivlp", "dinov3_vit"), ("finetune", "radio"))  # rotary; features without a graph


def pairs(names: tuple[str, ...], kinds: tuple[str, ...] = tiny_vision.KINDS) -> Decorator:
    chosen = [(name, kind) for name in names for kind in kinds if fits(name, kind)]
    return by_turns(("method", "kind"), chosen, take=len(names))


def new(method: str) -> methods.Method:
    return methods.find(method)(**CONFIGS.get(method, methods.find(method).example))


def build(method: str, kind: str, **options: Any) -> VisionModel:
    """A wrapped model whose parameters are off their start; the same values at every call."""
    torch.manual_seed(0)
    model: VisionModel = perturb(adapt.wrap(tiny_vision.backbone(kind), new(method), NAMES, **options))
    return model


def images(model: VisionModel) -> Any:
    size = model.backbone.preprocess.size
    if model.backbone.as_decoded:
        drawn = torch.randint(0, 256, (3, size, size + 8, 3), generator=torch.Generator().manual_seed(1))
        return [[Image.fromarray(each.numpy())] for each in drawn.to(torch.uint8)]
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("kind", tiny_vision.FAST)
def test_the_fast_path_gives_the_librarys_features(kind: str) -> None:
    backbone = tiny_vision.backbone(kind)
    pixels = torch.randn(3, 3, tiny_vision.SIZE, tiny_vision.SIZE, generator=torch.Generator().manual_seed(1))
    assert vision.reason_against(backbone) is None
    with torch.no_grad():
        assert scaled(vision.encode(backbone, pixels, []), backbone.encode_image(pixels)) < 1e-5


@pairs(tuple(name for name in _TRAINED if name != "finetune"), tiny_vision.FAST)  # which has no fast path
def test_both_paths_give_the_same_logits_and_gradients(method: str, kind: str) -> None:
    fast, plain = (build(method, kind, fast=fast) for fast in (None, False))
    assert (fast.vision_path, plain.vision_path) == ("fast", "plain")
    assert scaled(fast(images(fast)), plain(images(plain))) < 1e-5
    one, other = (gradient(model, images(model), LABELS) for model in (fast, plain))
    assert relative(one, other) < 1e-5


@pairs(_TRAINED)
def test_gradients_reach_the_method_and_its_classifier_alone(method: str, kind: str) -> None:
    model = build(method, kind)
    model.backbone.model.requires_grad_(True)
    before = snapshot(model.backbone.model)
    loss_of(model, images(model), LABELS).backward()
    assert all(parameter.grad.norm() > 0 for parameter in model.method.parameters())
    assert {id(each) for each in model.method.trains()} == {id(each) for each in model.method.parameters()}
    assert "classifier.weight" in dict(model.method.named_parameters())
    assert [name for name, each in model.backbone.model.named_parameters() if each.grad is not None] == []
    assert_untouched(model.unwrap().model, before)


@pairs(METHODS)
def test_a_saved_adapter_loads_bit_for_bit(method: str, kind: str, tmp_path: Path) -> None:
    model = build(method, kind).eval()
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), model.backbone)
    assert type(loaded) is VisionModel
    assert torch.equal(loaded(images(model)), model(images(model)))


@pytest.mark.parametrize(
    ("method", "kind", "reason"),
    [
        ("coop", "dinov2", "coop adapts a dual encoder, and Dinov2Model is a vision encoder: use a method that reads"),
        ("zero_shot", "vit", "zero_shot adapts a dual encoder or a "),
        ("lora", "convnext", "the vision tower of ConvNextModel has no transformer blocks"),
        ("ivlp", "dinov3_vit", "learned tokens cannot be added to the vision tower, whose rotary attention"),
        ("finetune", "radio", "the features of RadioModel give its weights no gradient"),
        ("ln_tuning", "aimv2", "ln_tuning tunes layer norms, but this backbone has Aimv2RMSNorm"),
    ],
)
def test_what_a_backbone_lacks_is_named(method: str, kind: str, reason: str) -> None:
    with pytest.raises(AdaptError, match=reason):
        adapt.wrap(tiny_vision.backbone(kind), new(method), NAMES)


@pytest.mark.parametrize("method", ["linear_probe", "knn", "nearest_mean"])
def test_words_are_refused_where_none_are_read(method: str) -> None:
    with pytest.raises(
        AdaptError,
        match=r"such as linear_probe without method\.words, or a dual encoder",
    ):
        adapt.wrap(tiny_vision.backbone("dinov2"), methods.find(method)(words=1.0), NAMES)


def test_a_text_tower_is_refused_with_the_towers_that_are_there() -> None:
    with pytest.raises(AdaptError, match=r"the text tower of Dinov2Model .* editable towers: vision"):
        adapt.wrap(tiny_vision.backbone("dinov2"), methods.LoRA(), NAMES)


def test_other_classes_and_texts_are_refused() -> None:
    model = build("gda", "dinov2")
    assert model.with_classes(NAMES).class_names == NAMES
    with pytest.raises(AdaptError, match="knows classes by their training images"):
        model.with_classes(("apple pie", "toy"))
    with pytest.raises(AdaptError, match=r"Dinov2Model reads no texts"):
        model.encode_texts(["a photo"])
