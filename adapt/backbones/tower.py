"""Maps of transformers, which tell edits where things are: towers, their blocks, and the linear maps in a block.

Blocks can be cut out of a backbone, which then only serves methods that bypass these blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.common.errors import AdaptError

TowerName = Literal["text", "vision", "fusion", "text_fusion", "vision_fusion", "connector", "decoder"]
Norm = Callable[[Tensor], Tensor]
BlockOutput = Tensor | tuple[Tensor, *tuple[object, ...]]  # the output of a block's module: the tokens come first
Pooling = Literal["end", "last", "class", "mean", "map", "none"]


@dataclass(frozen=True, eq=False)  # rows cannot be compared, and torch's compiler asks for a hash of half an object
class Projection:
    """One linear map of a block, such as q or fc1, whose weight consists of all rows or some rows of a module's weight.

    A fused query-key-value weight is described by three projections on one module. `rows` selects the rows of this
    projection, as a slice, or as an index `(out,)` if the rows of q, k and v alternate from head to head.
    """

    module: nn.Module
    rows: slice | Tensor | None = None
    weight_name: str = "weight"
    bias_name: str = "bias"

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the frozen linear map from `(..., in)` to `(..., out)`, even while an edit overrides the module."""
        if not self.quantized:
            return F.linear(x, self.weight, self.bias)
        output: Tensor = type(self.module).forward(self.module, x)
        return output if self.rows is None else output[..., self.rows]

    @property
    def weight(self) -> Tensor:
        """The frozen weight `(out, in)`, detached, so that no gradient reaches the backbone.

        The result is a view of the module's weight. If the projection's rows are not adjacent, the result is a copy,
        and if the weight is quantised, a full-precision copy.
        """
        return self._rows_of(full_weight(self.module) if self.quantized else getattr(self.module, self.weight_name))

    @property
    def is_view(self) -> bool:
        """Whether `weight` shares memory with the module's parameter."""
        return not self.quantized and not isinstance(self.rows, Tensor)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which this linear map computes, even if the weight is quantised."""
        stored: torch.dtype = getattr(self.module, self.weight_name).dtype
        return getattr(self.module, "int8_original_dtype", stored)

    @property
    def quantized(self) -> bool:
        return hasattr(self.module, "int8_original_dtype")

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias `(out,)`; None if this linear map has no bias."""
        bias = getattr(self.module, self.bias_name)
        return None if bias is None else self._rows_of(bias)

    @property
    def shape(self) -> tuple[int, int]:
        """The output and input widths `(out, in)` of this linear map, even if the weight is quantised."""
        module = self.module
        rows, columns = (
            (module.out_features, module.in_features)
            if isinstance(module, nn.Linear)
            else getattr(module, self.weight_name).shape
        )
        if isinstance(self.rows, Tensor):
            return len(self.rows), columns
        return len(range(rows)[self.rows or slice(None)]), columns

    def _rows_of(self, tensor: Tensor) -> Tensor:
        return tensor.detach() if self.rows is None else tensor.detach()[self.rows]


@dataclass(frozen=True)
class Site:
    """One branch of a block, such as its attention or MLP, whose output is added to the residual stream."""

    read: nn.Module  #: The module whose first input is the residual stream `(b, l, d)`.
    added: nn.Module  #: The module whose output, or the first of its outputs, joins the stream.


@dataclass(frozen=True)
class Block:
    """One transformer layer, described by the modules that edits act on.

    In CLIP and SigLIP, a layer computes `x + scale1(attn(norm1(x)))` and then `x + scale2(fc2(act(fc1(norm2(x)))))`
    (pre-norm). In other models, only `sites` describes how the branches are connected to the residual stream.
    """

    module: nn.Module  #: The entire layer.
    attn: nn.Module  #: Its attention.
    norm1: nn.Module  #: The norm of its attention.
    norm2: nn.Module  #: The norm of its MLP.
    act: nn.Module  #: The activation of its MLP.
    projections: dict[str, Projection]  #: Its linear maps by name: q, k, v, out, fc1 and fc2, or gate, up and down.
    scale1: nn.Module = field(default_factory=nn.Identity)  #: What multiplies the output of its attention.
    scale2: nn.Module = field(default_factory=nn.Identity)  #: What multiplies the output of its MLP.
    sites: dict[str, Site] = field(default_factory=dict)  #: Its branches attn, cross, mlp, in order of computation.
    mlp: nn.Module | None = None  #: Its MLP, if that is one module.
    batch_first: bool = True  #: Whether the library hands it `(b, l, d)`, not `(l, b, d)`.
    attn_returns_weights: bool = True  #: Whether `attn` returns (output, weights or None), not just the output.
    returns: int = 0  #: How many values `module` returns in a tuple; 0 where it returns `(b, l, d)` itself.
    plain_attention: bool = True  #: Whether only softmax(q k / sqrt(d)) v is between the projections: no norm, no gate.
    quick_gelu: bool = False  #: Whether `act` is x * sigmoid(1.702 x).

    def norm_of(self, site: str) -> nn.Module | None:
        """Return the norm layer before the branch `site` (attn, mlp or the entire block); None in a post-norm block."""
        read = next(iter(self.sites.values())).read if site == "block" else self.sites[site].read
        return read if read is self.norm1 or read is self.norm2 else None


