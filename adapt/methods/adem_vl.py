"""ADEM-VL: each decoder block compares its own states with an image's features, and adds those that fit best.

Paper: Hao et al., ADEM-VL: Adaptive and Embedded Fusion for Efficient Vision-Language Tuning, IJCV 2025.
Reference: Hao840/ADEM-VL `cec09b8` (no licence: only its formulas were read), with its parameter names.
Deviations:
* Features are pooled to the sizes of `scales` from any grid of patches; the reference never pools one of 16 x 16.
* The adapters of the vision tower end with the block whose features are read. The reference also has those of the last
  block, which never learn.
* The class token stands where the prompt has the image; the reference puts it behind the words "Image: ".
* Every row has an image. The reference adds its tables (`adapter_emb1`, `adapter_emb2`) to rows without one too.

The comparison has no parameters: SiLU of states times SiLU of features, without a scale or a softmax. Nothing is
normalised, so that the size of `beta` decides whether training is stable.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from math import isqrt

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from adapt.backbones.tower import Tower
from adapt.backbones.vision_llm import VisionLLM
from adapt.common.errors import AdaptError
from adapt.edits import Edit, Parallel, Tokens
from adapt.methods.base import Context, Method, MethodConfig, Step


class ADEMVLConfig(MethodConfig):
    scales: tuple[int, ...] = Field(default=(256, 64), min_length=1)
    """The numbers of features that the patches are pooled to, each a square."""
    hidden: int = Field(default=128, ge=1)
    """The hidden units of the two projectors (hidden_proj)."""
    alpha: float = Field(default=0.1, gt=0)
    """The weight of what a block adds."""
    beta: float = Field(default=0.01, gt=0)
    """The weight of the projected features."""
    dropped: float = Field(default=0.1, ge=0, lt=1)
    """The share of features that fit a state least, which it ignores."""
    class_token: bool = True
    """Whether the class token is in the prompt too. Towers without one need `false`."""
    vision_dim: int = Field(default=12, ge=0)
    """The hidden units of the adapters in the vision tower; 0 leaves the tower as it is."""
    vision_scale: float = Field(default=0.1, gt=0)
    """The weight of what these adapters add."""
    vision_dropout: float = Field(default=0.1, ge=0, lt=1)
    """The dropout of their hidden units."""

    @field_validator("scales")
    @classmethod
    def _squares(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        wrong = [size for size in value if size < 1 or isqrt(size) ** 2 != size]
        if wrong:
            raise ValueError(f"scales has {wrong[0]}; expected squares, such as 256 and 64")
        return value


class _Perceptron(nn.Module):
    """A projector `(..., width) -> (..., out)` with one hidden layer."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, out)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.fc2(F.silu(self.fc1(x)))
        return projected


class VisionAdapter(nn.Module):
    """A bottleneck `(..., d) -> (..., d)` beside the MLP of a block of the vision tower."""

    def __init__(self, width: int, hidden: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.fc1, self.fc2 = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.gelu(self.fc1(x.to(self.fc1.weight.dtype))), self.dropout, self.training)
        return (self.scale * self.fc2(hidden)).to(x.dtype)


class Fusion(nn.Module):
    """The update of a decoder block's states `(n, l, d)` from the `keys` and `values` `(b, m, d)` of b images.

    Rows of one image are adjacent: of n rows, row i is of image `i // (n // b)`.
    """

    def __init__(self, keys: Tensor, values: Tensor, dropped: float, alpha: float) -> None:
        super().__init__()
        self.keys, self.values = F.silu(keys), alpha * values
        self.rank = int(dropped * keys.shape[1]) + 1  # of the smallest score that counts

    def forward(self, states: Tensor) -> Tensor:
        keys, values, rows = self.keys, self.values, len(states) // len(self.keys)
        if rows > 1:
            keys, values = keys.repeat_interleave(rows, 0), values.repeat_interleave(rows, 0)
        scores = F.silu(states.to(keys.dtype)) @ keys.transpose(-1, -2)
        least = scores.detach().kthvalue(self.rank, dim=-1, keepdim=True).values
        return (scores.masked_fill(scores < least, 0) @ values).to(states.dtype)


