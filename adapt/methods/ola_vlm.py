"""OLA-VLM: while visual tokens are learned, blocks of the language model must predict a second vision model's features.

Paper: Jain et al., OLA-VLM: Elevating Visual Perception in Multimodal LLMs with Auxiliary Embedding Distillation, 2024.
Reference: SHI-Labs/OLA-VLM `6032a6c` (no licence at its root: only its formulas were read).
Deviations:
* There is one teacher, any dual encoder, whose patches (and class token) are predicted. The reference has three, for
  depth, segmentation and generation, with tokens and blocks for each.
* A predictor is one layer of attention from learned queries to the states of visual and task tokens, and a perceptron;
  the reference reads the states of the system prompt too.
* All images of a batch are real, so that nothing is masked. In the reference, a row without an image still counts in
  the contrast of the others.
* The language model stays frozen, so that the second stage, which trains it without this loss, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.preprocess import Repixelled
from adapt.backbones.tower import Tower
from adapt.backbones.vision_llm import VisionLLM
from adapt.common.errors import AdaptError, about
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context, Terms, Training
from adapt.methods.base.method import LearnsAside
from adapt.methods.projector import Projector, ProjectorConfig

_LOG_SCALE = 2.0  # of the contrast, at the start
_LARGEST_SCALE = 100.0


class OLAVLMConfig(ProjectorConfig):
    teacher: str = Field(default="mini-clip-half", min_length=1)
    """The second vision model: a dual encoder by a name that `adapt backbones` lists."""
    blocks: tuple[int, ...] = Field(default=(-2,), min_length=1)
    """The blocks of the language model whose outputs must predict the teacher's features."""
    task_tokens: int = Field(default=8, ge=1)
    """The number of learned tokens behind each image."""
    embedding_weight: float = Field(default=0.5, gt=0)
    """The weight of the loss of each block."""
    contrast: float = Field(default=0.3, ge=0)
    """The weight of the contrastive loss beside the smooth L1."""
    heads: int = Field(default=4, ge=1)
    """The heads of a predictor's attention."""

    @model_validator(mode="after")
    def _answers_alone(self) -> OLAVLMConfig:
        if self.align != "none":
            raise ValueError(f"align is {self.align}; expected none, since ola_vlm has a loss of its own")
        return self


class OLAVLM(LearnsAside, Projector):
    """A projector with `task_tokens` `(m, d)` behind each image; predictors of features are not in adapters."""

    name = "ola_vlm"
    title = "OLA-VLM (Jain et al., 2024), with one teacher"
    serves = ("vision LLM",)  # type: ignore[assignment]
    Config = OLAVLMConfig
    learns_any_step = True
    example = {"task_tokens": 2, "heads": 1}

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        super().build(backbone, class_names)
        assert isinstance(backbone, VisionLLM)
        decoder = backbone.tower("decoder")
        count, heads = len(decoder.blocks), self.config.heads
        if wrong := [block for block in self.config.blocks if not -count <= block < count]:
            raise AdaptError(f"ola_vlm: blocks has {wrong[0]}, but the language model has {count} blocks")
        if decoder.width % heads:
            raise AdaptError(f"ola_vlm: heads is {heads}; expected a divisor of {decoder.width}, the decoder's width")
        self._blocks = {f"decoder.{range(len(decoder.blocks))[block]}" for block in self.config.blocks}
        self.task_tokens = nn.Parameter(0.02 * torch.randn(self.config.task_tokens, decoder.width))
        self.to(backbone.device)
        self._teacher: Callable[[Tensor], Tensor] | None = None

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        [tokens] = super().edits(tower, context)
        assert isinstance(tokens, Tokens)
        own = self.task_tokens.expand(len(tokens.values), 1, -1, -1)
        return [Tokens(torch.cat([tokens.values, own], dim=2))]

    def prepare(self, training: Training) -> None:
        """Load the teacher, and make a predictor of its features for each block."""
        with about(f"ola_vlm: method.teacher is {self.config.teacher!r}"):
            model: Any = training.alone(self.config.teacher).classifier
        backbone: Any = training.model.backbone
        teacher: DualEncoder = model.backbone
        pixels = Repixelled(backbone.preprocess, teacher.preprocess)
        self._teacher = lambda images: model.image_tokens(pixels(images)).float()
        _, tokens, width = self._teacher(backbone.blank()).shape
        of_decoder = self.task_tokens.shape[-1]
        made = {
            name.replace(".", "_"): Predictor(of_decoder, self.config.heads, tokens, width)
            for name in sorted(self._blocks)
        }
        self.set_aside(made, backbone.device)

    def finish(self, training: Training) -> None:
        """Free the memory of the teacher."""
        self._teacher = None

    def loss(self, step: Any) -> Terms:
        if self._teacher is None:  # outside a run, where nothing is learned
            terms: Terms = step.task_loss()
            return terms
        states = step.states(self._blocks)
        terms, target = step.task_loss(), self._teacher(step.inputs[0])
        for name, read in states.items():
            predictor: Any = self.aside[name.replace(".", "_")]
            regression, contrast = embedding_losses(predictor(read.float()), target, predictor.log_scale)
            both = regression + self.config.contrast * contrast
            terms[f"embedding_{name}"] = self.config.embedding_weight * both.mean()
        return terms


class Predictor(nn.Module):
    """A map of states `(b, k, d)` of a language model to predicted features `(b, n, w)` of another vision model."""

    def __init__(self, size: int, heads: int, tokens: int, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(1, tokens, size))
        self.norm = nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(size, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size), nn.GELU(), nn.Linear(size, width))
        self.log_scale = nn.Parameter(torch.tensor(_LOG_SCALE))

    def forward(self, states: Tensor) -> Tensor:
        queries, states = self.queries.expand(len(states), -1, -1), self.norm(states)
        read, _ = self.attention(queries, states, states, need_weights=False)
        predicted: Tensor = self.mlp(queries + read)
        return predicted


def embedding_losses(predicted: Tensor, target: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smooth L1 loss and the contrastive loss of each image `(b,)`, for features `(b, n, w)`.

    The contrast is of an image's prediction with the targets of all images of the batch, each flattened.
    """
    regression = F.smooth_l1_loss(predicted, target, reduction="none").mean((1, 2))
    one, other = (F.normalize(each.flatten(1), dim=-1) for each in (predicted, target))
    logits = log_scale.exp().clamp(max=_LARGEST_SCALE) * one @ other.T
    return regression, F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
