"""Linear layers over frozen weights, for tools such as peft that find layers by name, or wrap an `nn.Linear`.

`SplitAttention` has q, k, v and out in place of fused attention, and a `StandIn` computes one frozen projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.tower import Projection

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
        return attend(linears, self.num_heads, self.batch_first, query, key, value, need_weights, attn_mask)


def attend(
    linears: Mapping[str, Callable[[Tensor], Tensor]],
    heads: int,
    batch_first: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    need_weights: bool = False,
    attn_mask: Tensor | None = None,
    weights: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, None]:
    """Return what an `nn.MultiheadAttention` does, by separate layers q, k, v and out, and None for its weights.

    In place of a mask and a softmax, `weights` may map scaled scores `(b, h, l, l)` to attention weights.
    """
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    q, k, v = (
        linears[letter](x).unflatten(-1, (heads, -1)).transpose(1, 2) for letter, x in zip("qkv", (query, key, value))
    )
    if weights is None:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask)
    else:
        mixed = weights(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)) @ v
    out = linears["out"](mixed.transpose(1, 2).flatten(2))
    return out if batch_first else out.transpose(0, 1), None


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


_GIVEN: ContextVar[Mapping[int, Tensor]] = ContextVar("_GIVEN", default=MappingProxyType({}))  # by id of a stand-in


class StandIn(nn.Linear):
    """A linear layer that computes a frozen projection of the backbone, but stores only one number as its weight.

    Copying, saving or comparing this layer therefore never touches the backbone's weight.
    """

    def __init__(self, projection: Projection) -> None:
        rows, columns = projection.shape
        super().__init__(columns, rows, bias=False, device="meta")
        self.projection = projection
        self.place()

    def place(self) -> None:
        """Set this layer's weight to one number, expanded to the projection's shape, on the backbone's device."""
        device = getattr(self.projection.module, self.projection.weight_name).device
        if self.weight is None or self.weight.device != device:
            number = torch.zeros(1, device=device).expand(self.projection.shape)
            self.weight = nn.Parameter(number, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        given = None if torch.compiler.is_dynamo_compiling() else _GIVEN.get().get(id(self))
        return self.projection(x) if given is None else given

    @contextmanager
    def giving(self, output: Tensor) -> Iterator[None]:
        """Make this layer return the precomputed `output` in the `with` block; other threads are not affected."""
        token = _GIVEN.set({**_GIVEN.get(), id(self): output})
        try:
            yield
        finally:
            _GIVEN.reset(token)

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_parameters": {"weight": None, "bias": None}}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self.place()


class ViewedWeight(StandIn):
    """A `StandIn` with the real weight, as a view or a dequantised copy, for tools that read the layer's weight."""

    def place(self) -> None:
        """Update this layer's weight and bias from the projection, if the backbone's weight was moved or replaced."""
        weight, bias = self.projection.weight, self.projection.bias
        if self.weight is None or self.weight.data_ptr() != weight.data_ptr():
            self.weight = nn.Parameter(weight, requires_grad=False)
            self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
