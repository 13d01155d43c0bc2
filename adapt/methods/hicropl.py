"""HiCroPL: deep prompts in both towers; text refines vision in early blocks, and vision refines text in later ones.

Paper: Zheng et al., Hierarchical Cross-modal Prompt Learning for Vision-Language Models, ICCV 2025.
Reference: HiCroPL `2c2b2f2`, `trainers/hicropl.py`, `clip/model.py`.
Deviations:
* The reference writes the refined prompts into the prompts' storage, so that no gradient reaches the networks that
  refine: they stay random, and every call of the model, in evaluation too, changes the prompts and all later answers.
  `flow="trained"`, the default, is what the paper describes: the networks learn with the prompts, and training ends by
  replacing the prompts by the refined ones. `flow="published"` is the reference's training step, with networks drawn
  from the seed; evaluation changes nothing. `flow="none"` leaves the networks out.
* Adapters hold prompts alone; the reference saves the random networks and a frozen image tower too.
* Both towers' prompts are called `text.I` and `vision.I` after the block that they enter, may differ in number and
  depth, and are separate tensors from the start. In the reference, vision prompts, and the proxy tokens of a tower, are
  one tensor each until they are moved to a GPU.
* Frozen class features come from `descriptors`, or from a template; the reference has files of texts for 15 data sets.
* All tensors are fp32 whatever the backbone's precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.common.errors import AdaptError
from adapt.methods.base import ImageStep, Terms, Training
from adapt.methods.base.descriptors import Descriptors, HoldsDescriptors
from adapt.methods.base.method import LearnsAside
from adapt.methods.base.traits import unpublished
from adapt.methods.ivlp import IVLP, IVLPConfig
from adapt.methods.zero_shot import Template

HEADS = 8  # of every attention


class HiCroPLConfig(IVLPConfig):
    n_ctx_text: int = Field(default=16, ge=1)
    n_ctx_vision: int = Field(default=16, ge=1)
    ctx_init: str = ""
    project: int | None = Field(default=None, ge=1, multiple_of=HEADS)
    flow: Literal["trained", "published", "none"] = "trained"
    """How prompts refine each other: by networks that learn with them and are then folded into them, by random networks
    before each training step (as the published code does), or not at all."""
    cross_block: int | None = Field(default=None, ge=1)
    """The block, counted from 0, from which vision prompts refine text prompts; before it, text refines vision. null:
    the middle of the prompts' blocks (published: 6 of 12)."""
    weight: float = Field(default=12.0, ge=0)
    """Weight of the distances to the frozen features: one minus the mean cosine, over classes and over images."""
    descriptors: Descriptors | None = None
    """Texts by class whose features are averaged for the frozen class features, used as they are, or their file (see
    `descriptions`). A class without texts, and null, use the template."""
    template: Template = "a photo of a {}."
    """The prompt of the frozen model for a class without descriptors, with {} for the class name."""


