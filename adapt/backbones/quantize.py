"""Frozen linears of a backbone's blocks in 4 or 8 bits, by bitsandbytes; on the CPU too.

Adapters train in full precision on top (QLoRA). Embeddings, norms and heads stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.split_attention import SplitAttention
from adapt.backbones.tower import Block, Projection, Site
from adapt.errors import AdaptError, missing, nearest

Quantization = Literal["nf4", "int8"]
KINDS: tuple[Quantization, ...] = ("nf4", "int8")
_BLOCK = 64  # values that share a scale in nf4
B = TypeVar("B", bound=Backbone)


def quantize(backbone: B, kind: str) -> B:
    """Quantises every linear inside the blocks of all towers, in place, and returns `backbone`.

    The fingerprint is taken before. Fused attention becomes separate linears first, copies of the weight's parts. The
    originals are freed. Raises AdaptError as `check_can`, or for a backbone that is quantised already.
    """
    check_can(kind)
    if backbone.quantization is not None:
        raise AdaptError(f"{backbone.describe()} is quantised already, to {backbone.quantization}")
    _ = backbone.fingerprint  # kept from now on
    backbone.model.requires_grad_(False)
    for name, tower in backbone.towers.items():
        backbone.towers[name] = replace(tower, blocks=tuple(_quantized(block, kind) for block in tower.blocks))
    backbone.quantization = kind
    return backbone


def check_can(kind: str) -> None:
    """AdaptError, with the nearest, for a kind that there is not, and where bitsandbytes is not installed."""
    if kind not in KINDS:
        raise AdaptError(f"quantize is {kind!r}; {nearest(kind, KINDS)}")
    if find_spec("bitsandbytes") is None:
        raise missing(f"A backbone in {kind}", "bitsandbytes", "quantize")


def _quantized(block: Block, kind: str) -> Block:
    """`block` over quantised linears, which take the place of the original ones inside its module."""
    block = _split(block)
    new: dict[nn.Module, nn.Module] = {}
    for owner in list(block.module.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear or isinstance(child, nn.modules.linear.NonDynamicallyQuantizableLinear):
                new[child] = _MAKERS[kind](child)
                setattr(owner, name, new[child])
    projections = {
        letter: replace(projection, module=new[projection.module]) for letter, projection in block.projections.items()
    }
    sites = {
        name: Site(new.get(site.read, site.read), new.get(site.added, site.added)) for name, site in block.sites.items()
    }
    return replace(block, projections=projections, sites=sites)


def _split(block: Block) -> Block:
    """`block` with separate q, k, v and out linears where its attention is torch's fused one."""
    if not isinstance(block.attn, nn.MultiheadAttention):
        return block
    split: Any = SplitAttention(block.attn)
    for part in split.children():
        part.weight = nn.Parameter(part.weight.detach().clone(), requires_grad=False)  # the fused one is freed
    name = next(name for name, child in block.module.named_children() if child is block.attn)
    setattr(block.module, name, split)
    named = {"q": split.q_proj, "k": split.k_proj, "v": split.v_proj, "out": split.out_proj}
    projections = block.projections | {letter: Projection(module) for letter, module in named.items()}
    return replace(block, attn=split, projections=projections)


def _nf4(linear: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    made = _nf4_linear()(
        linear.in_features, linear.out_features, linear.bias is not None,
        compute_dtype=linear.weight.dtype, quant_type="nf4", device="meta",
    )  # fmt: skip
    # on processors with bf16 instructions it would repack the weight in evaluation, for a product without a gradient
    made.support_avx512bf16_for_cpu = False
    whole_blocks = F.pad(linear.weight.data, (0, -linear.in_features % _BLOCK))
    made.weight = bnb.nn.Params4bit(whole_blocks, requires_grad=False, quant_type="nf4", module=made)
    return _finished(made, linear)


class _Pickled(nn.Module):
    """Its class is made when bitsandbytes is first needed, so pickle finds it by its kind, not by its name."""

    kind: ClassVar[Quantization]
    of_weight: ClassVar[type[Any]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (self.kind,), self.__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        weight: Any = self._parameters["weight"]
        if not isinstance(weight, self.of_weight):  # torch pickles any parameter as a plain one
            again = torch.Tensor._make_subclass(self.of_weight, weight.data, False)
            vars(again).update(vars(weight))
            self._parameters["weight"] = again


def _empty(kind: Quantization) -> Any:
    made: Any = _CLASSES[kind]()
    return object.__new__(made)


@cache
def _nf4_linear() -> type[Any]:
    import bitsandbytes as bnb

    class NF4Linear(_Pickled, bnb.nn.Linear4bit):
        """Its weight's rows are padded to whole blocks.

        On the CPU bitsandbytes 0.50 reads wrong scales where a row ends inside a block.
        """

        kind, of_weight = "nf4", bnb.nn.Params4bit

        def forward(self, x: Tensor) -> Tensor:
            missing = -self.in_features % _BLOCK
            product: Tensor = super().forward(F.pad(x, (0, missing)) if missing else x)
            return product

    return NF4Linear


def _int8(linear: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    # it says at every product of fp32 that it rounds the input to fp16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    made = _int8_linear()(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, device="meta"
    )
    # only a weight that comes from the CPU is quantised where it goes
    made.weight = bnb.nn.Int8Params(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    finished = _finished(made, linear)
    finished.init_8bit_state()  # or the first product would, and what it reads would not be moved with the weight
    return finished


@cache
def _int8_linear() -> type[Any]:
    import bitsandbytes as bnb

    class Int8Linear(_Pickled, bnb.nn.Linear8bitLt):
        """What its products read is moved with the weight, and no product changes its bias."""

        kind, of_weight = "int8", bnb.nn.Int8Params

        def forward(self, x: Tensor) -> Tensor:
            self.state.is_training = self.training
            bias = None if self.bias is None else self.bias.to(x.dtype)
            product: Tensor = bnb.matmul(x, self.weight, bias=bias, state=self.state)
            return product

        def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
            moved: nn.Module = super()._apply(fn, recurse)
            if self.state.CB is not None:
                self.state.CB, self.state.SCB = self.weight.data, self.state.SCB.to(self.weight.device)  # type: ignore[union-attr]
            return moved

    return Int8Linear


def _finished(made: Any, linear: nn.Linear) -> Any:
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    # open_clip reads the precision of activations off a weight unless it finds this
    made.int8_original_dtype = linear.weight.dtype
    return made.to(linear.weight.device).eval()  # moving is what quantises


_CLASSES: dict[Quantization, Callable[[], type[Any]]] = {"nf4": _nf4_linear, "int8": _int8_linear}
_MAKERS: dict[str, Callable[[nn.Linear], nn.Module]] = {"nf4": _nf4, "int8": _int8}


def weight_bytes(module: nn.Module) -> int:
    """What the parameters and buffers of `module` take in memory, scales of quantised weights included."""
    tensors: dict[int, Tensor] = {}
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False), *_scales(part)):
            tensors[tensor.untyped_storage().data_ptr()] = tensor
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def _scales(module: Any) -> list[Tensor]:
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is not None:
        return [value for value in state.as_dict(packed=False).values() if isinstance(value, torch.Tensor)]
    scale = getattr(getattr(module, "state", None), "SCB", None)
    return [scale] if isinstance(scale, torch.Tensor) else []
