"""Backbones of images alone, and what few labels do with their features, against the published implementations."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import published
import pytest
import timm
import tiny_clip
import tiny_vision
import torch
import torch.nn.functional as F
import transformers
from selection import by_turns
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

import adapt
from adapt import Backbone, VisionModel, methods
from adapt.backbones.hf import with_offset
from adapt.engine import vision

EVERY_LIBRARY = by_turns("library", ["transformers", "timm"])
DINOV2 = ("dinov2_features", "dinov2_features_reg", "dinov2_features_swiglu")

# weights are drawn from their published names; here are the parts of a ViT, called as timm and DINOv2 call them, in
# other codes, where some are cut in two or three

_KEY = re.compile(r"(?:blocks\.(\d+)\.)?(.*?)((?:\.weight|\.bias)?)")
_AS_IT_IS = {"blocks": "blocks"}
_VPT = {
    "blocks": "transformer.encoder.layer",
    "norm1": "attention_norm",
    "norm2": "ffn_norm",
    "attn.qkv": "attn.query attn.key attn.value",
    "attn.proj": "attn.out",
    "mlp.fc1": "ffn.fc1",
    "mlp.fc2": "ffn.fc2",
    "norm": "transformer.encoder.encoder_norm",
    "cls_token": "transformer.embeddings.cls_token",
    "pos_embed": "transformer.embeddings.position_embeddings",
    "patch_embed.proj": "transformer.embeddings.patch_embeddings",
}
_TRANSFORMERS = {
    "attn.qkv": "attention.q_proj attention.k_proj attention.v_proj",
    "attn.proj": "attention.o_proj",
    "norm": "layernorm",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
}
_VIT = _TRANSFORMERS | {"blocks": "layers", "norm1": "layernorm_before", "norm2": "layernorm_after"}
_DINOV2 = _TRANSFORMERS | {
    "blocks": "encoder.layer",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12": "mlp.gate_proj mlp.up_proj",
    "mlp.w3": "mlp.down_proj",
    "register_tokens": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
}


def spelled(key: str, names: Mapping[str, str]) -> list[str]:
    """What another code calls a tensor, or the parts of it."""
    match = _KEY.fullmatch(key)
    assert match is not None
    block, part, kind = match.groups()
    before = f"{names['blocks']}.{block}." if block else ""
    return [f"{before}{name}{kind}" for name in names.get(part, part).split()]


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    new = {}
    for key, tensor in state.items():
        own = spelled(key, names)
        new |= dict(zip(own, tensor.chunk(len(own)), strict=True))
    return new


def drawn(settings: Any, shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of a case, from their names in the published code."""
    [prefix] = re.findall(r"by name, prefix (\w+)", settings["weights"])
    state = {}
    for key, (rows, *rest) in shapes.items():
        own = spelled(key, names)
        parts = [_value(f"{prefix}/{name}", (rows // len(own), *rest)) for name in own]
        state[key] = torch.cat(parts)
    return state


def _value(name: str, shape: tuple[int, ...]) -> Tensor:
    noise = tiny_clip.draw(name, shape)
    if name.endswith(("cls_token", "pos_embed", "position_embeddings", "register_tokens")):
        return 0.05 * noise
    if len(shape) > 1:
        return noise * math.prod(shape[1:]) ** -0.5
    return 1 + 0.1 * noise if name.endswith(("weight", "gamma")) else 0.02 * noise


def shapes_in(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def in_transformers(model: Any, state: Mapping[str, Tensor], names: Mapping[str, str]) -> Backbone:
    model.load_state_dict(renamed(state, names))
    return Backbone.from_transformers(model.eval(), tiny_vision.image_processor())


# DINOv2


def dinov2(library: str, settings: Any) -> Backbone:
    """The small DINOv2 of a case, converted for timm as timm itself converts released weights."""
    config = settings["config"]
    model = _dinov2_in_timm(config)
    state = drawn(settings, dict(_official(shapes_in(model), config)), _AS_IT_IS)
    if library == "transformers":
        return in_transformers(_dinov2_in_transformers(config), state, _DINOV2)
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return Backbone.from_timm(model)


def _dinov2_in_timm(config: Any) -> Any:
    kind = "giant_patch14" if config["ffn"] == "swiglu" else "small_patch14_reg4"
    sizes = {key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth")}
    return timm.create_model(
        f"vit_{kind}_dinov2", **sizes, num_heads=config["heads"], reg_tokens=config["registers"],
        num_classes=0, dynamic_img_size=True,
    )  # fmt: skip


def _dinov2_in_transformers(config: Any) -> Any:
    sizes = {
        "image_size": config["img_size"], "patch_size": config["patch_size"], "hidden_size": config["embed_dim"],
        "num_hidden_layers": config["depth"], "num_attention_heads": config["heads"],
        "use_swiglu_ffn": config["ffn"] == "swiglu",
    }  # fmt: skip
    if not config["registers"]:
        return transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    with_registers = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=config["registers"])
    return transformers.Dinov2WithRegistersModel(with_registers)


def _official(shapes: Mapping[str, tuple[int, ...]], config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The shapes of timm's tensors as DINOv2 has them, with a mask token, and a position for the class token."""
    names = {"reg_token": "register_tokens"}
    if config["ffn"] == "swiglu":
        names |= {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    places = 1 + (config["img_size"] // config["patch_size"]) ** 2
    yield "mask_token", (1, config["embed_dim"])
    for key, shape in shapes.items():
        [name] = spelled(key, names | _AS_IT_IS)
        yield name, (1, places, config["embed_dim"]) if key == "pos_embed" else shape


@EVERY_LIBRARY
@pytest.mark.parametrize("name", DINOV2)
def test_dinov2_features(name: str, library: str) -> None:
    """Of images in each size: class tokens on both paths, all tokens, and what DINOv2's linear heads are given."""
    settings, expected = published.case(name)
    antialias = settings["config"]["interpolate_antialias"]  # as both libraries resize positions by default
    compare_features(dinov2(library, settings), settings, expected, ["32x32"] + ["24x40"] * antialias)


def test_dinov2_features_with_the_offset() -> None:
    settings, expected = published.case("dinov2_features")
    backbone = with_offset(dinov2("transformers", settings), "offset:hf:dinov2")
    assert backbone.model.embeddings.position_offset == settings["config"]["interpolate_offset"]
    compare_features(backbone, settings, expected, ["24x40", "48x48"])


def compare_features(backbone: Backbone, settings: Any, expected: Any, keys: list[str]) -> None:
    model: Any = adapt.wrap(backbone, methods.NearestMean(), ["one", "another"])
    assert model.vision_path == ("plain" if settings["config"]["ffn"] == "swiglu" else "fast")
    for key in keys:
        images = expected[f"images.{key}"]
        expected.scaled(f"class.{key}", backbone.encode_image(images))
        if model.vision_path == "fast":
            expected.scaled(f"class.{key}", vision.encode(backbone, images, []))
        compare_tokens(model, images, expected, key)


def compare_tokens(model: VisionModel, images: Tensor, expected: Any, key: str) -> None:
    tower = model.backbone.tower("vision")
    assert tower.final_norm is not None
    names = [f"vision.{index}" for index in range(len(tower.blocks))][-4:]
    seen = model.frozen_blocks(images, names)
    blocks = [tower.final_norm(seen[name][1]) for name in names]
    classes = [tokens[:, 0] for tokens in blocks]
    for number, tokens in enumerate(classes):
        expected.scaled(f"class_block.{number}.{key}", tokens)
    registers = expected[f"registers.{key}"].shape[1] if f"registers.{key}" in expected else 0
    last = [blocks[-1]]
    if model.vision_path == "fast":
        last.append(tower.final_norm(model.vision_tokens(images)))
    for tokens in last:
        if registers:
            expected.scaled(f"registers.{key}", tokens[:, 1 : 1 + registers])
        expected.scaled(f"patches.{key}", tokens[:, 1 + registers :])
    for count in (1, 4):
        joined = classes[-count:]
        expected.scaled(f"head_input.{count}.class.{key}", torch.cat(joined, -1))
        mean = blocks[-1][:, 1 + registers :].mean(1)
        expected.scaled(f"head_input.{count}.mean.{key}", torch.cat([*joined, mean], -1))


# VPT


def vit(library: str, settings: Any) -> Backbone:
    """The small ViT of VPT's cases."""
    config = settings["config"]
    model = timm.create_model(
        "vit_base_patch16_224", img_size=config["img_size"], patch_size=config["patch_size"],
        embed_dim=config["width"], depth=config["layers"], num_heads=config["heads"],
        mlp_ratio=config["mlp"] / config["width"], num_classes=0,
    )  # fmt: skip
    assert model.norm.eps == config["norm_eps"]
    state = drawn(settings, shapes_in(model), _VPT)
    if library == "timm":
        model.load_state_dict(state)
        return Backbone.from_timm(model)
    of_transformers = transformers.ViTConfig(
        image_size=config["img_size"], patch_size=config["patch_size"], hidden_size=config["width"],
        num_hidden_layers=config["layers"], num_attention_heads=config["heads"], intermediate_size=config["mlp"],
        layer_norm_eps=config["norm_eps"],
    )  # fmt: skip
    return in_transformers(transformers.ViTModel(of_transformers, add_pooling_layer=False), state, _VIT)


def prompts_of(given: Mapping[str, Tensor]) -> list[Tensor]:
    """The tokens of each block."""
    return [given["transformer.prompt_embeddings"][0], *given.get("transformer.deep_prompt_embeddings", [])]


@EVERY_LIBRARY
@by_turns("fast", [None, False])
@pytest.mark.parametrize("name", ["vpt_deep", "vpt_shallow_project"])
def test_vpt(name: str, fast: bool | None, library: str) -> None:
    """Tokens stand behind the patches here and before them there, which is the same without rotary positions."""
    settings, expected = published.case(name)
    given = {key: tensor.clone().requires_grad_() for key, tensor in expected.under("param.").items()}
    prompts, project = prompts_of(given), settings["project"] if settings["project"] > 0 else None
    depth = settings["config"]["layers"] if settings["deep"] else 1
    method = methods.IVLP(n_ctx_text=0, n_ctx_vision=settings["tokens"], depth_vision=depth, project=project)
    model: Any = adapt.wrap(vit(library, settings), method, ["one", "another"], fast=fast)
    assert model.vision_path == ("fast" if fast is None else "plain")
    own = {f"vision.{block}": values.detach() for block, values in enumerate(prompts)}
    own |= {key.removeprefix("transformer."): each.detach() for key, each in given.items() if "prompt_proj" in key}
    method.load_state_dict(method.state_dict() | own)
    expected.scaled("plain_features", model.backbone_features(expected["images"], unit=False))
    features = model.image_features(expected["images"], unit=False)
    expected.scaled("features", features)
    logits = F.linear(features, given["head.weight"], given["head.bias"])
    expected.scaled("logits", logits)
    loss = F.cross_entropy(logits, expected["labels"])
    expected.scaled("loss", loss)
    loss.backward()
    torch.autograd.backward(prompts, [values.grad for values in method.vision])
    for key, tensor in given.items():
        of_ours = dict(method.named_parameters()).get(key.removeprefix("transformer."))
        expected.relative(f"grad.{key}", tensor.grad if of_ours is None else of_ours.grad)


# classifiers of given features


def fitted(method: Any, features: Tensor, labels: Tensor, classes: int) -> Any:
    """The method after its own training on given features, as they are."""
    backbone: Any = SimpleNamespace(embed_dim=features.shape[1], device=features.device, logit_scale=1.0)
    method.build(backbone, [f"class {number}" for number in range(classes)])
    method.prepare(SimpleNamespace(features=lambda part: features, labels=lambda part: labels))
    return method


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    return int((predictions == labels).sum()) / len(labels)


def test_simpleshot() -> None:
    """Raw features, those of unit length, and those of unit length after the mean of base classes is taken off."""
    settings, expected = published.case("simpleshot")
    expected.scaled("base_mean", expected["base_features"].mean(0))
    prepared = {
        "UN": lambda features: features,
        "L2N": published.unit,
        "CL2N": lambda features: published.unit(features - expected["base_mean"]),
    }
    right = {}
    for kind, prepare in prepared.items():
        method = methods.NearestMean(distance="euclidean")
        fitted(method, prepare(expected["support"]), expected["support_labels"], settings["way"])
        predictions = method.scores(prepare(expected["queries"])).argmax(-1)
        expected.equal(f"predictions.{kind}", predictions)
        right[kind] = accuracy(predictions, expected["labels"])
    settings.equal("accuracy", right)


def _tries(settings: Any, expected: Any) -> Iterator[tuple[str, Any, list[int]]]:
    """Each training set of a case: its name, which images are in it, and the numbers of neighbours tried on it."""
    yield "full.1", slice(None), settings["neighbours"]
    for images in settings["per_class"]:
        counts = sorted({images, *(count for count in settings["neighbours"] if count <= images)})
        for number in range(settings["tries"]):
            yield f"{images}.{number}", expected[f"picked.{images}.{number}"], counts


def test_dinov2_neighbours() -> None:
    """Weights add up to one here; there, over the largest number of neighbours that is tried on a training set."""
    settings, expected = published.case("dinov2_knn")
    classes, right = int(expected["train_labels"].max()) + 1, {}
    for name, picked, counts in _tries(settings, expected):
        features, labels = expected["train_features"][picked], expected["train_labels"][picked]
        for count in counts:
            method = methods.KNN(neighbours=count, temperature=settings["temperature"])
            votes = fitted(method, features, labels, classes).votes(expected["features"])
            key = f"probabilities.{name}.{count}"
            if count == max(counts):
                expected.scaled(key, votes / count)
            else:
                expected.scaled(key, votes / count, lambda stored: stored / stored.sum(-1, keepdim=True))
            right[key] = accuracy(method.scores(expected["features"]).argmax(-1), expected["labels"])
    settings.equal("accuracy", right)
