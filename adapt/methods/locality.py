"""Locality alignment (MaskEmbed): patch tokens from which the features of masked images can be rebuilt, without labels.

Paper: Covert et al., Locality Alignment Improves Vision-Language Models, ICLR 2025.
Reference: iancovert/locality-alignment `092ed8e` (MIT), `scripts/train.py`, `locality_alignment/*_utils.py`.
Deviations:
* The vision tower learns by LoRA in all projections; the reference trains all its weights.
* Targets are divided by their standard deviation in the first batch; the reference measures it on validation images.
* A second decoder, `control`, learns at the same time to rebuild the same features from the tokens of the frozen tower.
  Only what the adapted tower gains over it was learned by the tower. In the reference this is a run of its own.
* The attention of the student has no soft cap, as the reference's models called `vit_*`; `svit_*` cap it.
* Masks are drawn by torch's generator, and one of each image's masks shows all. Masks in blocks, the losses and the
  heads of the ablations are left out.

The frozen tower, shown only some patches of an image, is the teacher. The student sees the whole image once, and a
small decoder rebuilds the teacher's tokens from the student's tokens of those patches. Nothing reaches the class token
of the student, whose features may drift: `train.terms={distill: 1}` holds them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from itertools import islice
from math import isqrt
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.tower import TowerName
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.engine.hooks import token_count
from adapt.methods.base import ImageStep, Terms, Training
from adapt.methods.base.method import LearnsAside
from adapt.methods.base.traits import Reports
from adapt.methods.lora import LoRA, PlainLoRAConfig, Projections

logger = logging.getLogger("adapt")

_LAYER_SCALE = 1e-6  # at the start
_MEASURED = 8  # batches of held-out images


class LocalityConfig(PlainLoRAConfig):
    published: ClassVar[dict[str, object]] = {"rank": 16, "alpha": 4.0, "dropout": 0.0, "input_gradient": True}
    projections: Projections = "all"
    """The adapted projections: names, a string of the letters q k v o, or all."""
    only = "vision"
    towers: tuple[TowerName, ...] = ("vision",)
    """The vision tower, as no text takes part."""
    decoder_layers: int = Field(default=2, ge=1)
    """The number of blocks of the decoder that rebuilds the teacher's tokens."""
    decoder_width: int | None = Field(default=None, ge=1)
    """The width of the decoder; by default that of the vision tower."""

    skip_blocks: int = Field(default=1, ge=0)
    """The number of last blocks without which the teacher makes its tokens."""
    antithetical: bool = True
    """Whether a second mask of each image shows the patches that the first hides."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """The probability with which a mask shows a patch; by default all numbers of patches are equally probable."""


class Locality(LearnsAside, LoRA[ImageStep], Reports):
    """LoRA of the vision tower, `vision.BLOCK.PROJECTION.lora_A` and `lora_B`.

    Two decoders are set aside: `locality` of the adapted tower's tokens, and `control` of the frozen tower's.
    """

    name = "locality"
    title = "Locality alignment by MaskEmbed (Covert et al., ICLR 2025), by LoRA"
    serves = ("dual encoder",)
    Config = LocalityConfig
    tasks = frozenset({"classes", "images", "pairs", "records"})
    reads = frozenset({"images"})
    weighs_classes = False
    learns_any_step = True
    example = {"rank": 2, "decoder_layers": 1, "decoder_width": 12}
    _scale: Tensor

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        super().build(backbone, class_names)
        tower = backbone.tower("vision")
        least = self.config.skip_blocks + 1
        if len(tower.blocks) < least or not isinstance(tower.final_norm, nn.LayerNorm):
            raise AdaptError(
                f"locality: the vision tower of {backbone.describe()} has {len(tower.blocks)} blocks and ends with "
                f"{type(tower.final_norm).__name__}; expected {least} blocks or more, and a layer norm at the end"
            )
        self._blocks, self._norm = len(tower.blocks), (deepcopy(tower.final_norm).float(),)  # in no adapter
        self._tokens = token_count(backbone)
        self._patches = isqrt(self._tokens) ** 2  # images are square, and other tokens stand before the patches
        width, act = self.config.decoder_width or tower.width, tower.blocks[0].act
        heads = max(each for each in range(1, tower.heads + 1) if width % each == 0)
        sizes = tower.width, self._tokens, width, heads, self.config.decoder_layers
        decoders = {name: Rebuilder(*sizes, lambda: deepcopy(act)) for name in ("locality", "control")}
        self.set_aside(decoders, backbone.device)
        self.register_buffer("_scale", torch.zeros((), device=backbone.device), persistent=False)

    def training_state(self) -> dict[str, Tensor]:
        return {"scale": self._scale} | super().training_state()

    def loss(self, step: ImageStep) -> Terms:
        """Return the mean squared error of the rebuilt tokens, from adapted and from frozen tokens.

        In evaluation mode, all batches have the same masks.
        """
        always = None if self.training else torch.Generator().manual_seed(0)
        draws = torch.rand(len(step.images), 1 + self._patches, generator=always)
        return self.errors(step, masks_of(draws, self.config.antithetical, self.config.share))

    def errors(self, step: ImageStep, masks: Tensor) -> Terms:
        """Return the errors of both decoders for `masks` `(b, m, p)` of shown patches, of which the last shows all."""
        masks = masks.to(step.images.device)
        frozen, targets = self.targets(step, masks)
        tokens = {"locality": step.model.vision_tokens(step.images), "control": frozen}
        return {
            name: F.mse_loss(self.aside[name](each.float(), self.seen(masks)), targets) for name, each in tokens.items()
        }

    @torch.no_grad()
    def targets(self, step: ImageStep, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frozen tower's tokens `(b, l, d)` of whole images, and those to rebuild, `(b, m, l, d)`.

        Targets are outputs of the last block but `skip_blocks`, through the final norm, of images in which hidden
        patches are 0.
        """
        last, rebuilt = (f"vision.{self._blocks - 1 - skipped}" for skipped in (0, self.config.skip_blocks))
        pairs = step.model.frozen_blocks(hidden(step.images, masks).flatten(0, 1), sorted({last, rebuilt}))
        (_, after), (_, taken), [norm] = pairs[last], pairs[rebuilt], self._norm
        targets = norm.to(taken.device)(taken.float()).unflatten(0, masks.shape[:2])
        if not self._scale:
            self._scale.copy_(1 / targets.std())
        return after.unflatten(0, masks.shape[:2])[:, -1], self._scale * targets

    def seen(self, masks: Tensor) -> Tensor:
        """Return the mask `(b, m, l)` of all tokens: a class token is never shown."""
        return F.pad(masks, (self._tokens - self._patches, 0))

    def prepare(self, training: Training) -> None:
        if not training.items("val"):
            logger.warning(
                "locality: there are no validation images, so that the run cannot tell what the tower gained over the "
                "control: put some images in the part val"
            )

    @torch.no_grad()
    def finish(self, training: Training) -> None:
        """Measure the errors of both decoders on held-out images."""
        held_out: list[Any] = list(islice(training.held_back(), _MEASURED)) if training.items("val") else []
        if held_out:
            every = [self.loss(step) for step in held_out]
            training.note(
                rebuilding={name: float(torch.stack([each[name] for each in every]).mean()) for name in every[0]}
            )

    @classmethod
    def lines(cls, metrics: JsonObject) -> Iterable[str]:
        if errors := metrics.get("rebuilding"):
            gained = 100 * (1 - errors["locality"] / errors["control"])
            what = f"{gained:.1f} % less is due to the tower" if gained > 0 else "the tower gained nothing"
            yield (
                f"rebuilding error {errors['locality']:.4f} of masked held-out images, with the tower frozen "
                f"{errors['control']:.4f}: {what}"
            )


