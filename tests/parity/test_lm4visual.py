"""LM4Visual against the published code: a LLaMA block between two maps, and behind the blocks of a small ViT."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import published
import pytest
import tiny_llms
import torch
import torch.nn.functional as F
from checks import scaled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adapt import AdaptError, methods

MAPS = ("llama_dim_mapper1.weight", "llama_dim_mapper2.weight")


def language_model(weights: dict[str, Tensor], heads: int, eps: float, blocks: int = 1) -> Any:
    """A LLaMA in transformers' layout; its q and k keep their order, which only positions turn.

    Further blocks have the first one's weights, each time by 0.8.
    """
    width = len(weights["norm.weight"])
    llm = tiny_llms.causal(
        "LlamaConfig",
        hidden_size=width,
        intermediate_size=len(weights["layers.0.feed_forward.w1.weight"]),
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        head_dim=width // heads,
        rms_norm_eps=eps,
    )()
    for number in range(blocks):
        block: Any = llm.get_submodule(f"model.layers.{number}")
        own = {ours: 0.8**number * weights[f"layers.0.{theirs}.weight"] for theirs, ours in published.OF_LLAMA.items()}
        block.load_state_dict({f"{name}.weight": value for name, value in own.items()})
    return llm


def built(weights: dict[str, Tensor], heads: int, settings: Any, folder: Path) -> tuple[Any, nn.Module]:
    """The method in its published form, and the module that it puts behind a vision tower."""
    own = {key.removeprefix("llama."): value for key, value in weights.items() if key.startswith("llama.")}
    assert (own["norm.weight"] == 1).all()
    llm: Any = language_model(own, heads, settings["norm_eps"])
    llm.save_pretrained(folder)
    own_settings = {"blocks": settings.get("frozen_blocks", 1), "eps": settings["norm_eps"]}
    method: Any = methods.LM4Visual(llm=str(folder), residual=False, **own_settings)
    width = weights[MAPS[1]].shape[0]
    tower: Any = SimpleNamespace(width=width)
    method.build(SimpleNamespace(tower=lambda name: tower, device=torch.device("cpu")), ())
    method.load_state_dict({key: weights[key] for key in MAPS})
    return method, method.edits(tower, None)[0].module


def compare(method: Any, expected: published.Stored) -> None:
    for key in MAPS:
        expected.relative(f"grad.{key}", method.get_parameter(key).grad)


def test_lm4_block(tmp_path: Path) -> None:
    settings, expected = published.case("lm4_block")
    method, behind = built(expected.under("param."), settings["heads"], settings, tmp_path)
    x = expected["x"].clone().requires_grad_()
    y = behind(x)
    expected.scaled("y", y)
    (y * expected["upstream"]).sum().backward()
    expected.relative("grad.x", x.grad)
    compare(method, expected)


def of_llama(state: dict[str, Tensor], number: int, heads: int, eps: float, x: Tensor) -> Tensor:
    """The formula of a block without positions and mask, as in the paper."""
    w = {key.split(".", 3)[3]: value.double() for key, value in state.items() if f".layers.{number}." in key}
    read = F.rms_norm(x, x.shape[-1:], w["input_layernorm.weight"], eps)
    q, k, v = (
        (read @ w[f"self_attn.{letter}_proj.weight"].T).unflatten(-1, (heads, -1)).transpose(1, 2) for letter in "qkv"
    )
    mixed = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    x = x + mixed @ w["self_attn.o_proj.weight"].T
    read = F.rms_norm(x, x.shape[-1:], w["post_attention_layernorm.weight"], eps)
    inner = F.silu(read @ w["mlp.gate_proj.weight"].T) * (read @ w["mlp.up_proj.weight"].T)
    return x + inner @ w["mlp.down_proj.weight"].T


def test_several_blocks(tmp_path: Path) -> None:
    """The blocks follow each other between the maps: one by the formula is the published one, and so are two."""
    settings, expected = published.case("lm4_block")
    given, heads, eps = expected.under("param."), settings["heads"], settings["norm_eps"]
    llm = language_model({key.removeprefix("llama."): value for key, value in given.items()}, heads, eps, blocks=3)
    llm.save_pretrained(tmp_path)
    enter, leave = (given[key].double() for key in MAPS)
    for first, count in ((0, 1), (1, 2), (-3, 3)):
        method: Any = methods.LM4Visual(llm=str(tmp_path), residual=False, block=first, blocks=count)
        tower: Any = SimpleNamespace(width=len(leave))
        method.build(SimpleNamespace(tower=lambda name, tower=tower: tower, device=torch.device("cpu")), ())
        method.load_state_dict({key: given[key] for key in MAPS})
        tokens = expected["x"].double() @ enter.T
        for number in range(first % 3, first % 3 + count):
            tokens = of_llama(llm.state_dict(), number, heads, eps, tokens)
        right = F.rms_norm(tokens, tokens.shape[-1:], eps=1e-6) @ leave.T
        found = method.edits(tower, None)[0].module(expected["x"])
        assert scaled(found, right) < published.TOLERANCE
        if count == 1:
            expected.scaled("y", right)
    with pytest.raises(AdaptError, match=r"blocks is 3, but .* has 2 from block 1 on: give an earlier block"):
        methods.LM4Visual(llm=str(tmp_path), block=1, blocks=3).build(
            SimpleNamespace(tower=lambda name: tower, device=torch.device("cpu")), ()
        )


def test_lm4_vit(tmp_path: Path) -> None:
    """All of a ViT trains, but the block of LLaMA."""
    settings, expected = published.case("lm4_vit")
    weights = expected.under("param.")
    method, behind = built(weights, settings["llm_heads"], settings, tmp_path)
    vit = VisionTransformer(
        settings["image_size"],
        settings["patch"],
        num_classes=settings["classes"],
        global_pool=settings["global_pool"],
        embed_dim=settings["width"],
        depth=settings["depth"],
        num_heads=settings["heads"],
    )
    vit.load_state_dict({key: value for key, value in weights.items() if not key.startswith("llama")})
    vit.blocks.register_forward_hook(lambda module, inputs, tokens: behind(tokens))
    logits = vit(expected["images"])
    expected.scaled("logits", logits)
    loss = F.cross_entropy(logits, expected["labels"], label_smoothing=0.1)
    expected.scaled("loss", loss)
    loss.backward()
    for key, parameter in vit.named_parameters():
        expected.relative(f"grad.{key}", parameter.grad)
    compare(method, expected)
