"""Equal tensors under another configuration are another model: for adapters and for cached features."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import tiny_llms
import torch
from torch import nn

import adapt
from adapt import AdaptError, Backbone
from adapt.backbones import fingerprint


def _activation(model: Any) -> None:
    for block in model.visual.transformer.resblocks:
        block.mlp.gelu = nn.GELU()


def _heads(model: Any) -> None:
    for block in model.transformer.resblocks:
        block.attn.num_heads, block.attn.head_dim = 4, 32


def _pooling(model: Any) -> None:
    model.visual.pool_type = "avg"


def _epsilon(model: Any) -> None:
    model.ln_final.eps = 1e-3


def _mask(model: Any) -> None:
    model.attn_mask = None


CHANGES = {
    _activation: r"visual\.transformer\.resblocks\.\*\.mlp\.gelu\.function is 'quick_gelu', not 'gelu'",
    _heads: r"transformer\.resblocks\.\*\.attn\.head_dim is 64, not 32 \(and 1 more\)",
    _pooling: r"visual\.pool_type is 'tok', not 'avg'",
    _epsilon: r"ln_final\.eps is 1e-05, not 0\.001",
    _mask: r"attn_mask is \[\[77, 77\], 0\.0, 'inf', 0\.0\], not None",
}


@pytest.mark.parametrize("change", CHANGES)
def test_equal_tensors_under_another_configuration(
    change: Callable[[Any], None], open_clip: Backbone, tmp_path: Path
) -> None:
    path = adapt.wrap(open_clip, adapt.methods.CoOp(n_ctx=2), ["cat", "dog"]).save(tmp_path / "a.safetensors")
    other = copy.deepcopy(open_clip.model)
    change(other)
    assert fingerprint.content(other) != open_clip.content()
    theirs = fingerprint.of_model(other)
    assert theirs.structure == open_clip.fingerprint.structure
    assert theirs.values == open_clip.fingerprint.values
    assert theirs.short() != open_clip.fingerprint.short()
    with pytest.raises(AdaptError, match=f"same weights, another configuration: {CHANGES[change]}"):
        adapt.load(path, tiny_backbones.from_open_clip(other))
    assert adapt.load(path, open_clip).class_names == ("cat", "dog")


def test_transformers_keeps_some_of_it_in_a_configuration_alone() -> None:
    one, other = tiny_llms.llm("gemma"), tiny_llms.llm("gemma")
    other.config.final_logit_softcapping = 5.0
    found = fingerprint.of_model(one).difference(fingerprint.of_model(other))
    assert found == "same weights, another configuration: config.final_logit_softcapping is 30.0, not 5.0"


@pytest.mark.parametrize("kind", [*tiny_backbones.KINDS, *tiny_llms.KINDS])
def test_one_model_in_any_precision_has_one_configuration(kind: str) -> None:
    make = tiny_llms.llm if kind in tiny_llms.KINDS else lambda kind: tiny_backbones.backbone(kind).model
    model = make(kind)
    before = fingerprint.of_model(model)
    assert json.loads(json.dumps(before.configuration, allow_nan=False)) == before.configuration
    assert before.matches(fingerprint.of_model(make(kind).bfloat16()))
    assert before.matches(fingerprint.of_model(make(kind).train()))
    assert before == fingerprint.of_model(model)


def test_a_function_is_told_by_what_it_computes() -> None:
    from open_clip.transformer import QuickGELU
    from transformers.activations import ACT2FN

    def found(module: nn.Module) -> Any:
        return fingerprint.configuration_of(nn.Sequential(module))["*.function"]

    assert found(QuickGELU()) == found(ACT2FN["quick_gelu"]) == "quick_gelu"
    assert found(nn.GELU("tanh")) == found(ACT2FN["gelu_new"]) == "gelu_tanh"
    assert found(nn.Mish()) == found(ACT2FN["mish"]) != found(nn.Hardswish())


def test_what_another_release_says_besides_is_no_difference(open_clip: Backbone) -> None:
    own = open_clip.fingerprint
    assert own.matches(replace(own, configuration={**own.configuration, "visual.new": 1}))
    assert not own.matches(replace(own, configuration={**own.configuration, "text_eos_id": 1}))


def test_values_that_nothing_changes_are_hashed_once(open_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = copy.deepcopy(open_clip)
    other = backbone.turning(True)
    content, hash_all = backbone.content(), fingerprint.content
    hashed: list[nn.Module] = []

    def seen(model: nn.Module) -> str:
        hashed.append(model)
        return hash_all(model)

    monkeypatch.setattr(fingerprint, "content", seen)
    with backbone.unchanging():
        assert backbone.content() == other.content() == content
        assert hashed == [backbone.model]
        alone = copy.deepcopy(backbone)
    with torch.no_grad():
        next(alone.model.parameters()).add_(1)
    assert alone.content() != content  # its weights are its own
    hashed[1:] = []
    with torch.no_grad():
        next(backbone.model.parameters()).add_(1)
    assert backbone.content() == other.content() != content
    assert len(hashed) == 3
