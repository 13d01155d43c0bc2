"""A model of each method, and more: what to make it of, by name, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import test_language_models
import tiny_backbones
import tiny_fusion
import tiny_llms
import torch
from torch import Tensor

from adapt import methods

QUESTIONS = ["what is it ?", "how many dog ?", "which animal is there ?"]
LLM, ANSWERS = "llama_grouped", ("cat", "dog", "two")
METADATA = {"recipe": {"method": {"name": "coop"}}, "seed": 3, "metrics": {"adapted": {"accuracy": 0.5}}}
Made = tuple[Any, Any, tuple[str, ...]]  # backbone, method, class names


def _classifiers() -> dict[str, tuple[str, dict[str, Any], str]]:
    """Methods with their settings and kinds of backbones, by the names of the models."""
    every = {
        case.replace("/", "_").replace("+", "_"): (case.partition("/")[0], cases.config(case)) for case in cases.ALL
    }
    more: dict[str, tuple[str, dict[str, Any], str]] = {
        "coop_specific_hf": ("coop", {"n_ctx": 2, "class_specific": True, "class_position": "middle"}, "hf_clip"),
        "coop_resnet": ("coop", {"n_ctx": 2}, "open_clip_resnet"),
        "dora_hf": ("lora", {"dropout": 0.0, "options": {"use_dora": True}, "projections": ["q"]}, "hf_clip"),
        "loha": ("lora", {"tuner": "loha", "towers": ["text"], "options": {"r": 4, "alpha": 2}}, "open_clip"),
        "lora_mlp_timm": ("lora", {"dropout": 0.0, "projections": ["fc1", "fc2"], "blocks": [1, 2]}, "open_clip_timm"),
        "lora_siglip": ("lora", {"dropout": 0.0, "logit_scale": None}, "hf_siglip"),
        "templates_hf": ("zero_shot", {"template": ["a photo of a {}.", "a {}"]}, "hf_clip"),
    }
    return {name: (*case, "open_clip") for name, case in every.items()} | more


def makers() -> dict[str, Callable[[], Made]]:
    """By the names of the models, how their backbones and methods are made."""

    def classifier(method: str, config: dict[str, Any], kind: str) -> Made:
        return tiny_backbones.backbone(kind), methods.find(method)(**config), cases.NAMES

    def speaker(method: str, config: dict[str, Any]) -> Made:
        return tiny_llms.vision_llm(LLM), methods.find(method)(**config), ()

    def reader(kind: str, towers: tuple[str, ...], skipped: tuple[str, ...]) -> Made:
        return getattr(tiny_fusion, kind)(), methods.DAS(towers=towers, skipped=skipped), ANSWERS

    bridge = (("text_fusion", "vision_fusion"), ("text_fusion.1", "vision_fusion.0"))
    found: dict[str, Callable[[], Made]] = {
        "das_vilt": lambda: reader("vilt", ("fusion",), ("fusion.0", "fusion.2")),
        "das_bridgetower": lambda: reader("bridgetower", *bridge),
    }
    for name, case in _classifiers().items():
        found[name] = lambda case=case: classifier(*case)
    for name, config in test_language_models.CONFIGS.items():
        found[f"{name}_llm"] = lambda name=name, config=config: speaker(name, config)
    return found


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Of three fixed images, with a question each where the model answers questions."""
    side = getattr(model.backbone.preprocess, "size", tiny_backbones.IMAGE)
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    return model(images) if model.backbone.kind == "dual encoder" else model(images, QUESTIONS)
