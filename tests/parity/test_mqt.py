"""Visual tokens of MQT against the published resampler."""

from __future__ import annotations

from typing import Any

import published
import pytest
import tiny_llms
import torch

import adapt
from adapt import methods
from adapt.backbones.vision_llm import VisionLLM
from adapt.methods.mqt import positions, resized


def built(settings: Any) -> Any:
    """The method on a model of the case's sizes, with the weights of the case."""
    side, width = settings["patch_grid"][0], settings["visual_dim"]
    patch = (width // 3) ** 0.5
    llm = tiny_llms.causal("LlamaConfig", hidden_size=settings["llm_dim"], num_hidden_layers=1)().eval()
    eyes = tiny_llms.Unfold(image=int(side * patch), patch=int(patch)).vision()
    method: Any = methods.MQT(tokens=settings["max_tokens"], heads=settings["heads"])
    adapt.wrap(VisionLLM(eyes, llm, tiny_llms.tokenizer(), patch_block=-1), method)
    return method


@pytest.mark.parametrize("name", ["mqt", "mqt_all"])
def test_mqt(name: str) -> None:
    """Positions, tokens, and all gradients of the tokens' sum under given weights."""
    settings, expected = published.case(name)
    method = built(settings)
    given = expected.under("param.")
    torch.testing.assert_close(
        positions(settings["query_grid"], settings["visual_dim"]), given["pos_embed"], rtol=0, atol=1e-3
    )
    expected.scaled("patch_pos", resized(given["pos_embed"], settings["patch_grid"][0]))
    method.pos_embed, method.patch_pos = given["pos_embed"], expected["patch_pos"]
    method.load_state_dict({key: value for key, value in given.items() if key != "pos_embed"})
    features = expected["features"].clone().requires_grad_()
    tokens = method.tokens(features, settings["num_visual_tokens"])
    expected.scaled("tokens", tokens)
    loss = (tokens * expected["upstream"]).sum()
    expected.scaled("loss", loss)
    loss.backward()
    expected.relative("grad.features", features.grad)
    for key in given.keys() - {"pos_embed", "ln_k.bias"}:
        expected.relative(f"grad.{key}", method.get_parameter(key).grad)
    # a shift of all keys changes no attention: this gradient is rounding alone, in both
    for rounding in (expected["grad.ln_k.bias"], method.ln_k.bias.grad):
        assert rounding.abs().max() < 1e-4 * method.ln_k.weight.grad.abs().max()
