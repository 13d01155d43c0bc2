"""VLoRA: an image becomes low-rank weight updates of the language model, instead of visual tokens.

Paper: Ma et al., Visual Perception by Large Language Model's Weights, NeurIPS 2024 (VLoRA).
Reference: VLoRA `623aa52`, `llava/model/VLoRA/weights_generater.py`, `modeling_llama_vlora.py`.
Deviations:
* Projections need not be square: the factors have the widths of each projection, so grouped-query attention fits. The
  factors that do not depend on the image are `Bs.LETTER`, one tensor per letter; the reference stacks those of all
  letters in `Bs`, which `adapt convert` splits.
* The generators of all letters are computed together: `gen.NAME` stacks the reference's `gen.0.NAME`, `gen.1.NAME`,
  ..., as `adapt convert` does. One batched product serves all letters, and the first self-attention of the queries,
  before they read an image, is computed once for all images.
* Factors are generated for the widest input; narrower projections use the first rows.
* The image's place in the prompt is left out; the reference keeps a masked token there.
* The defaults are those of the reference's fine-tuning script. Its pre-training script has dim 1024, whose checkpoints
  the fine-tuning script cannot load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from adapt.backbones.tower import Block, Tower
from adapt.backbones.vision_llm import VisionLLM
from adapt.common.errors import AdaptError
from adapt.edits import Edit, LowRank
from adapt.methods.base import Context, Method, MethodConfig, Step
from adapt.methods.base.traits import Imported, ReadsPublished

STD = 0.02  # the standard deviation of initial linear maps
SITES = {"q": "q", "k": "k", "v": "v", "o": "out", "m": "mlp"}


class VLoRAConfig(MethodConfig):
    dim: int = Field(default=512, ge=1)
    """The width of the generator."""
    depth: int = Field(default=8, ge=1)
    """The number of its decoder blocks."""
    rank: int = Field(default=64, ge=1)
    """The rank of each update."""
    alpha: float | None = Field(default=None, gt=0)
    """The numerator of the update's scale, alpha / rank; by default the rank."""
    letters: str = "qkvom"
    """The updated projections: q k v o of the attention, and m, the MLP as one map."""
    separate: bool = True
    """Whether each letter has its own generator, instead of one for all."""
    heads: int = Field(default=16, ge=1)
    """The number of heads of the generator's attention."""
    skip: int = Field(default=4, ge=1)
    """The spacing of updated decoder blocks: 4 updates blocks 3, 7, 11 and so on."""

    @field_validator("letters")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value or set(value) - SITES.keys() or len(set(value)) < len(value):
            raise ValueError(f"letters are {value!r}; expected letters of {''.join(SITES)}, each at most once")
        return value


class Linears(nn.Module):
    """A linear layer for each of g weight generators, in one module that maps `(g, ..., in)` to `(g, ..., out)`."""

    def __init__(self, generators: int, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(generators, out, width), std=STD))
        self.bias = nn.Parameter(torch.zeros(generators, out))

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map `x` `(g, ..., in)` to `(g, ..., out)` by g linear layers `weight` `(g, out, in)` and `bias` `(g, out)`."""
    mapped = torch.baddbmm(bias[:, None], x.flatten(1, -2), weight.transpose(1, 2))
    return mapped.unflatten(1, x.shape[1:-1])


class Norms(nn.Module):
    """A layer norm for each of g weight generators, in one module for inputs `(g, 1 or b, n, d)`."""

    def __init__(self, generators: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(generators, width))
        self.bias = nn.Parameter(torch.zeros(generators, width))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)


class Attentions(nn.Module):
    """An attention layer for each of g weight generators, with queries from `x` and keys and values from `seen`.

    `x` is `(g, 1 or b, n, d)`, `seen` is `(g, b, p, d)`, and the result is `(g, b, n, d)`.
    """

    def __init__(self, generators: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        bound = (6 / (4 * width)) ** 0.5  # as in nn.MultiheadAttention, where q, k and v are one matrix
        self.in_proj_weight = nn.Parameter(torch.empty(generators, 3 * width, width).uniform_(-bound, bound))
        self.in_proj_bias = nn.Parameter(torch.zeros(generators, 3 * width))
        self.out_proj = Linears(generators, width, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, x.shape[-1]
        queries = _linear(x, weight[:, :width], bias[:, :width]).expand(-1, seen.shape[1], -1, -1)
        keys, values = _linear(seen, weight[:, width:], bias[:, width:]).chunk(2, dim=-1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(2, 3).flatten(0, 1) for part in (queries, keys, values)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        attended: Tensor = self.out_proj(mixed.unflatten(0, (len(x), -1)))
        return attended


class Decoders(nn.Module):
    """A pre-norm block for each of g generators, with self-attention of queries and cross-attention to image tokens."""

    def __init__(self, generators: int, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attentions(generators, width, heads)
        self.multihead_attn = Attentions(generators, width, heads)
        self.linear1, self.linear2 = Linears(generators, width, 4 * width), Linears(generators, 4 * width, width)
        self.norm1, self.norm2, self.norm3 = (Norms(generators, width) for _ in range(3))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Update queries `(g, 1 or b, n, d)` by attention to image tokens `(g, b, p, d)`, and return `(g, b, n, d)`."""
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed)
        x = x + self.multihead_attn(self.norm2(x), tokens)
        changed: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm3(x))))
        return changed


