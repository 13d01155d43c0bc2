"""The vocabulary of changes that a method asks of a tower, as data. Only the engine applies them.

Modules act on each token by itself, `(..., d)`: the fast paths hand over those tokens alone that count, and rows of
several classes at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """`k` learned tokens of a tower.

    Without `block` they enter where the tower's own tokens do: in text they take the places that the prompts keep for
    them, before positions are added; in vision they are appended to the patches, after positions and before the
    pre-norm; in a decoder they take the place of the prompt's image. With `block` they overwrite, at the input of that
    block, what the entered ones have become.

    `values` broadcast to `(b, n, k, d)` over images and classes: `(k, d)` shared by all, `(n, k, d)` for each class its
    own, `(b, 1, k, d)` for each image its own (text and decoder), `(b, n, k, d)` for each class of each image (text).
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
    """`module` computes a part of one block in place of the frozen one.

    The part is a projection `(..., in) -> (..., out)`: q, k, v, out, fc1, fc2, or of a decoder gate, up, down; or a
    norm `(..., d) -> (..., d)`: norm1, norm2. Without `block` it is the tower's own: pre_norm, final_norm, or
    projection, which makes features `(n, e)` of what the tower is read at `(n, d)`.
    """

    block: int | None
    part: str
    module: nn.Module


AttentionWeights = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attention:
    """Another way from scores to weights in the self-attention of one block that carries learned tokens.

    `weights(scores, learned_queries, learned_keys)`: scaled scores `(..., q, k)`, minus infinity where the query may
    not look, and which of the queries `(..., q)` and keys `(..., k)` are learned tokens, to weights `(..., q, k)`.
    With `names_seen`, learned tokens of a causal tower also look at the class name that follows them.
    """

    block: int
    weights: AttentionWeights
    names_seen: bool = False


@dataclass(frozen=True)
class Parallel:
    """`module` runs beside one site of a block, or the whole block.

    Its output `(..., d)` of the residual stream `(..., d)` that the site, or the block, reads is added to the site's,
    after its layer scale or, in a post-norm block, its norm, or to the block's.

    `normed`: it reads the stream as the norm of that site, or the first one of the block, leaves it in this call.
    """

    block: int
    site: Literal["attn", "cross", "mlp", "block"]
    module: nn.Module
    normed: bool = False


@dataclass(frozen=True)
class Bypass:
    """`module` computes one block in place of the frozen one, which is not executed: `(..., d) -> (..., d)`."""

    block: int
    module: nn.Module


@dataclass(frozen=True)
class LowRank:
    """`scale * x @ down @ up.T` joins what one linear map of a decoder block makes of `x`, for each image by its own
    factors: `down` `(b, in, r)`, `up` `(b or 1, out, r)`.

    Rows that belong to one image stand together: of `n` rows, row `i` is of image `i // (n // b)`.
    """

    block: int
    site: str  # a projection, or mlp for the whole of it
    down: Tensor
    up: Tensor
    scale: float


Edit = Tokens | Replace | Attention | Parallel | Bypass | LowRank
