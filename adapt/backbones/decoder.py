"""A map of the decoder in a transformers causal language model: a tower of blocks that edits can change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from adapt.backbones.tower import Block, Form, Projection, Site, Tower, fused_rows
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def decoder_tower(llm: PreTrainedModel) -> Tower:
    """Return a `Tower` that describes the blocks and linear layers of a causal language model's decoder, for edits.

    Llama, Qwen, Mistral, Gemma, Phi, GPT-NeoX and models with the same structure are supported. Raises AdaptError if
    the blocks of the model have another structure.
    """
    layers = getattr(llm.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise AdaptError(
            f"the language model {type(llm).__name__} has an unsupported structure: use a Llama, Qwen, Mistral, Gemma, "
            "Phi or GPT-NeoX model"
        )
    return tower_of(layers, llm.config.get_text_config())


def tower_of(layers: nn.ModuleList, config: PreTrainedConfig) -> Tower:
    """Return the `layers` of a decoder, which may belong to a larger model, as a tower; `config` is the decoder's."""
    blocks = tuple(_block(layer, config) for layer in layers)
    form = Form(causal=True, pooling="none", kinds=tuple(getattr(config, "layer_types", None) or ()))
    return Tower("decoder", config.hidden_size, config.num_attention_heads, form, blocks)


def _block(layer: nn.Module, config: PreTrainedConfig) -> Block:
    attn = submodule_of(layer, "self_attn", "attention")
    mlp, norm1 = submodule_of(layer, "mlp"), submodule_of(layer, "input_layernorm")
    norm2 = submodule_of(layer, "pre_feedforward_layernorm", "post_attention_layernorm", "input_layernorm")
    around = hasattr(layer, "pre_feedforward_layernorm")  # Gemma 2 and 3 also norm what a site adds
    sites = {
        "attn": Site(norm1, submodule_of(layer, "post_attention_layernorm") if around else attn),
        "mlp": Site(norm2, submodule_of(layer, "post_feedforward_layernorm") if around else mlp),
    }
    return Block(
        module=layer,
        attn=attn,
        norm1=norm1,
        norm2=norm2,
        act=submodule_of(mlp, "act_fn", "activation_fn", "act"),
        projections=_attention(attn, config) | mlp_projections(mlp),
        sites=sites,
        mlp=mlp,
        plain_attention=False,  # rotary positions
    )


def _attention(attn: nn.Module, config: PreTrainedConfig) -> dict[str, Projection]:
    out = {"out": Projection(submodule_of(attn, "o_proj", "dense"))}
    if hasattr(attn, "q_proj"):
        return {letter: Projection(submodule_of(attn, f"{letter}_proj")) for letter in "qkv"} | out
    heads, fused = config.num_attention_heads, getattr(attn, "qkv_proj", None)
    if fused is not None:
        sizes = [heads, config.num_key_value_heads, config.num_key_value_heads]
        rows = fused_rows([size * attn.head_dim for size in sizes])
        return {letter: Projection(fused, part) for letter, part in zip("qkv", rows)} | out
    fused = getattr(attn, "query_key_value", None)
    if fused is not None and config.model_type == "gpt_neox":
        interleaved = torch.arange(3 * config.hidden_size).view(heads, 3, -1).transpose(0, 1).flatten(1)
        return {letter: Projection(fused, part) for letter, part in zip("qkv", interleaved)} | out
    raise AdaptError(f"the attention {type(attn).__name__} is not supported: use another model, such as a Llama")


def mlp_projections(mlp: nn.Module) -> dict[str, Projection]:
    """Return a dict of the linear layers in an MLP, with short names such as fc1; empty for a mixture of experts."""
    fused = getattr(mlp, "gate_up_proj", None)
    if isinstance(fused, nn.Linear):
        parts = zip(("gate", "up"), fused_rows([fused.out_features // 2] * 2))
        return {name: Projection(fused, rows) for name, rows in parts} | {
            "down": Projection(submodule_of(mlp, "down_proj"))
        }
    names = {
        "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
        "fc1": "fc1", "fc2": "fc2", "dense_h_to_4h": "fc1", "dense_4h_to_h": "fc2",
        "linear_fc1": "fc1", "linear_fc2": "fc2",
    }  # fmt: skip
    return {short: Projection(getattr(mlp, name)) for name, short in names.items() if hasattr(mlp, name)}


def submodule_of(owner: nn.Module, *names: str) -> nn.Module:
    """Return the first submodule of `owner` found among `names`. Raises AdaptError if no such submodule exists."""
    for name in names:
        if hasattr(owner, name):
            return owner.get_submodule(name)
    raise AdaptError(f"{type(owner).__name__} has no module {', '.join(names)}: use another model, such as a Llama")