class Generators(nn.Module):
    """A set of g generators of low-rank weights, each with n learned queries that attend to the p tokens of an image.

    The module maps tokens `(b, p, d)` to weights `(g, b, n, out)`.
    """

    def __init__(self, generators: int, width: int, depth: int, heads: int, queries: int, out: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(generators, 1, queries, width))
        self.decoders = nn.ModuleList(Decoders(generators, width, heads) for _ in range(depth))
        self.norm = Norms(generators, width)
        self.weights_head = Linears(generators, width, out)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.queries
        tokens = tokens.expand(len(x), -1, -1, -1)
        for decoder in self.decoders:
            x = decoder(x, tokens)
        factors: Tensor = self.weights_head(self.norm(x))
        return factors


class VLoRA(Method[Step], ReadsPublished):
    """Low-rank updates of a language model, computed from images by `visual_proj`, `pos_embed`, `gen` and `Bs`."""

    name = "vlora"
    title = "VLoRA (Ma et al., NeurIPS 2024)"
    serves = ("vision LLM",)
    Config = VLoRAConfig
    example = {"dim": 16, "depth": 1, "rank": 2, "heads": 4, "skip": 2}
    touches = frozenset({"decoder"})

    @classmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        """Return the tensors and settings in `mm_projector.bin`, a checkpoint file of the VLoRA reference code.

        The caller must give the settings rank, heads, skip and letters if the checkpoint does not use the defaults.
        With one generator for each letter (projection), the checkpoint has tensors `gen.0.NAME`, `gen.1.NAME` and so
        on. With a single generator (`weights_sep=False`), the checkpoint has `gen.NAME`.
        """
        own = {key.rpartition("mm_projector.")[2]: tensor for key, tensor in state.items()}
        rows = own["Bs"].shape[1]  # letters times blocks
        numbers = sorted({int(match[1]) for match in map(re.compile(r"gen\.(\d+)\.").match, own) if match})
        prefixes = [f"gen.{number}." for number in numbers] or ["gen."]
        names = [key.removeprefix(prefixes[0]) for key in own if key.startswith(prefixes[0])]
        stacked = {f"gen.{name}": _stacked(name, [own.pop(prefix + name) for prefix in prefixes]) for name in names}
        letters = _published_letters(str(given.get("letters") or ""), len(numbers), rows)
        own |= {f"Bs.{letter}": part for letter, part in zip(letters, own.pop("Bs").chunk(len(letters), dim=1))}
        dim = own["visual_proj.weight"].shape[0]
        depth = len({name.split(".")[1] for name in names if name.startswith("decoders.")})
        return stacked | own, {"dim": dim, "depth": depth, "separate": bool(numbers), "letters": letters}

    def build(self, backbone: VisionLLM, class_names: Sequence[str]) -> None:  # type: ignore[override]
        config, tower = self.config, backbone.tower("decoder")
        if config.dim % config.heads:
            raise AdaptError(f"vlora: dim is {config.dim}; expected a multiple of heads, which is {config.heads}")
        self.updated = [index for index in range(len(tower.blocks)) if (index + 1) % config.skip == 0]
        if not self.updated:
            blocks = len(tower.blocks)
            raise AdaptError(
                f"vlora: skip is {config.skip}, but the decoder has {blocks} blocks: set skip to 1 to {blocks}"
            )
        widths = [_widths(tower, tower.blocks[index], self.config.letters) for index in self.updated]
        if any(each != widths[0] for each in widths):
            raise AdaptError(
                "vlora: the decoder's blocks have projections of different widths; expected equal widths in all "
                "updated blocks"
            )
        self._ins = {letter: shape[0] for letter, shape in widths[0].items()}
        patches, width = backbone.patch_shape()
        self.visual_proj = nn.Linear(width, config.dim)
        nn.init.trunc_normal_(self.visual_proj.weight, std=STD)
        nn.init.zeros_(self.visual_proj.bias)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, config.dim))
        blocks, letters = len(self.updated), len(config.letters)
        generators, queries = (letters, blocks) if config.separate else (1, letters * blocks)
        factors = max(self._ins.values()) * config.rank
        self.gen = Generators(generators, config.dim, config.depth, config.heads, queries, factors)
        self.Bs = nn.ParameterDict(
            {letter: nn.Parameter(torch.zeros(1, blocks, out * config.rank)) for letter, (_, out) in widths[0].items()}
        )
        self.to(backbone.device)

    def weights(self, features: Tensor) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """Return the low-rank factors of every updated decoder block, in order, for patch features `(b, p, d)`.

        A block has two factors for each letter (projection): A `(b, in, rank)`, which is computed from the image, and
        B `(1, out, rank)`, which is the same for all images.
        """
        tokens = self.visual_proj(features.to(self.pos_embed.dtype)) + self.pos_embed
        generated = self.gen(tokens)
        letters = self.config.letters
        if not self.config.separate:
            generated = generated[0].unflatten(1, (len(letters), -1)).transpose(0, 1)
        weights: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in self.updated]
        for letter, factors in zip(letters, generated.unflatten(-1, (-1, self.config.rank))):
            a = factors[:, :, : self._ins[letter]].unbind(1)
            b = self.Bs[letter].unflatten(-1, (-1, self.config.rank)).unbind(1)
            for block, pair in zip(weights, zip(a, b)):
                block[letter] = pair
        return weights

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        scale = (self.config.alpha or self.config.rank) / self.config.rank
        return [
            LowRank(index, SITES[letter], a, b, scale)
            for index, factors in zip(self.updated, self.weights(context.tokens("vision")))
            for letter, (a, b) in factors.items()
        ]


