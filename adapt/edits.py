"""Edits: the changes that a method can make to a tower (a transformer stack of the backbone), as data.

Only `adapt.engine` applies edits. Except in `After`, the modules of edits must act on each token `(..., d)`
independently: the fast paths pass them only the tokens that matter, and the tokens of several classes together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """An edit that adds `k` learned tokens to a tower, at the input of the tower or at the input of one block.

    If `block` is None, the learned tokens enter together with the tower's regular tokens. In text, the learned tokens
    take the positions that prompts reserve for them, before position embeddings are added. In vision, the learned
    tokens are appended to the patches, after position embeddings and before the pre-norm. In a decoder, the learned
    tokens replace the image of the prompt.

    If `block` is given, the learned tokens replace, at the input of this block, the hidden states of learned tokens
    that entered earlier: a `share` of the new state is from `values`, and the rest is from the state before. With
    `enters`, the learned tokens instead enter the tower at the input of `block`, and the earlier blocks run without
    them. In a causal text tower, they enter behind the first token, and the other tokens keep their position
    embeddings. In vision, they are appended to the patches.

    `values` broadcast to `(b, n, k, d)` over images and classes: `(k, d)` is shared, `(n, k, d)` differs by class,
    `(b, 1, k, d)` by image (text and decoder), and `(b, n, k, d)` by image and class (text).
    """

    values: Tensor
    block: int | None = None
    enters: bool = False
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.values.ndim not in (2, 3, 4):
            raise ValueError(
                f"learned tokens are {tuple(self.values.shape)}; expected shape (k, d), (n, k, d) or (b, n, k, d)"
            )
        if self.share != 1 and (self.enters or self.block is None):
            raise ValueError(f"share is {self.share} for learned tokens that enter and replace nothing; expected 1")

    @property
    def per_class(self) -> bool:
        return self.values.ndim == 3 or (self.per_image and self.values.shape[1] > 1)

    @property
    def per_image(self) -> bool:
        return self.values.ndim == 4

    def over(self, before: Tensor, values: Tensor) -> Tensor:
        """Return the new states of learned tokens with states `before`, which `values` of the same shape replace."""
        return values if self.share == 1 else before.lerp(values, self.share)


@dataclass(frozen=True)
class Replace:
    """An edit that replaces one frozen layer of a block, or of the tower outside the blocks, by `module`.

    `part` is the name of the layer. Inside a block, `part` is a projection `(..., in) -> (..., out)` (q, k, v, out,
    fc1, fc2, or in a decoder gate, up, down) or a norm `(..., d) -> (..., d)` (norm1, norm2). If `block` is None,
    `part` is pre_norm, final_norm, or projection, the layer that maps pooled outputs `(n, d)` to features `(n, e)`.
    """

    block: int | None
    part: str
    module: nn.Module


AttentionWeights = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attention:
    """An edit that replaces the softmax in the self-attention of one block whose input includes learned tokens.

    `weights(scores, learned_queries, learned_keys)` maps scaled scores `(..., q, k)` to attention weights
    `(..., q, k)`. Scores are minus infinity where attention is masked. The bool masks `learned_queries` `(..., q)` and
    `learned_keys` `(..., k)` mark the learned tokens. With `names_seen`, learned tokens of a causal tower also attend
    to the class name that follows them.
    """

    block: int
    weights: AttentionWeights
    names_seen: bool = False


@dataclass(frozen=True)
class Parallel:
    """An edit that runs `module` in parallel to a sublayer of a block, or to the entire block, and adds both outputs.

    `site` is the sublayer (attn, cross or mlp), or block. The module maps the residual stream `(..., d)` at the input
    of the sublayer or block to a term that is added to the output of the same sublayer or block. For a sublayer, the
    term is added after the layer scale; in a post-norm block, it joins the sum that the norm of an attention reads, and
    is added after the norm of an MLP, as in METER. With `normed`, the module's input is instead the output of the
    sublayer's norm, or of the block's first norm.
    """

    block: int
    site: Literal["attn", "cross", "mlp", "block"]
    module: nn.Module
    normed: bool = False


@dataclass(frozen=True)
class Bypass:
    """An edit that runs `module`, `(..., d) -> (..., d)`, in place of one frozen block, which is not executed."""

    block: int
    module: nn.Module


@dataclass(frozen=True)
class After:
    """An edit that runs `module` between the last block of a vision tower and the tower's final norm.

    The module maps all tokens `(b, l, d)` of the images, without learned tokens, to tokens of the same shape.
    """

    module: nn.Module
    block: ClassVar[None] = None  # it acts outside the blocks


@dataclass(frozen=True)
class LowRank:
    """An edit that adds a low-rank update to one linear layer of a decoder block, with separate factors for each image.

    For an input `x`, `scale * x @ down @ up.T` is added to the output of the layer; `down` is `(b, in, r)`, and `up` is
    `(b or 1, out, r)`. Rows of `x` for the same image are adjacent: of `n` rows, row `i` belongs to image
    `i // (n // b)`.
    """

    block: int
    site: str  # a projection, or mlp
    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True)
class Parameters:
    """An edit that puts trained `values` in the place of frozen parameters, by their names in the backbone's model.

    Only the library's own forward reads them: a method has the trait `OwnWeights`, where there is a fast path.
    """

    values: Mapping[str, Tensor]
    block: ClassVar[None] = None  # they may be of any block, and outside the blocks


@dataclass(frozen=True)
class Outputs:
    """An edit that changes nothing, but passes the outputs of a vision tower's learned tokens to `take`.

    The outputs `(b, k, d)` are those of the last block, after the tower's final norm and before its projection.
    """

    take: Callable[[Tensor], None]
    block: ClassVar[None] = None  # it acts outside the blocks


Edit = Tokens | Replace | Attention | Parallel | Bypass | After | LowRank | Parameters | Outputs
