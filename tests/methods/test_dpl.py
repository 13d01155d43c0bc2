"""Decoupled attention: the identity that it starts from, and what each of its switches does."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_backbones
import torch
from checks import gradient, perturb, relative, scaled
from torch import Tensor

import adapt
from adapt import Backbone, methods
from adapt.methods.dpl import decoupled
from adapt.prompts import Prompt

NAMES = ("goldfish", "red_panda", "sea cucumber")
SIZES = {"n_ctx_text": 2, "n_ctx_vision": 3, "depth_text": 2, "depth_vision": 2}
PROMPTS = torch.tensor([False, True, True, False, False])


def scores(causal: bool = True) -> Tensor:
    """Of five tokens in two heads; the second and third are prompts."""
    plain = torch.randn(2, 5, 5)
    return plain.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), float("-inf")) if causal else plain


@pytest.mark.parametrize("backbone", tiny_backbones.WITH_VISION_BLOCKS, indirect=True)
@pytest.mark.parametrize("fast", [None, False])
def test_all_strengths_at_one_are_ordinary_attention(
    backbone: Backbone, fast: bool | None, images: Tensor, labels: Tensor
) -> None:
    """The same prompts under joint attention (IVLP) and under decoupled attention: logits and gradients."""
    joint, apart = (perturb(adapt.wrap(backbone, cls(**SIZES), NAMES, fast)) for cls in (methods.IVLP, methods.DPL))
    apart.method.load_state_dict(joint.method.state_dict())
    assert scaled(apart(images), joint(images)) < 1e-5
    assert relative(gradient(apart, images, labels), gradient(joint, images, labels)) < 1e-5


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
    """With one class, reading the name changes its features; the same name gives the same features in any company."""
    blind, reading = (
        perturb(adapt.wrap(open_clip, methods.DPL(**SIZES, reads_names=reads), NAMES, fast)) for reads in (False, True)
    )
    assert relative(reading.class_features(), blind.class_features()) > 1e-3
    assert scaled(reading.with_classes(NAMES[1:2]).class_features(), reading.class_features()[1:2]) < 1e-5


def test_a_name_is_read_by_the_prompts_alone(open_clip: Backbone) -> None:
    """With instance tokens deaf to the prompts, what the prompts read does not matter: X to X is as it was trained."""
    deaf = {"x_to_p": 0.0, "mix": "constant", "share": 0.5}
    blind, reading = (
        perturb(adapt.wrap(open_clip, methods.DPL(**SIZES, **deaf, reads_names=reads), NAMES))  # type: ignore[arg-type]
        for reads in (False, True)
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
        adapt.wrap(open_clip, methods.DPL(**SIZES, reads_names=reads), NAMES).class_features()
    assert prefixes[1::2] == [5, 1]  # the others are the check of two prompts, which no edit touches


def test_learned_odds_start_at_the_softmaxs_own_and_multiply_them(open_clip: Backbone, images: Tensor) -> None:
    method = methods.DPL(**SIZES, mix="learned")
    model = adapt.wrap(open_clip, method, NAMES)
    shapes = {name: tuple(x.shape) for name, x in method.named_parameters() if name.startswith("mix")}
    assert shapes == {"mix_text": (3,), "mix_vision": (3,)}
    joint = adapt.wrap(open_clip, methods.IVLP(**SIZES), NAMES)
    joint.method.load_state_dict({name: x for name, x in method.state_dict().items() if not name.startswith("mix")})
    assert scaled(model(images), joint(images)) < 1e-5
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