def _published_letters(given: str, generators: int, rows: int) -> str:
    """Return the letters (q, k, ...) of the projections that a checkpoint updates: `given`, or by default all.

    `rows` is the length of the checkpoint's `Bs`. `generators` is the number of numbered generators, or 0 for a single
    generator. Raises AdaptError if the letters do not fit these numbers.
    """
    letters = given or "".join(SITES)
    advice = "give the letters with which the checkpoint was trained, in the same order, such as letters=qkv"
    if generators and len(letters) != generators:
        raise AdaptError(
            f"letters are {letters!r}, but the checkpoint has {generators} generators, one for each letter: {advice}"
        )
    if rows % len(letters):
        raise AdaptError(
            f"letters are {letters!r}, but the checkpoint has {rows} factors; expected a multiple of {len(letters)}: "
            f"{advice}"
        )
    return letters


def _stacked(name: str, of_generators: list[Tensor]) -> Tensor:
    shapes = {tuple(tensor.shape) for tensor in of_generators}
    if len(shapes) > 1:
        raise AdaptError(f"the tensors {name} of the generators have shapes {sorted(shapes)}; expected equal shapes")
    return torch.stack(of_generators)


def _widths(tower: Tower, block: Block, letters: str) -> dict[str, tuple[int, int]]:
    """Return the input and output width of each letter's projection. Raises AdaptError for a missing projection."""
    widths = {}
    for letter in letters:
        projection = block.projections.get(SITES[letter])
        if letter == "m" and block.mlp is not None:
            widths[letter] = (tower.width, tower.width)
        elif projection is None:
            raise AdaptError(
                f"vlora: the language model's blocks have no projection {letter!r}: remove {letter!r} from letters"
            )
        else:
            widths[letter] = projection.shape[::-1]
    return widths
