"""Hooks of a user's fire whatever path a tower would take: each kind, on both towers, and as often as by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import scaled
from selection import by_turns
from torch import Tensor, nn

import adapt
from adapt import AdaptError, Backbone
from adapt.engine.blocks import hooked
from adapt.models import class_texts
from adapt.models.dual_encoder import AdaptedModel

NAMES = ("goldfish", "toy", "tree frog")
Register = Callable[[nn.Module, Callable[..., None]], Any]
KINDS: dict[str, Register] = {
    "forward": lambda module, hook: module.register_forward_hook(hook),
    "forward with keywords": lambda module, hook: module.register_forward_hook(hook, with_kwargs=True),
    "forward_pre": lambda module, hook: module.register_forward_pre_hook(hook),
    "forward_pre with keywords": lambda module, hook: module.register_forward_pre_hook(hook, with_kwargs=True),
    "backward": lambda module, hook: module.register_full_backward_hook(hook),
    "backward_pre": lambda module, hook: module.register_full_backward_pre_hook(hook),
}


def model_of(backbone: Backbone, fast: bool | None = None) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(backbone, adapt.methods.LoRA(towers=["text", "vision"]), NAMES, fast=fast)


def step(model: AdaptedModel, images: Tensor) -> Tensor:
    logits = model(images)
    logits.logsumexp(-1).sum().backward()
    return logits.detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tower", ["text", "vision"])
@by_turns("backbone", ["open_clip", "hf_clip"], indirect=True)
def test_a_hook_on_a_block_fires_as_often_as_on_the_plain_path(
    kind: str, tower: str, backbone: Backbone, images: Tensor
) -> None:
    model, plain = model_of(backbone), model_of(backbone, fast=False)
    expected = step(model, images)
    fired: list[int] = []
    handle = KINDS[kind](backbone.tower(tower).blocks[1].module, lambda *_: fired.append(1))
    assert scaled(step(model, images), expected) < 1e-5
    by_itself = len(fired)
    step(plain, images)
    assert len(fired) - by_itself == by_itself == 1
    handle.remove()
    step(model, images)
    assert len(fired) == 2


@pytest.mark.parametrize(("tower", "paths"), [("text", ("plain", True)), ("vision", ("fast", False))])
def test_hooks_on_one_tower_leave_the_other_fast(tower: str, paths: tuple[str, bool], open_clip: Backbone) -> None:
    model = model_of(open_clip)
    handle = KINDS["forward"](open_clip.tower(tower).blocks[0].attn, lambda *_: None)
    assert (model.text_path, model._fast_on_images) == paths
    handle.remove()
    assert (model.text_path, model._fast_on_images) == ("fast", True)


def test_a_hook_that_changes_texts_counts_from_the_next_call_on_and_no_longer(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, adapt.methods.ZeroShot(), NAMES).eval()
    with torch.no_grad():
        before = model.class_features()
        handle = open_clip.model.ln_final.register_forward_hook(lambda module, inputs, output: output.sin())
        during = [model.class_features() for _ in range(2)]
        handle.remove()
        assert torch.equal(model.class_features(), before)
    assert torch.equal(*during)
    assert scaled(during[0], before) > 1e-3


def test_fast_alone_is_refused_under_hooks(open_clip: Backbone) -> None:
    open_clip.tower("text").blocks[0].module.register_full_backward_hook(lambda *_: None)
    with pytest.raises(AdaptError, match=r"text tower of .* cannot use the fast path \(hooks, or a forward of its"):
        model_of(open_clip, fast=True)


def test_texts_that_were_wrapped_under_hooks_take_the_fast_path_once_they_are_gone(open_clip: Backbone) -> None:
    module = open_clip.towers["text"].blocks[0].module
    handle = module.register_forward_hook(lambda *_: None)
    model = adapt.wrap(open_clip, adapt.methods.CoOp(n_ctx=2), ["cat", "dog"])
    assert model.text_path == "plain"
    handle.remove()
    assert model.text_path == "fast"


def test_what_is_remembered_looks_for_hooks_once(open_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(open_clip).eval()
    looked = []
    monkeypatch.setattr(class_texts, "hooked", lambda *tower: looked.append(tower) or hooked(*tower))
    with torch.no_grad():
        for times in (1, 2):  # encoded, and known
            model.class_features()
            assert len(looked) == times
