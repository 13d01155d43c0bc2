"""Edits: the changes that a method can make to a tower (a transformer stack of the backbone), as data.

Only `adapt.engine` applies edits. The modules of edits must act on each token `(..., d)` independently: the fast paths
pass them only the tokens that matter, and the tokens of several classes together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """An edit that adds `k` learned tokens to a tower, at its input or at the input of one block.

    Without `block` they enter with the tower's own tokens: in text they take the positions that prompts reserve for
    them, before position embeddings are added; in vision they are appended to the patches, after position embeddings
    and before the pre-norm; in a decoder they replace the image of the prompt. With `block`, they replace at the input
    of that block the hidden states at the positions of the learned tokens that entered earlier.

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
    """An edit that puts a `module` in place of one frozen layer of a block or of the tower.

    `part` names the layer. In a block it is a projection `(..., in) -> (..., out)`: q, k, v, out, fc1, fc2, or in a
    decoder gate, up, down; or a norm `(..., d) -> (..., d)`: norm1, norm2. Without `block` it is a layer of the tower:
    pre_norm, final_norm, or projection, which maps pooled outputs `(n, d)` to features `(n, e)`.
    """

    block: int | None
    part: str
    module: nn.Module


AttentionWeights = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attention:
    """An edit that replaces the softmax in the self-attention of one block whose input includes learned tokens.

    `weights(scores, learned_queries, learned_keys)` maps scaled scores `(..., q, k)`, which are minus infinity where
    attention is masked, to weights `(..., q, k)`; its masks mark the learned tokens among queries `(..., q)` and keys
    `(..., k)`. With `names_seen`, learned tokens of a causal tower also attend to the class name that follows them.
    """

    block: int
    weights: AttentionWeights
    names_seen: bool = False


@dataclass(frozen=True)
class Parallel:
    """An edit that runs a `module` beside a sublayer of a block, or beside the entire block, and adds their outputs.

    `site` names the sublayer (attn, cross or mlp), or is block. The module maps the residual stream `(..., d)` at the
    input of the sublayer or block to an output that is added to the output of the same sublayer (after its layer scale
    or, in a post-norm block, its norm) or block. With `normed` the module's input is the output of the sublayer's norm,
    or of the block's first norm.
    """

    block: int
    site: Literal["attn", "cross", "mlp", "block"]
    module: nn.Module
    normed: bool = False


@dataclass(frozen=True)
class Bypass:
    """An edit that runs a `module`, `(..., d) -> (..., d)`, in place of one frozen block, which is not executed."""

    block: int
    module: nn.Module


@dataclass(frozen=True)
class LowRank:
    """An edit that adds a low-rank update to one linear layer of a decoder block, with other factors for each image.

    The update adds `scale * x @ down @ up.T` to the output for `x`; `down` is `(b, in, r)`, `up` `(b or 1, out, r)`.
    The rows of `x` for one image are adjacent: of `n` rows, row `i` belongs to image `i // (n // b)`.
    """

    block: int
    site: str  # a projection, or mlp
    down: Tensor
    up: Tensor
    scale: float


Edit = Tokens | Replace | Attention | Parallel | Bypass | LowRank
