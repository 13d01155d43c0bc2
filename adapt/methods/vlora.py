"""An image becomes low-rank weights of the language model, in place of visual tokens.

Paper: Ma et al., Visual Perception by Large Language Model's Weights, NeurIPS 2024 (VLoRA).
Reference: VLoRA `623aa52`, `llava/model/VLoRA/weights_generater.py`, `modeling_llama_vlora.py`.
Deviations:
* Projections need not be square: the factors of each have its own widths, so grouped-query attention fits. The factors
  that do not depend on the image are `Bs.LETTER`, one tensor a letter; the reference stacks those of all letters in
  `Bs`, which `adapt convert` takes apart.
* A shared generator (`separate=False`) makes factors of the widest input; narrower projections take the first rows.
* The image's place in the prompt is left out; the reference keeps a token there and masks it.
* The defaults are those of the reference's fine-tuning script. Its pre-training script has dim 1024, which does not
  load into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from adapt.backbones.tower import Block, Tower
from adapt.backbones.vision_llm import VisionLLM
from adapt.edits import Edit, LowRank
from adapt.errors import AdaptError
from adapt.methods.base import Context, Method, MethodConfig

SITES = {"q": "q", "k": "k", "v": "v", "o": "out", "m": "mlp"}


class VLoRAConfig(MethodConfig):
    dim: int = Field(default=512, ge=1)
    """Width of the generator."""
    depth: int = Field(default=8, ge=1)
    """Its decoder blocks."""
    rank: int = Field(default=64, ge=1)
    """Of each update."""
    alpha: float | None = Field(default=None, gt=0)
    """The update is scaled by alpha / rank; left out: the rank."""
    letters: str = "qkvom"
    """What is updated: the attention's projections q k v o, and m, the MLP as a whole."""
    separate: bool = True
    """A generator for each letter, not one for all."""
    heads: int = Field(default=16, ge=1)
    """Of the generator's attention."""
    skip: int = Field(default=4, ge=1)
    """Every how manieth decoder block is updated: with 4, blocks 3, 7, 11 and so on."""

    @field_validator("letters")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value or set(value) - SITES.keys() or len(set(value)) < len(value):
            raise ValueError(f"letters are {value!r}; expected some of {''.join(SITES)}, each once")
        return value


class Generator(nn.Module):
    """`queries` learned queries read an image's tokens and become factors: `(b, p, dim) -> (b, queries, in * rank)`."""

    def __init__(self, dim: int, depth: int, heads: int, queries: int, out: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, queries, dim))
        settings: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.decoders = nn.ModuleList(nn.TransformerDecoderLayer(dim, heads, 4 * dim, **settings) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.weights_head = nn.Linear(dim, out)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.queries.expand(len(tokens), -1, -1)
        for decoder in self.decoders:
            x = decoder(x, tokens)
        factors: Tensor = self.weights_head(self.norm(x))
        return factors


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class VLoRA(Method):
    """`VLoRA(dim, depth, rank, alpha, letters, separate, heads, skip)`."""

    name = "vlora"
    title = "VLoRA (Ma et al., NeurIPS 2024)"
    serves = ("vision LLM",)
    Config = VLoRAConfig

    @property
    def touches(self) -> frozenset[str]:
        return frozenset({"decoder"})

    @classmethod
    def published(cls, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """From the reference's `mm_projector.bin`; give rank, heads and skip where they are not the defaults."""
        own = {key.rpartition("mm_projector.")[2]: tensor for key, tensor in state.items()}
        depth = len({key.split(".")[3] for key in own if key.startswith("gen.0.decoders.")})
        separate = "gen.1.queries" in own
        generators = len({key.split(".")[1] for key in own if key.startswith("gen.")})
        letters = "qkvom"[:generators] if separate else "qkvom"
        if own["Bs"].shape[1] % len(letters):
            raise AdaptError(f"a shared generator's {own['Bs'].shape[1]} factors are not of the letters {letters}")
        own |= {f"Bs.{letter}": part for letter, part in zip(letters, own.pop("Bs").chunk(len(letters), dim=1))}
        dim = own["visual_proj.weight"].shape[0]
        return own, {"dim": dim, "depth": depth, "separate": separate, "letters": letters}

    def build(self, backbone: VisionLLM, class_names: Sequence[str]) -> None:  # type: ignore[override]
        config, tower = self.config, backbone.tower("decoder")
        if config.dim % config.heads:
            raise AdaptError(f"vlora: dim is {config.dim}; expected a multiple of heads, {config.heads}")
        self.updated = [index for index in range(len(tower.blocks)) if (index + 1) % config.skip == 0]
        if not self.updated:
            blocks = len(tower.blocks)
            raise AdaptError(
                f"vlora: skip is {config.skip}, but the decoder has {blocks} blocks: set it to 1 to {blocks}"
            )
        widths = [_widths(tower, tower.blocks[index], self.config.letters) for index in self.updated]
        if any(each != widths[0] for each in widths):
            raise AdaptError("vlora: the decoder's blocks have projections of different widths")
        self._ins = {letter: shape[0] for letter, shape in widths[0].items()}
        patches, width = backbone.patch_shape()
        self.visual_proj = nn.Linear(width, config.dim)
        _initialise(self.visual_proj)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, config.dim))
        shape = (config.dim, config.depth, config.heads)
        if config.separate:
            made = [Generator(*shape, len(self.updated), self._ins[letter] * config.rank) for letter in config.letters]
        else:
            made = [Generator(*shape, len(self.updated) * len(config.letters), max(self._ins.values()) * config.rank)]
        self.gen = nn.ModuleList(made)
        self.Bs = nn.ParameterDict(
            {
                letter: nn.Parameter(torch.zeros(1, len(self.updated), out * config.rank))
                for letter, (_, out) in widths[0].items()
            }
        )
        self.to(backbone.device)

    def weights(self, features: Tensor) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """Patch features `(b, p, d)` to the factors of every updated decoder block, in the order of the blocks.

        For each letter A `(b, in, rank)`, from the images, and B `(1, out, rank)`, the same for all.
        """
        tokens = self.visual_proj(features.to(self.pos_embed.dtype)) + self.pos_embed
        letters, by_rank = self.config.letters, (-1, self.config.rank)
        made = [generator(tokens) for generator in self.gen]
        if not self.config.separate:
            made = list(made[0].chunk(len(letters), dim=1))
        found: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in self.updated]
        for letter, factors in zip(letters, made):
            a = factors.unflatten(-1, by_rank)[:, :, : self._ins[letter]].unbind(1)
            b = self.Bs[letter].unflatten(-1, by_rank).unbind(1)
            for block, pair in zip(found, zip(a, b)):
                block[letter] = pair
        return found

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        scale = (self.config.alpha or self.config.rank) / self.config.rank
        return [
            LowRank(index, SITES[letter], a, b, scale)
            for index, factors in zip(self.updated, self.weights(context.tokens("vision")))
            for letter, (a, b) in factors.items()
        ]


def _widths(tower: Tower, block: Block, letters: str) -> dict[str, tuple[int, int]]:
    """Input and output width of what each letter stands for. AdaptError where the block has none of it."""
    found = {}
    for letter in letters:
        projection = block.projections.get(SITES[letter])
        if letter == "m" and block.mlp is not None:
            found[letter] = (tower.width, tower.width)
        elif projection is None:
            raise AdaptError(
                f"vlora: the language model's blocks have no projection {letter!r}: leave it out of letters"
            )
        else:
            found[letter] = projection.shape[::-1]
    return found