class ADEMVL(Method[Step]):
    """Fusion of image features in every decoder block.

    Trains `adapter_proj`, a projector of the features, `adapter_emb1` and `adapter_emb2` `(1, m, d)`, which make them
    keys and values, `adapter_proj_cls`, a projector of the class token, and `adapter_mlp`, adapters of vision blocks.
    """

    name = "adem_vl"
    title = "ADEM-VL (Hao et al., IJCV 2025)"
    serves = ("vision LLM",)
    Config = ADEMVLConfig
    example = {"scales": (4, 1), "hidden": 4, "vision_dim": 2}
    _norm: tuple[nn.LayerNorm]

    @property
    def touches(self) -> frozenset[str]:
        return frozenset({"decoder", "vision"} if self.config.vision_dim else {"decoder"})

    def build(self, backbone: VisionLLM, class_names: Sequence[str]) -> None:  # type: ignore[override]
        config, tower = self.config, backbone.tower("vision")
        patches, width = backbone.patch_shape()
        if isqrt(patches) ** 2 != patches or max(config.scales) > patches:
            raise AdaptError(
                f"adem_vl: {backbone.describe()} has {patches} patches, and scales is {list(config.scales)}; expected "
                "a square of patches, and scales of at most as many: set method.scales"
            )
        if config.class_token and tower.form.pooling != "class":
            raise AdaptError(
                f"adem_vl: the vision tower of {backbone.describe()} has no class token: set method.class_token to "
                "false"
            )
        if not isinstance(tower.final_norm, nn.LayerNorm):
            raise AdaptError(
                f"adem_vl: the vision tower of {backbone.describe()} ends without a layer norm, which the features "
                "pass: use another backbone"
            )
        self._norm = (deepcopy(tower.final_norm).float(),)  # in a tuple, so that no adapter holds it
        target, features = backbone.tower("decoder").width, sum(config.scales)
        self.adapter_proj = _Perceptron(width, config.hidden, target)
        self.adapter_emb1 = nn.Parameter(0.02 * torch.randn(1, features, target))
        self.adapter_emb2 = nn.Parameter(torch.zeros(1, features, target))
        if config.class_token:
            self.adapter_proj_cls = _Perceptron(width, config.hidden, target)
        if config.vision_dim:
            seen = range(len(tower.blocks))[backbone.patch_block] + 1
            sizes = tower.width, config.vision_dim, config.vision_scale, config.vision_dropout
            self.adapter_mlp = nn.ModuleList(VisionAdapter(*sizes) for _ in range(seen))
        self.to(backbone.device)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        if tower.name == "vision":
            return [Parallel(index, "mlp", each, normed=True) for index, each in enumerate(self.adapter_mlp)]
        fusions = self.fusions(self.visual(self._normed(context.tokens("vision"))), len(tower.blocks))
        if not self.config.class_token:
            return fusions
        token = self.adapter_proj_cls(self._normed(context.class_token("vision")))
        return [Tokens(token[:, None, None]), *fusions]

    def _normed(self, features: Tensor) -> Tensor:
        [norm], weight = self._norm, self.adapter_emb1
        normed: Tensor = norm.to(weight.device)(features.float())
        return normed.to(weight.dtype)

    def visual(self, patches: Tensor) -> Tensor:
        """Return projected features `(b, m, d)` of images, pooled from normed patch features `(b, p, w)`."""
        grid = patches.transpose(1, 2).unflatten(-1, (isqrt(patches.shape[1]), -1))
        pooled = [F.adaptive_avg_pool2d(grid, isqrt(size)).flatten(2) for size in self.config.scales]
        features: Tensor = self.config.beta * self.adapter_proj(torch.cat(pooled, dim=-1).transpose(1, 2))
        return features

    def fusions(self, visual: Tensor, blocks: int) -> list[Edit]:
        """Return the edits of a decoder with `blocks` blocks for projected features `(b, m, d)`."""
        keys, values = visual + self.adapter_emb1, visual + self.adapter_emb2
        fusion = Fusion(keys, values, self.config.dropped, self.config.alpha)
        return [Parallel(index, "mlp", fusion, normed=True) for index in range(blocks)]