class Rebuilder(nn.Module):
    """A map of tokens `(b, l, d)` and masks `(b, m, l)` to rebuilt tokens `(b, m, l, d)`.

    `head` is a new norm and a linear map of the student's tokens, which begins at zero. Blocks are those of a ViT.
    """

    def __init__(
        self, width: int, tokens: int, hidden_width: int, heads: int, layers: int, act: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden_width))
        for parameter in self.head[1].parameters():
            nn.init.zeros_(parameter)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, hidden_width))
        form: dict[str, Any] = {"qkv_bias": True, "init_values": _LAYER_SCALE, "act_layer": act}
        self.blocks = nn.Sequential(
            *(Block(hidden_width, heads, norm_layer=nn.LayerNorm, **form) for _ in range(layers))
        )
        self.norm, self.out = nn.LayerNorm(hidden_width), nn.Linear(hidden_width, width)

    def forward(self, tokens: Tensor, masks: Tensor) -> Tensor:
        shown = self.head(tokens)[:, None] * masks[..., None]
        rebuilt: Tensor = self.out(self.norm(self.blocks(shown.flatten(0, 1) + self.pos_embed)))
        return rebuilt.unflatten(0, masks.shape[:2])


def masks_of(draws: Tensor, antithetical: bool = True, share: float | None = None) -> Tensor:
    """Return masks `(b, 3, p)` of patches to show: those whose draw is above the first, the others, and all.

    With uniform `draws` `(b, 1 + p)`, all numbers of patches are equally probable. With `share`, those below it are
    shown instead. The others are left out, `(b, 2, p)`, if not `antithetical`.
    """
    some = draws[:, 1:] > draws[:, :1] if share is None else draws[:, 1:] < share
    return torch.stack([some, *([~some] if antithetical else []), torch.ones_like(some)], dim=1)


def hidden(images: Tensor, masks: Tensor) -> Tensor:
    """Return images `(b, m, 3, h, w)` in which the patches that `masks` `(b, m, p)` leaves out are 0.

    Pixels at the right and lower edge that belong to no patch, as the tower does not read them, are 0 as well.
    """
    side = isqrt(masks.shape[-1])
    height, width = (size // side for size in images.shape[-2:])
    grid = masks.unflatten(-1, (side, side)).repeat_interleave(height, -2).repeat_interleave(width, -1)
    shown = F.pad(grid, (0, images.shape[-1] - side * width, 0, images.shape[-2] - side * height))
    return images[:, None] * shown[:, :, None].to(images.dtype)
