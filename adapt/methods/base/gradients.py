"""Changes of gradients on their way back, for tensors that learn at a rate of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class GradientTimes(torch.autograd.Function):
    """An identity function that multiplies the gradient by a factor, a number or a tensor, in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float | Tensor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradient, None
