"""LM4Visual against the published code: a LLaMA block between two maps, and behind the blocks of a small ViT."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import published
import tiny_llms
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adapt import methods

MAPS = ("llama_dim_mapper1.weight", "llama_dim_mapper2.weight")


def language_model(weights: dict[str, Tensor], heads: int, eps: float) -> nn.Module:
    """A LLaMA of one block in transformers' layout; its q and k keep their order, which only positions turn."""
    width = len(weights["norm.weight"])
    llm = tiny_llms.causal(
        "LlamaConfig",
        hidden_size=width,
        intermediate_size=len(weights["layers.0.feed_forward.w1.weight"]),
        num_hidden_layers=1,
        num_attention_heads=heads,
        head_dim=width // heads,
        rms_norm_eps=eps,
    )()
    block: Any = llm.get_submodule("model.layers.0")
    block.load_state_dict(
        {f"{ours}.weight": weights[f"layers.0.{theirs}.weight"] for theirs, ours in published.OF_LLAMA.items()}
    )
    return llm


def built(weights: dict[str, Tensor], heads: int, settings: Any, folder: Path) -> tuple[Any, nn.Module]:
    """The method in its published form, and the module that it puts behind a vision tower."""
    of_llama = {key.removeprefix("llama."): value for key, value in weights.items() if key.startswith("llama.")}
    assert (of_llama["norm.weight"] == 1).all()
    llm: Any = language_model(of_llama, heads, settings["norm_eps"])
    llm.save_pretrained(folder)
    method: Any = methods.LM4Visual(llm=str(folder), residual=False)
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
