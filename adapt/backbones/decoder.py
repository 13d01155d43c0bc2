"""Maps the decoder blocks of transformers' causal language models to a tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adapt.backbones.tower import Block, Form, Projection, Site, Tower, fused_rows
from adapt.errors import AdaptError


def decoder_tower(llm: Any) -> Tower:
    """The decoder of a causal language model: Llama, Qwen, Mistral, Gemma, Phi, GPT-NeoX and models built like them.

    Raises AdaptError where its blocks are of another form.
    """
    stack, config = llm.base_model, llm.config.get_text_config()
    layers = getattr(stack, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise AdaptError(
            f"{type(llm).__name__} keeps its blocks in another way than Llama, Qwen, Mistral, Gemma, Phi and GPT-NeoX: "
            "take one of those"
        )
    blocks = tuple(_block(layer, config) for layer in layers)
    form = Form(causal=True, pooling="none", kinds=tuple(getattr(config, "layer_types", None) or ()))
    return Tower("decoder", config.hidden_size, config.num_attention_heads, form, blocks)


def _block(layer: Any, config: Any) -> Block:
    attn = _first(layer, "self_attn", "attention")
    mlp, norm1 = layer.mlp, layer.input_layernorm
    norm2 = _first(layer, "pre_feedforward_layernorm", "post_attention_layernorm", "input_layernorm")
    around = hasattr(layer, "pre_feedforward_layernorm")  # Gemma 2 and 3 norm what a site adds, too
    sites = {
        "attn": Site(norm1, layer.post_attention_layernorm if around else attn),
        "mlp": Site(norm2, layer.post_feedforward_layernorm if around else mlp),
    }
    return Block(
        module=layer,
        attn=attn,
        norm1=norm1,
        norm2=norm2,
        act=_first(mlp, "act_fn", "activation_fn", "act"),
        projections=_attention(attn, config) | _mlp(mlp),
        sites=sites,
        mlp=mlp,
        plain_attention=False,  # rotary positions
    )


def _attention(attn: Any, config: Any) -> dict[str, Projection]:
    out = {"out": Projection(_first(attn, "o_proj", "dense"))}
    if hasattr(attn, "q_proj"):
        return {letter: Projection(getattr(attn, f"{letter}_proj")) for letter in "qkv"} | out
    heads = config.num_attention_heads
    if hasattr(attn, "qkv_proj"):
        size = attn.head_dim
        rows = fused_rows([heads * size, *[config.num_key_value_heads * size] * 2])
        return {letter: Projection(attn.qkv_proj, part) for letter, part in zip("qkv", rows)} | out
    if hasattr(attn, "query_key_value") and config.model_type == "gpt_neox":
        interleaved = torch.arange(3 * config.hidden_size).view(heads, 3, -1).transpose(0, 1).flatten(1)
        return {letter: Projection(attn.query_key_value, part) for letter, part in zip("qkv", interleaved)} | out
    raise AdaptError(f"{type(attn).__name__} has no query, key and value projections of a known form")


def _mlp(mlp: Any) -> dict[str, Projection]:
    """No projections where the MLP is a mixture of experts."""
    if hasattr(mlp, "gate_up_proj") and isinstance(mlp.gate_up_proj, nn.Linear):
        half = mlp.gate_up_proj.out_features // 2
        parts = zip(("gate", "up"), fused_rows([half, half]))
        return {name: Projection(mlp.gate_up_proj, rows) for name, rows in parts} | {"down": Projection(mlp.down_proj)}
    names = {
        "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
        "fc1": "fc1", "fc2": "fc2", "dense_h_to_4h": "fc1", "dense_4h_to_h": "fc2",
    }  # fmt: skip
    return {short: Projection(getattr(mlp, name)) for name, short in names.items() if hasattr(mlp, name)}


def _first(owner: Any, *names: str) -> Any:
    """The first of these attributes that `owner` has."""
    for name in names:
        if hasattr(owner, name):
            return getattr(owner, name)
    raise AdaptError(f"{type(owner).__name__} has none of {', '.join(names)}: its form is not known")
