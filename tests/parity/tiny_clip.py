"""The weights of the tiny CLIP that the published implementations ran on: drawn from the names of the parameters.

Nothing is stored, and every machine draws the same values. Names are those of OpenAI's CLIP and of open_clip's.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

LOGIT_SCALE = math.log(1 / 0.07)
_SMALL = {  # standard deviations that do not follow from the shape
    "token_embedding.weight": 0.02,
    "positional_embedding": 0.01,
    "visual.positional_embedding": 0.05,
    "visual.class_embedding": 0.05,
}


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal values of `shape`, which depend on `name` alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def value(name: str, shape: tuple[int, ...]) -> Tensor:
    """The parameter `name` of the tiny CLIP."""
    if name == "logit_scale":
        return torch.tensor(LOGIT_SCALE)
    noise = draw(f"clip/{name}", shape)
    module, _, kind = name.rpartition(".")
    if module.rpartition(".")[2].startswith("ln_") and kind == "weight":
        return 1 + 0.1 * noise
    return noise * (0.02 if kind.endswith("bias") else _SMALL.get(name) or _inputs(name, shape) ** -0.5)


def _inputs(name: str, shape: tuple[int, ...]) -> int:
    """How many values each output of a map sums up."""
    if len(shape) == 4:
        return math.prod(shape[1:])
    return shape[0] if name in ("text_projection", "visual.proj") else shape[-1]


def fill(model: nn.Module) -> None:
    """Gives an open_clip `CLIP` of the tiny sizes its weights. Buffers, such as the mask, keep theirs."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(value(name, tuple(parameter.shape)))