def tokens_of(output: BlockOutput) -> Tensor:
    """Return the tokens `(b, l, d)` of a block's output, a tensor or a tuple whose first element is the tensor."""
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class Form:
    """Properties of a tower, such as masking and pooling, that decide which edits and fast code paths are possible."""

    causal: bool  #: Whether a token attends only to itself and to those before it.
    pooling: Pooling  #: The token that becomes the feature: end, last or class; or mean, map (attention), or none.
    plain_mask: bool = True  #: Whether the mask is causal or none, with no padding or appended token masked.
    kinds: tuple[str, ...] = ()  #: The kind of attention of each block of a decoder, if they differ.
    registers: int = 0  #: Of a vision tower: the number of tokens before the patches that are not pooled.
    rotary: bool = False  #: Of a vision tower: whether attention turns queries and keys by the places of the patches.

    @property
    def first_patch(self) -> int:
        """The position of the first patch among a vision tower's tokens, after a pooled class token and registers."""
        return self.registers + (self.pooling == "class")


@dataclass(frozen=True)
class TextParts:
    """The layers of a text tower before and after the transformer blocks."""

    embedding: nn.Embedding  #: The embedding of tokens.
    positions: Callable[[], Tensor]  #: A function that returns the embeddings of positions `(context length, d)`.
    final_norm: nn.Module  #: The norm after the last block.
    project: Callable[[Tensor], Tensor]  #: From pooled `(n, d)` to features `(n, e)`, such as a `LastProjection`.


@dataclass(frozen=True)
class VisionParts:
    """The layers of a vision tower before and after the transformer blocks."""

    embed: Callable[[Tensor], Tensor]  #: From images `(b, 3, h, w)` to tokens `(b, l, d)`, before the pre-norm.
    read: Callable[[Tensor, Norm], Tensor]  #: From tokens `(b, l, d)` and the final norm to pooled `(b, d)`.
    project: Callable[[Tensor], Tensor]  #: From pooled `(b, d)` to features `(b, e)`, such as a `LastProjection`.


@dataclass(frozen=True)
class LastProjection:
    """A tower's final linear map from pooled tokens `(n, d)` to features `(n, e)`, a parameter `(d, e)` or a layer."""

    owner: nn.Module  #: The module that has the parameter or layer.
    name: str  #: The name of the parameter or layer in its owner.

    def __call__(self, pooled: Tensor) -> Tensor:
        """Apply what the owner has under the name: a frozen parameter, a module, or None, which changes nothing."""
        part = getattr(self.owner, self.name)
        if part is None:
            return pooled
        projected: Tensor = part(pooled) if isinstance(part, nn.Module) else pooled @ part.detach()
        return projected

    @classmethod
    def of(cls, owner: nn.Module, name: str) -> LastProjection | None:
        """Return the final projection, the attribute `name` of `owner`; None if it is no parameter or linear layer."""
        return cls(owner, name) if isinstance(getattr(owner, name, None), nn.Parameter | nn.Linear) else None

    @property
    def weight(self) -> Tensor:
        """The frozen weight `(e, d)` of the final linear map."""
        part = getattr(self.owner, self.name)
        weight: Tensor = part.weight if isinstance(part, nn.Linear) else part.T
        return weight.detach()


NORMS = ("norm1", "norm2")  # the norms of a block, before its attention and before its MLP


