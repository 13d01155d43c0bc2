"""Visual tokens by their formula, in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_llms
import torch
from checks import scaled

import adapt
from adapt import methods
from adapt.backbones.vision_llm import VisionLLM
from adapt.methods.base import Context


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_patch_becomes_a_token(kind: Any) -> None:
    llm = tiny_llms.causal("LlamaConfig", hidden_size=32, num_hidden_layers=1)().eval()
    seen = VisionLLM(tiny_llms.Unfold(image=16, patch=4).vision(), llm, tiny_llms.tokenizer(), patch_block=-1)
    method: Any = methods.Projector(kind=kind)
    adapt.wrap(seen, method)
    patches = torch.randn(2, 16, 48)
    [edit] = method.edits(seen.tower("decoder"), Context(tokens={"vision": lambda: patches}))
    first, second = method.linear_1, method.linear_2
    expected = patches.double() @ first.weight.double().T + first.bias
    if kind == "mlp":
        bent = expected / 2 * (1 + torch.erf(expected / 2**0.5))
        expected = bent @ second.weight.double().T + second.bias
    else:
        assert second is None
    assert edit.block is None
    assert scaled(edit.values[:, 0], expected) < 1e-6
