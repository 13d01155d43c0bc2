"""Separate q, k, v and out layers in place of fused attention, for tools such as peft that find layers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

_PARTS = ("q_proj", "k_proj", "v_proj")


class SplitAttention(nn.Module):
    """A replacement for `nn.MultiheadAttention` with separate layers `q_proj`, `k_proj`, `v_proj` and `out_proj`.

    The weights of the layers are views of the fused weights, so nothing is copied.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, attn: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.embed_dim, self.batch_first = attn.num_heads, attn.embed_dim, attn.batch_first
        for index, name in enumerate(_PARTS):
            rows = slice(index * attn.embed_dim, (index + 1) * attn.embed_dim)
            bias = None if attn.in_proj_bias is None else attn.in_proj_bias.detach()[rows]
            self.add_module(name, linear_over(attn.in_proj_weight.detach()[rows], bias))
        out_bias = None if attn.out_proj.bias is None else attn.out_proj.bias.detach()
        self.out_proj = linear_over(attn.out_proj.weight.detach(), out_bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Return the attention output, `(b, l, d)` or `(l, b, d)` as the input, and None for the attention weights."""
        linears = {name[0]: getattr(self, name) for name in _PARTS} | {"out": self.out_proj}
        return attend(linears, self.num_heads, self.batch_first, query, key, value, attn_mask), None


def attend(
    linears: Mapping[str, Callable[[Tensor], Tensor]],
    heads: int,
    batch_first: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
) -> Tensor:
    """Return the output of an `nn.MultiheadAttention`, computed with separate layers q, k, v and out in `linears`."""
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    q, k, v = (
        linears[letter](x).unflatten(-1, (heads, -1)).transpose(1, 2) for letter, x in zip("qkv", (query, key, value))
    )
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask)
    out = linears["out"](mixed.transpose(1, 2).flatten(2))
    return out if batch_first else out.transpose(0, 1)


def linear_over(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a frozen linear layer that uses the tensors `weight` and `bias` without copying them."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def split_attention(model: nn.Module) -> nn.Module:
    """Replace every `nn.MultiheadAttention` in `model` by a `SplitAttention`, in place, and return `model`.

    The model's outputs stay the same, and tools such as peft can then find the linear layers by name.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, SplitAttention(child))
    return model