@dataclass(frozen=True)
class Tower:
    """One transformer stack of a backbone, such as CLIP's text tower, with sizes read from the model."""

    name: str  #: text, vision, fusion, connector or decoder.
    width: int  #: The number of values `d` of a token.
    heads: int  #: The number of heads of its attention.
    form: Form  #: How it masks and pools.
    blocks: tuple[Block, ...]  #: Its layers, in order.
    text: TextParts | None = None  #: What is around the blocks of a text tower; without it there is no fast path.
    vision: VisionParts | None = None  #: What is around the blocks of a vision tower; without it there is no fast path.
    pre_norm: nn.Module | None = None  #: Where all tokens enter; without one, they enter at the first block.
    final_norm: nn.Module | None = None  #: The norm after the last block.
    projection: LastProjection | None = None  #: The map to features, if methods may edit it.

    @property
    def embedding(self) -> nn.Embedding:
        """The text tower's embedding of tokens. Raises AdaptError if learned tokens cannot be put among them."""
        self.check_takes_tokens()
        assert self.text is not None
        return self.text.embedding

    def check_takes_tokens(self) -> None:
        """Raise AdaptError if this is a decoder in the place of a CLIP's tower, or has rotary positions (DINOv3)."""
        if self.name != "decoder" and self.form.pooling == "none":
            raise AdaptError(
                f"learned tokens cannot be added to the {self.name} tower, which is the decoder of a vision-language "
                "model: use another method, such as lora"
            )
        if self.form.rotary:
            raise AdaptError(
                f"learned tokens cannot be added to the {self.name} tower, whose rotary attention takes the last "
                "tokens for patches: use another method, such as lora"
            )

    @property
    def parts(self) -> dict[str, nn.Module | LastProjection]:
        """A dict of the existing editable layers outside the blocks, by name: pre_norm, final_norm and projection."""
        named = {"pre_norm": self.pre_norm, "final_norm": self.final_norm, "projection": self.projection}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the blocks' weights; None if all blocks were removed. Embeddings may have another dtype."""
        there = (block for block in self.blocks if any(True for _ in block.module.parameters()))  # not cut out
        return next((each.dtype for block in there for each in block.projections.values()), None)

    @property
    def projections(self) -> tuple[str, ...]:
        """The names of the linear maps in each block of this tower, such as q, k, v, out, fc1 and fc2."""
        return tuple(self.blocks[0].projections)


def check_parts(tower: Tower, model: nn.Module) -> None:
    """Raise AdaptError if a module of `tower` is no longer part of `model`, because edits would then have no effect."""
    inside = set(modules_of(model))
    for index, block in enumerate(tower.blocks):
        projections = (projection.module for projection in block.projections.values())
        parts = (block.module, block.attn, block.norm1, block.norm2, block.act, *projections)
        cut_out = not any(True for _ in block.module.parameters())
        if not (cut_out or inside.issuperset(parts)):
            raise AdaptError(
                f"a module in block {index} of the {tower.name} tower was replaced after the backbone was built: build "
                "a new backbone from the current model, and wrap the new backbone"
            )


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return `model` and all modules in it, each once, in a tenth of the time that `model.modules()` takes."""
    modules, seen = [model], {model}
    for module in modules:  # grows during the walk
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                modules.append(child)
    return modules


def as_one(projections: Sequence[Projection]) -> Projection | None:
    """Combine several projections into one projection, which computes their concatenated outputs at once.

    Returns None if the projections are not adjacent, ordered slices of the same weight, or if the weight is quantised.
    """
    first = projections[0]
    if first.quantized or not all(each.module is first.module and isinstance(each.rows, slice) for each in projections):
        return None
    rows = [each.rows for each in projections if isinstance(each.rows, slice)]
    if any(before.stop != after.start for before, after in pairwise(rows)):
        return None
    return replace(first, rows=slice(rows[0].start, rows[-1].stop))


def full_weight(module: nn.Module) -> Tensor:
    """Return the weight `(out, in)` of a bitsandbytes layer, dequantised from 4 or 8 bits to full precision."""
    import bitsandbytes as bnb

    if isinstance(module, bnb.nn.Linear4bit) and isinstance(module.weight, bnb.nn.Params4bit):
        full: Tensor = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        return full[:, : module.in_features]  # without the padding to full blocks
    assert isinstance(module, bnb.nn.Linear8bitLt)
    assert isinstance(module.weight, bnb.nn.Int8Params)
    scale = module.state.SCB if module.weight.SCB is None else module.weight.SCB
    assert scale is not None
    return bnb.functional.int8_vectorwise_dequant(module.weight.data, scale).to(module.int8_original_dtype)


def fused_qkv(
    module: nn.Module, width: int, weight_name: str = "weight", bias_name: str = "bias"
) -> dict[str, Projection]:
    """Return the projections q, k and v, each with a third of the rows of a fused weight `(3 * width, in)`."""
    rows = fused_rows([width] * 3)
    return {letter: Projection(module, part, weight_name, bias_name) for letter, part in zip("qkv", rows)}


def fused_rows(sizes: Sequence[int]) -> list[slice]:
    """Return consecutive slices of a fused weight's rows, one slice for each output width in `sizes`."""
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends)]


class Absent(nn.Module):
    """A placeholder for a removed transformer block, which raises AdaptError if a forward pass reaches the block."""

    precision: Tensor

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("precision", torch.empty(0, dtype=dtype), persistent=False)  # follows `.to(dtype)`

    def get_weight_dtype(self) -> torch.dtype:
        """Return the dtype of the model's weights; open_clip calls this method on the first block of a tower."""
        return self.precision.dtype

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        raise AdaptError(
            f"the block {self.name} was removed from this compact backbone, which only works with the adapter that it "
            "was exported with: load the full backbone for other uses"
        )
