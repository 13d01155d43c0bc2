"""Linear layers quantised by bitsandbytes, made from frozen `nn.Linear`s, that can be padded, moved and pickled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ClassVar, TypeVar

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK = 64  # values that share a scale in nf4
Made = TypeVar("Made", bound=nn.Module)


class _Pickled(nn.Module):
    """A quantised linear layer whose weight keeps its class when unpickled, instead of becoming an `nn.Parameter`."""

    weight_type: ClassVar[type[Tensor]]

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        weight = self._parameters["weight"]
        if weight is not None and not isinstance(weight, self.weight_type):
            typed = torch.Tensor._make_subclass(self.weight_type, weight.data, False)
            vars(typed).update(vars(weight))
            self._parameters["weight"] = typed  # type: ignore[assignment]  # both classes are parameters


class NF4Linear(_Pickled, bnb.nn.Linear4bit):
    """A linear layer with 4-bit weights, whose rows are padded to a multiple of the quantisation block (64 values).

    Without padding, bitsandbytes 0.50 reads wrong scales on the CPU if a row ends inside a quantisation block.
    """

    weight_type = bnb.nn.Params4bit

    def forward(self, x: Tensor) -> Tensor:
        missing = -self.in_features % _BLOCK
        product: Tensor = super().forward(F.pad(x, (0, missing)) if missing else x)
        return product


class Int8Linear(_Pickled, bnb.nn.Linear8bitLt):
    """A linear layer with 8-bit weights, whose scales move between devices with the weight; the bias is unchanged."""

    weight_type = bnb.nn.Int8Params

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


def nf4(linear: nn.Linear) -> NF4Linear:
    """Return a copy of the layer `linear` quantised to 4 bits (NF4)."""
    made = NF4Linear(
        linear.in_features, linear.out_features, linear.bias is not None,
        compute_dtype=linear.weight.dtype, quant_type="nf4", device="meta",
    )  # fmt: skip
    # on processors with bf16 instructions it would repack the weight in evaluation, for a product without a gradient
    made.support_avx512bf16_for_cpu = False
    padded = F.pad(linear.weight.data, (0, -linear.in_features % _BLOCK))
    made.weight = bnb.nn.Params4bit(padded, requires_grad=False, quant_type="nf4", module=made)
    return _finished(made, linear)


def int8(linear: nn.Linear) -> Int8Linear:
    """Return a copy of the layer `linear` quantised to 8 bits."""
    # bitsandbytes says at every product of fp32 that it rounds the input to fp16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    made = Int8Linear(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, device="meta"
    )
    # only a weight moved from the CPU is quantised on arrival
    made.weight = bnb.nn.Int8Params(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    made = _finished(made, linear)
    made.init_8bit_state()  # the first product would do it too late: its scales would not be moved with the weight
    return made


def _finished(made: Made, linear: nn.Linear) -> Made:
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    # open_clip reads the precision of activations off a weight unless it finds this
    made.int8_original_dtype = linear.weight.dtype  # type: ignore[assignment]
    return made.to(linear.weight.device).eval()  # moving is what quantises
