"""Decoupled attention: the identity that it starts from, and what each of its switches does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_backbones
import torch
from checks import flat, gradient, loss_of, perturb, relative, scaled
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.methods.base import Context
from adapt.methods.dpl import decoupled
from adapt.prompts import Prompt

NAMES = ("goldfish", "red_panda", "sea cucumber")
PLAIN = {"p_to_x": 1.0, "reads_names": False}
SIZES = {"n_ctx_text": 2, "n_ctx_vision": 3, "depth_text": 2, "depth_vision": 2}
PROMPTS = torch.tensor([False, True, True, False, False])


def scores(causal: bool = True) -> Tensor:
    """Of five tokens in two heads; the second and third are prompts."""
    plain = torch.randn(2, 5, 5)
    return plain.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), float("-inf")) if causal else plain


@by_turns("backbone", tiny_backbones.WITH_VISION_BLOCKS, indirect=True)
@pytest.mark.parametrize("fast", [None, False])
@pytest.mark.parametrize("mix", ["softmax", "learned"])
def test_all_strengths_at_one_are_ordinary_attention(
    backbone: Backbone, fast: bool | None, mix: Any, images: Tensor, labels: Tensor
) -> None:
    """The same prompts under the library's attention (IVLP) and under ours, whose odds start at the softmax's."""
    joint, apart = (
        adapt.wrap(backbone, method, NAMES, fast)
        for method in (methods.IVLP(**SIZES), methods.DPL(**SIZES, **PLAIN, mix=mix))
    )
    perturb(joint)
    apart.method.load_state_dict({**apart.method.state_dict(), **joint.method.state_dict()})
    assert bool(apart.method.edits(backbone.tower("text"), Context())[2:]) == (mix == "learned")
    assert scaled(apart(images), joint(images)) < 1e-5
    own = list(joint.method.state_dict())
    parameters = [dict(model.method.named_parameters()) for model in (apart, joint)]
    ours, theirs = (
        flat(torch.autograd.grad(loss_of(model, images, labels), [named[name] for name in own]))
        for model, named in zip((apart, joint), parameters)
    )
    assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize("causal", [True, False])
def test_the_softmaxs_own_share_as_a_number_is_the_softmax(causal: bool) -> None:
    """(1 - mix) Attn(q; X) + mix Attn(q; P) with mix = Z_P / (Z_P + Z_X) is masked joint attention."""
    each = scores(causal)
    joint = each.softmax(-1)
    share = joint[..., PROMPTS].sum(-1, keepdim=True)
    assert scaled(decoupled(each, PROMPTS, PROMPTS, share), joint) < 1e-6
    assert torch.equal(decoupled(each, PROMPTS, PROMPTS), joint)


def test_a_constant_share_goes_to_the_prompts_wherever_one_is_seen() -> None:
    weights = decoupled(scores(), PROMPTS, PROMPTS, share=0.3)
    to_prompts = weights[..., PROMPTS].sum(-1)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 5))
    assert torch.allclose(to_prompts, torch.tensor([0.0, 0.3, 0.3, 0.3, 0.3]).expand(2, 5))


@pytest.mark.parametrize("share", [None, 0.3])
def test_each_strength_scales_its_own_part(share: float | None) -> None:
    each = scores(causal=False)
    plain = decoupled(each, PROMPTS, PROMPTS, share)
    strong = decoupled(each, PROMPTS, PROMPTS, share, strengths=(2.0, 3.0, 5.0, 7.0))
    ratio = (strong / plain).mean(0)
    queries, keys = torch.meshgrid(PROMPTS, PROMPTS, indexing="ij")
    assert torch.allclose(ratio[~queries & ~keys], torch.tensor(2.0))
    assert torch.allclose(ratio[~queries & keys], torch.tensor(3.0))
    assert torch.allclose(ratio[queries & ~keys], torch.tensor(5.0))
    assert torch.allclose(ratio[queries & keys], torch.tensor(7.0))


@pytest.mark.parametrize("fast", [True, False])
def test_prompts_that_read_names_make_the_names_features_their_own(fast: bool, open_clip: Backbone) -> None:
    """The same prompts give other features when they read the name, and the same in any company of classes."""
    blind, reading = (
        adapt.wrap(open_clip, methods.DPL(**SIZES, reads_names=reads), NAMES, fast) for reads in (False, True)
    )
    reading.method.load_state_dict(perturb(blind).method.state_dict())
    assert relative(reading.class_features(), blind.class_features()) > 1e-3
    assert scaled(reading.with_classes(NAMES[1:2]).class_features(), reading.class_features()[1:2]) < 1e-5


def test_a_name_is_read_by_the_prompts_alone(open_clip: Backbone) -> None:
    """With instance tokens deaf to the prompts, what the prompts read does not matter: X to X is as it was trained."""
    deaf = {"x_to_p": 0.0, "mix": "constant", "share": 0.5}
    blind, reading = (
        adapt.wrap(open_clip, methods.DPL(**SIZES, **deaf, reads_names=reads), NAMES) for reads in (False, True)
    )
    assert scaled(reading.class_features(), blind.class_features()) < 1e-6


def test_names_that_are_read_leave_only_the_start_to_share(open_clip: Backbone, monkeypatch: Any) -> None:
    from adapt.engine import text

    prefixes: list[int] = []

    def recorded(prompts: list[Prompt], prefix: int, *rest: Any) -> Any:
        prefixes.append(prefix)
        return pack(prompts, prefix, *rest)

    pack = text.pack
    monkeypatch.setattr(text, "pack", recorded)
    for reads in (False, True):
        adapt.wrap(open_clip, methods.DPL(**SIZES, mix="learned", reads_names=reads), NAMES).class_features()
    assert prefixes[1::2] == [5, 1]  # the others are the check of two prompts, which no edit touches


def test_learned_odds_multiply_the_softmaxs_own(open_clip: Backbone) -> None:
    method = methods.DPL(**SIZES, mix="learned")
    adapt.wrap(open_clip, method, NAMES)
    shapes = {name: tuple(x.shape) for name, x in method.named_parameters() if name.startswith("mix")}
    assert shapes == {"mix_text": (3,), "mix_vision": (3,)}
    each = scores()
    own, tripled = (decoupled(each, PROMPTS, PROMPTS, log_odds=torch.tensor(odds).log()) for odds in (1.0, 3.0))
    odds = [weights[..., PROMPTS].sum(-1) / weights[..., ~PROMPTS].sum(-1) for weights in (own, tripled)]
    assert torch.equal(own, each.softmax(-1))
    assert torch.allclose(odds[1], 3 * odds[0], rtol=1e-4)


@pytest.mark.parametrize(("alone", "towers"), [({"n_ctx_vision": 0}, {"text"}), ({"n_ctx_text": 0}, {"vision"})])
def test_one_tower_alone(alone: dict[str, int], towers: set[str], open_clip: Backbone, images: Tensor) -> None:
    model = adapt.wrap(open_clip, methods.DPL(**SIZES | alone, mix="learned"), NAMES)
    assert model.method.touches == towers
    assert {name.split(".")[0].removeprefix("mix_") for name, _ in model.method.named_parameters()} == towers
    assert torch.isfinite(model(images)).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_paths_agree_on_unequal_parts(
    checkpointing: bool, open_clip: Backbone, images: Tensor, labels: Tensor
) -> None:
    parts = {"mix": "constant", "share": 0.3, "x_to_x": 0.9, "x_to_p": 0.7, "p_to_x": 2.0, "p_to_p": 0.5}
    fast, plain = (
        adapt.wrap(open_clip, methods.DPL(**SIZES, **parts, reads_names=True), NAMES, path, checkpointing=checkpointing)
        for path in (True, False)
    )
    plain.method.load_state_dict(perturb(fast).method.state_dict())
    assert scaled(fast.class_features(), plain.class_features()) < 1e-5
    assert relative(gradient(fast, images, labels), gradient(plain, images, labels)) < 1e-5


@pytest.mark.parametrize("reader", [{"p_to_x": 2.0}, {"p_to_p": 0.0}, {"reads_names": True}], ids=str)
def test_readers_that_forget_are_refused(reader: dict[str, Any], open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=r"have no effect in the text tower.*set depth_text to less than 3"):
        adapt.wrap(open_clip, methods.DPL(**SIZES | {"depth_text": 3}, **reader), NAMES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.2}, "share is required with mix: constant"),
        ({"mix": "constant"}, "share is required with mix: constant"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        methods.DPL(**settings)


def test_a_tower_that_masks_more_than_the_future_is_refused(open_clip: Backbone) -> None:
    tower = open_clip.tower("text")
    open_clip.towers["text"] = replace(tower, form=replace(tower.form, plain_mask=False))
    with pytest.raises(AdaptError, match="the text tower of CLIP masks padding or its own class token"):
        adapt.wrap(open_clip, methods.DPL(**SIZES), NAMES)
