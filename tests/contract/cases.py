"""Every method on every tiny backbone. A new method is found by itself; its limits are declared here."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from checks import perturb
from selection import Decorator, by_turns
from torch import Tensor

import adapt
from adapt import AdaptedModel, Backbone, methods

_SKIPPING = {"skipped": ["text.1"], "towers": ["text", "vision"]}
# of more cases than a method's own example; each is called method/case
CONFIGS: dict[str, dict[str, Any]] = {
    "compose/das+lora": {"methods": [{"name": "das", **_SKIPPING}, {"name": "lora", "dropout": 0.0}]},
    "compose/das+coop": {"methods": [{"name": "das", **_SKIPPING}, {"name": "coop", "n_ctx": 4}]},
    "tip_adapter/trained": {"keys": 6, "train": True},
}
_CASES = tuple(CONFIGS)
# in place of a method's example, which is of other classes
_PHRASES = {"goldfish": ["fins", "a tail"], "red_panda": ["fur"], "sea cucumber": ["a long body", "skin", "no face"]}
_PHRASES |= {"apple pie": ["a crust"], "toy": ["wheels", "a doll"]}
_OF_THESE_CLASSES: dict[str, dict[str, Any]] = {"descriptions": {"descriptors": _PHRASES}}
# into the space of a backbone that is not there: none is loaded to build it
_SPACE = {"backbone": "old", "fingerprint": "0", "reading": "{}", "size": 7}
_OF_THESE_CLASSES["xbt"] = {"old": "old", "hidden": 5, "space": _SPACE}
_OF_THESE_CLASSES["patch_memory"] = {"normal": "goldfish", "rows": 6, "scores": 3}
_COMPOSED = tuple(case for case in _CASES if case.startswith("compose/"))
_IN_VISION_BLOCKS = (
    "bitfit",
    "das",
    "dpl",
    "finetune",
    "hicropl",
    "ivlp",
    "ln_tuning",
    "lora",
    "maple",
    "mma",
    "prompt_src",
    "svlc",
)
_IN_VISION_BLOCKS += (
    "clip_svd",
    "clippings",
    "ctp_tft",
    "gpt4image",
    "lm4visual",
    "locality",
    "modx",
    "vl2v",
    "vl2v_sd",
    "xbt",
)
_IN_VISION_BLOCKS += ("mmrl", "mmrlpp")
NEEDS_VISION_BLOCKS = {*_IN_VISION_BLOCKS, *_COMPOSED}
# by its cases; in tests/methods, since its answers need views or are of no classes, or its last stage trains nothing
# inside; in tests/backbones, since it adapts no CLIP, or no CLIP by itself
_ELSEWHERE = ("abmil", "cafo", "compose", "promptkd", "pseudo_word", "tpt", "two_stage", "vladva")
ALL = tuple(name for name in methods.names() if "dual encoder" in methods.find(name).serves and name not in _ELSEWHERE)
ALL += _CASES
_BY_NO_STEP = ("descriptions", "gda", "linear_probe", "lp_plus_plus", "prolip", "tda", "tip_adapter", "zero_shot")
_BY_NO_STEP += ("anovl", "kernel_ridge", "knn", "lda", "nearest_mean", "proker", "rehark", "ridge", "ss_text", "stata")
_BY_NO_STEP += ("patch_memory", "transclip", "xbt")
_ON_FEATURES = ("clap", "clip_adapter", "close", "mrl", "task_res", "tip_adapter/trained")  # which edit no tower
_WITHOUT_PROMPTS = ("clap", "close", "dino_linear", "knn", "lda", "linear_probe", "nearest_mean", "rehark", "ss_text")
_WITHOUT_PROMPTS += ("kernel_ridge", "patch_memory", "ridge", "task_res")
TRAINED_BY_STEPS = tuple(name for name in ALL if name not in (*_BY_NO_STEP, "uniqa"))  # which takes numbers to learn
_OUTSIDE_BLOCKS = (*_ON_FEATURES, "dino_linear", "lm4visual", "vl2v")
TRAINED_INSIDE = tuple(name for name in TRAINED_BY_STEPS if name not in _OUTSIDE_BLOCKS)
ALL_WITH_TEXT = tuple(name for name in ALL if name not in _WITHOUT_PROMPTS)
OWN_WEIGHTS = ("finetune",)  # which only the library's forward reads, and of which a file holds the differences
BY_TRAINED_CLASSES = ("mmrl", "mmrlpp")  # whose answer is another one where a class is asked that was not trained
KINDS = tuple(tiny_backbones.KINDS)
CLIPS = ("open_clip", "hf_clip")
FAST_KINDS = tiny_backbones.WITH_FAST_PATH
NAMES = ("goldfish", "red_panda", "sea cucumber")


def fits(method: str, kind: str) -> bool:
    if method == "dino_linear":
        return kind in CLIPS  # which pool a class token
    if method == "patch_memory":
        return kind in tiny_backbones.WITH_VISION_BLOCKS
    if method in ("prolip", "mmrl", "mmrlpp"):  # the text towers of these are also causal, as MMRL's must be
        return kind in tiny_backbones.WITH_VISION_PROJECTION
    return kind in tiny_backbones.WITH_VISION_BLOCKS or method not in NEEDS_VISION_BLOCKS


def pairs(names: tuple[str, ...] | list[str], kinds: tuple[str, ...] = KINDS, take: int = 0) -> Decorator:
    """Parametrises a test by `method` and `backbone`, over all that fit each other; `make test` takes some of them.

    By default it takes a third as many pairs as there are methods: each method meets many of these tests.
    """
    chosen = []
    for place, name in enumerate(names):
        own = [kind for kind in kinds if fits(name, kind)]
        clips = [kind for kind in own if kind in CLIPS]
        usual = clips[place % len(clips)] if clips else ""  # `make test-ci` has each method on one of two CLIPs
        chosen += [pytest.param(name, kind, marks=() if kind == usual else pytest.mark.at_length) for kind in own]
    return by_turns(("method", "backbone"), chosen, take=take or len(names) // 3, indirect=["backbone"])


def config(method: str) -> dict[str, Any]:
    """Small settings of a method, or of one of its cases."""
    chosen = CONFIGS | _OF_THESE_CLASSES
    return chosen[method] if method in chosen else methods.find(method).example


def new(method: str, **changes: Any) -> methods.Method:
    return methods.find(method.partition("/")[0])(**config(method) | changes)


def build(method: str, backbone: Backbone, **options: Any) -> AdaptedModel:
    """A wrapped model whose parameters are off their start; the same values at every call."""
    torch.manual_seed(0)
    return perturb(adapt.wrap(backbone, new(method), NAMES, **options))


def class_features(model: AdaptedModel) -> Tensor:
    """The classes' features `(n, e)`, or `(2, n, e)` where they depend on the image."""
    if not model.method.per_image:
        return model.class_features()
    noise = torch.Generator().manual_seed(4)
    features = F.normalize(torch.randn(2, model.backbone.embed_dim, generator=noise), dim=-1)
    if "tokens" not in model.method.reads:
        return model.class_features(features)
    return model.class_features(features, torch.randn(2, 5, model.backbone.tower("vision").width, generator=noise))
