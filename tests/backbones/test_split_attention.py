"""Separate projections over fused attention: the same arithmetic, the same tensors."""

from __future__ import annotations

import pytest
import torch
from checks import scaled
from torch import nn

import adapt
from adapt import Backbone
from adapt.backbones.split_attention import SplitAttention


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_split_attention_computes_what_the_fused_one_does(batch_first: bool, masked: bool, bias: bool) -> None:
    attn = nn.MultiheadAttention(24, 3, bias=bias, batch_first=batch_first)
    x = torch.randn(5, 5, 24)
    mask = torch.full((5, 5), float("-inf")).triu(1) if masked else None
    expected, _ = attn(x, x, x, need_weights=False, attn_mask=mask)
    assert scaled(SplitAttention(attn)(x, x, x, attn_mask=mask)[0], expected) < 1e-6


def test_split_attention_copies_no_weight() -> None:
    attn = nn.MultiheadAttention(24, 3)
    split = SplitAttention(attn)
    assert split.q_proj.weight.data_ptr() == attn.in_proj_weight.data_ptr()
    assert split.out_proj.weight.data_ptr() == attn.out_proj.weight.data_ptr()


def test_a_split_model_computes_the_same(open_clip: Backbone, images: torch.Tensor) -> None:
    ids = open_clip.tokenize(["a photo of a cat.", "a dog"])
    before = open_clip.encode_image(images), open_clip.encode_text(ids)
    adapt.split_attention(open_clip.model)
    assert not any(isinstance(module, nn.MultiheadAttention) for module in open_clip.model.modules())
    assert scaled(open_clip.encode_image(images), before[0]) < 1e-6
    assert scaled(open_clip.encode_text(ids), before[1]) < 1e-6