class HiCroPL(LearnsAside, IVLP, HoldsDescriptors):
    """Deep prompts that refine each other. `HiCroPL(flow)` trains `text.I` and `vision.I` `(k, d)` for each block I.

    Frozen features of images and classes are added to the prompted ones before they are compared.
    """

    name = "hicropl"
    title = "HiCroPL (Zheng et al., ICCV 2025)"
    Config = HiCroPLConfig
    serves = ("dual encoder",)
    learns_any_step = True
    example = {"n_ctx_text": 4, "n_ctx_vision": 3, "depth_text": 2, "depth_vision": 2}
    published = classmethod(unpublished)  # their answers change from call to call

    def __init__(self, **config: object) -> None:
        super().__init__(**config)
        self.begins_anew = self.config.flow == "trained"  # new networks would undo the prompts of an adapter

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        super().build(backbone, class_names)
        self.hold_descriptors()
        self.set_aside({}, backbone.device)
        if self.config.flow == "none":
            return
        depth = min(len(self.text), len(self.vision))
        cross = depth // 2 if self.config.cross_block is None else self.config.cross_block
        if not 0 < cross < depth:
            raise AdaptError(
                f"hicropl: cross_block is {cross}, but prompts enter {depth} blocks of both towers; expected 1 to "
                f"{depth - 1}: set method.cross_block, more blocks (method.depth_text, method.depth_vision), or "
                "method.flow=none"
            )
        self.config = self.config.model_copy(update={"cross_block": cross})

    def prepare(self, training: Training) -> None:
        if self.config.flow == "none":
            return
        (_, text), (_, vision) = self.text[0].shape, self.vision[0].shape
        cross = self.config.cross_block
        networks = {
            "vision": Refinement(cross, text, vision),
            "text": Refinement(len(self.vision) - cross, vision, text),
        }
        self.set_aside(networks, self.text[0].device)

    def trains(self) -> Iterable[nn.Parameter]:
        return super().trains() if self.config.flow == "trained" else self.parameters()

    def tokens(self, tower: str) -> Iterable[Tensor]:
        return self.refined(tower) if self.config.flow == "trained" and self.aside else super().tokens(tower)

    def refined(self, tower: str) -> list[Tensor]:
        """Return the prompts of each block of a tower, refined by the other tower's in early or in later blocks."""
        cross, text, vision = self.config.cross_block, list(self.text), list(self.vision)
        if tower == "vision":
            return [*self.aside["vision"](vision[:cross], text[:cross]), *vision[cross:]]
        return [*text[:cross], *self.aside["text"](text[cross:], vision[cross:])]

    @torch.no_grad()
    def fold(self) -> None:
        """Replace the prompts of both towers by the refined prompts."""
        for tower, prompts in (("vision", self.vision), ("text", self.text)):
            for prompt, values in zip(prompts, self.refined(tower), strict=True):
                prompt.copy_(values)

    def finish(self, training: Training) -> None:
        if self.config.flow == "trained":
            self.fold()
        self.set_aside({}, self.text[0].device)

    def logits(self, step: ImageStep) -> Tensor:
        return step.cosine_logits(self._classes(step), self._images(step))

    def loss(self, step: ImageStep) -> Terms:
        if self.config.flow == "published" and self.aside and torch.is_grad_enabled():
            self.fold()
        images, frozen = self._images(step), step.frozen_features
        classes, templates = self._classes(step), step.frozen_class_features(self.texts)
        return super().loss(step) | {
            "text": self.config.weight * (1 - F.cosine_similarity(classes, templates).mean()),
            "image": self.config.weight * (1 - F.cosine_similarity(images, frozen).mean()),
        }

    def texts(self, class_name: str) -> Sequence[str]:
        """Return the texts of a class for its frozen feature: its descriptors, or else the template."""
        return (self.config.descriptors or {}).get(class_name) or [self.config.template]

    def _images(self, step: ImageStep) -> Tensor:
        return F.normalize(step.features + step.frozen_features, dim=-1)

    def _classes(self, step: ImageStep) -> Tensor:
        return F.normalize(step.class_features + step.frozen_class_features(self.texts), dim=-1)


class Refinement(nn.Module):
    """A network that refines the prompts of a tower by those of another, the source.

    The prompts of each source block are summarised in one token, and all refined prompts attend to the summaries.
    """

    def __init__(self, blocks: int, source: int, target: int) -> None:
        super().__init__()
        self.summaries = nn.ModuleList(BlockSummary(source) for _ in range(blocks))
        self.linear_q = nn.Linear(target, target)
        self.linear_k, self.linear_v = nn.Linear(source, target), nn.Linear(source, target)
        self.ln_1, self.ln_2 = nn.LayerNorm(target), nn.LayerNorm(target)
        self.attn = nn.MultiheadAttention(target, HEADS)
        self.c_fc, self.c_proj = nn.Linear(target, 4 * target), nn.Linear(4 * target, target)

    def forward(self, prompts: Sequence[Tensor], sources: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the refined `prompts`, `(k, d)` for each block, from the source prompts of each block."""
        summaries = torch.cat([summary(each) for summary, each in zip(self.summaries, sources, strict=True)])
        queries = self.linear_q(torch.cat(list(prompts)))
        keys, values = self.ln_1(self.linear_k(summaries)), self.ln_1(self.linear_v(summaries))
        queries = queries + self.attn(self.ln_1(queries), keys, values, need_weights=False)[0]
        inner = self.c_fc(self.ln_2(queries))
        refined = queries + self.c_proj(inner * torch.sigmoid(1.702 * inner))  # QuickGELU
        return refined.split([len(each) for each in prompts])


class BlockSummary(nn.Module):
    """A learned token that attends to the prompts `(k, d)` of a block, as their summary `(1, d)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proxy_token = nn.Parameter(torch.randn(1, width))
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, HEADS)

    def forward(self, prompts: Tensor) -> Tensor:
        seen = self.ln_1(prompts)
        attended, _ = self.attn(self.ln_1(self.proxy_token), seen, seen, need_weights=False)
        summary: Tensor = self.ln_2(self.proxy_token + attended)
        return summary
