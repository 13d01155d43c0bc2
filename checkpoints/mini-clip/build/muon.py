"""Muon: momentum whose matrices are made orthogonal before the step (Jordan et al., 2024), in fp32 for CPUs."""

import torch
from torch import Tensor

# A quintic iteration that pushes all singular values towards one; four rounds are enough.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(update: Tensor, rounds: int = 4) -> Tensor:
    """The nearest matrix with singular values near one, for a batch (m, n, n)."""
    a, b, c = COEFFICIENTS
    x = update / (update.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """For weight matrices whose sides are multiples of the width of the blocks (fused qkv, MLPs), and only those.

    They are cut into square blocks of the smaller side, so that all blocks of a tower are made orthogonal in one batch.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One step with Nesterov momentum and decoupled weight decay."""
        for group in self.param_groups:
            blocks = [squares(self.momentum(param, group["momentum"])) for param in group["params"]]
            updates = orthogonal(torch.cat(blocks)).split([len(block) for block in blocks])
            for param, update in zip(group["params"], updates, strict=True):
                tall = param.shape[0] >= param.shape[1]
                flat = update.flatten(0, 1)
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(flat if tall else flat.T, alpha=-group["lr"])

    def momentum(self, param: Tensor, decay: float) -> Tensor:
        """The gradient after Nesterov momentum."""
        if "momentum" not in self.state[param]:
            self.state[param]["momentum"] = torch.zeros_like(param)
        average = self.state[param]["momentum"].lerp_(param.grad, 1 - decay)
        return param.grad.lerp(average, decay)


def squares(matrix: Tensor) -> Tensor:
    """(m * n, n) or (n, m * n) to (m, n, n), rows first."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return tall.unflatten(0, (-1, tall.shape[1]))
