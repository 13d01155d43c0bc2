"""The changes that a method can make to a tower, as data. Only the engine applies them.

Modules act on each token independently, `(..., d)`: the fast paths pass only the tokens that matter, and rows of
several classes together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """`k` learned tokens of a tower.

    Without `block` they enter with the tower's own tokens: in text they take the places that prompts reserve for them,
    before positions are added; in vision they are appended to the patches, after positions and before the pre-norm; in
    a decoder they replace the image of the prompt. With `block` they overwrite the outputs of earlier learned tokens at
    the input of that block.

    `values` broadcast to `(b, n, k, d)` over images and classes: `(k, d)` is shared, `(n, k, d)` differs by class,
    `(b, 1, k, d)` by image (text and decoder), `(b, n, k, d)` by image and class (text).
    """

    values: Tensor
    block: int | None = None

    def __post_init__(self) -> None:
        if self.values.ndim not in (2, 3, 4):
            raise ValueError(f"learned tokens are (k, d), (n, k, d) or (b, n, k, d), not {tuple(self.values.shape)}")

    @property
    def per_class(self) -> bool:
        return self.values.ndim == 3 or (self.per_image and self.values.shape[1] > 1)

    @property
    def per_image(self) -> bool:
        return self.values.ndim == 4


@dataclass(frozen=True)
class Replace:
    """A `module` in place of a frozen part of one block.

    The part is a projection `(..., in) -> (..., out)`: q, k, v, out, fc1, fc2, or in a decoder gate, up, down; or a
    norm `(..., d) -> (..., d)`: norm1, norm2. Without `block` it is a part of the tower: pre_norm, final_norm, or
    projection, which maps pooled outputs `(n, d)` to features `(n, e)`.
    """

    block: int | None
    part: str
    module: nn.Module


AttentionWeights = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attention:
    """A replacement of the softmax in the self-attention of one block that has learned tokens.

    `weights(scores, learned_queries, learned_keys)` maps scaled scores `(..., q, k)`, which are minus infinity where
    attention is masked, and masks of the learned tokens among queries `(..., q)` and keys `(..., k)` to weights
    `(..., q, k)`. With `names_seen`, learned tokens of a causal tower also attend to the class name that follows them.
    """

    block: int
    weights: AttentionWeights
    names_seen: bool = False


@dataclass(frozen=True)
class Parallel:
    """A `module` parallel to one site of a block, or to the block.

    It maps the residual stream `(..., d)` at the input of the site, or of the block, to an output that is added to that
    of the site (after its layer scale or, in a post-norm block, its norm) or of the block. With `normed` its input is
    the output of the site's norm, or of the block's first norm.
    """

    block: int
    site: Literal["attn", "cross", "mlp", "block"]
    module: nn.Module
    normed: bool = False


@dataclass(frozen=True)
class Bypass:
    """A `module`, `(..., d) -> (..., d)`, in place of one frozen block, which is not executed."""

    block: int
    module: nn.Module


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of one linear map of a decoder block, with factors for each image.

    It adds `scale * x @ down @ up.T` to the output for `x`; `down` is `(b, in, r)`, `up` `(b or 1, out, r)`. Rows of
    one image are adjacent: of `n` rows, row `i` belongs to image `i // (n // b)`.
    """

    block: int
    site: str  # a projection, or mlp
    down: Tensor
    up: Tensor
    scale: float


Edit = Tokens | Replace | Attention | Parallel | Bypass | LowRank
