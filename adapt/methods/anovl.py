"""AnoVL: zero-shot anomaly localisation, by texts that describe normal and abnormal states.

Paper: Deng et al., AnoVL: Adapting Vision-Language Models for Unified Zero-shot Anomaly Localization, arXiv 2308.15939.
Reference: AnoVL `3a70bfd`, `open_clip/transformer.py`, `model.py`, `prompt_ensemble.py`, `vl_test.py`.
Deviations:
* The score of an image comes from one view; the reference's script for MVTec AD averages 22 views. The score is scaled
  by the backbone's scale, which keeps the ranking; maps are not scaled, as in the reference.
* At test time every image gets a fresh optimiser and the same initial weights and noise; in the reference, moments
  carry over from image to image. VisA's tiles are left out.
* There may be any number of classes, each with its states; one is normal and all others are abnormal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Generator, Tensor
from torch.optim import AdamW

from adapt.backbones.base import DualEncoder
from adapt.backbones.tokenizer import TextTokenizer
from adapt.common.errors import AdaptError, nearest
from adapt.common.untraced import untraced
from adapt.methods.base import ImageStep, Method, MethodConfig
from adapt.methods.base.traits import AveragesPrompts, DrawsMaps, normal_label
from adapt.prompts import Prompt, of_text, readable

_INTACT: tuple[str, ...] = ("normal {}", "flawless {}", "perfect {}", "unblemished {}")
_INTACT += ("{} without flaw", "{} without defect", "{} without damage")
_DAMAGED: tuple[str, ...] = ("damaged {}", "abnormal {}", "imperfect {}", "blemished {}")
_DAMAGED += ("{} with flaw", "{} with defect", "{} with damage")
_STATES = {"normal": _INTACT, "abnormal": _DAMAGED}
_OF_OBJECTS = ("industrial photo", "industrial image", "manufacturing image")
_OF_TEXTURES = ("industrial photo", "textural photo", "surface picture")
_LOOKS = ("cropped ", "close-up ", "bright ", "dark ", "jpeg corrupted ", "blurry ")


def _placed(states: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    for name, phrases in states.items():
        for phrase in phrases:
            if "{}" not in phrase:
                raise ValueError(f"the phrase {phrase!r} of {name!r} has no {{}}: write {{}} for the object's name")
    return states


def _odd(count: int) -> int:
    if count % 2 == 0:
        raise ValueError("an odd number is expected, so that each patch is at the centre of its averaging window")
    return count


class AnoVLConfig(MethodConfig):
    object: str = Field(default="object", min_length=1)
    """The inspected object, such as screw."""
    texture: bool = False
    """Whether the object is a texture, such as leather, which gets other words for its pictures."""
    normal: str = "normal"
    """The class of normal images."""
    states: Annotated[dict[str, tuple[str, ...]], AfterValidator(_placed)] = _STATES
    """Phrases for the object, {}, in each class; another class is described by its own name, as in "rusty {}"."""
    smoothing: Annotated[int, AfterValidator(_odd)] = Field(default=3, ge=1)
    """Maps are averaged over windows of this many rows and columns of patches, an odd number; 1 does not average."""
    steps: int = Field(default=0, ge=0)
    """Steps at test time on each image separately; 5 in the reference."""
    adapter: Literal["texts", "linear"] = "texts"
    """What the steps train: how much of each text is added to a patch (as for MVTec AD), or a linear map (VisA)."""
    lr: float = Field(default=0.001, gt=0)
    """The learning rate of AdamW, whose weight decay is 0.01."""
    noise: float = Field(default=0.055, ge=0)
    """The standard deviation of the noise that makes patch features look abnormal in a step."""


class AnoVL(Method[ImageStep], DrawsMaps, AveragesPrompts):
    """Zero-shot anomaly localisation by prompts for `object`. With `steps`, an adapter is tuned on each test image."""

    name = "anovl"
    title = "AnoVL (Deng et al., 2023)"
    Config = AnoVLConfig
    prompt_average = "raw"
    learns_any_step = False

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        for name in self.config.states if self.config.states != _STATES else ():
            if name not in class_names:
                raise AdaptError(f"anovl: states has {name!r}, which is not a class; {nearest(name, class_names)}")

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        pictures = _pictures(_OF_TEXTURES if self.config.texture else _OF_OBJECTS)
        phrases = self.config.states.get(class_name) or (f"{readable(class_name)} {{}}",)
        states = [phrase.replace("{}", self.config.object) for phrase in phrases]
        return [of_text(tokenizer, picture.replace("{}", state)) for state in states for picture in pictures]

    def logits(self, step: ImageStep) -> Tensor:
        # nothing edits the vision tower, and the pass for patch features also gives these
        return step.cosine_logits(F.normalize(step.class_features, dim=-1), step.frozen_features)

    def anomalies(self, step: ImageStep) -> Tensor:
        classes, patches = F.normalize(step.class_features, dim=-1), step.local_features
        normal = normal_label(self, step.model.class_names)
        if self.config.steps:
            texts = torch.cat(step.prompt_features)
            patches = torch.stack([self._adapted(own, classes, texts, normal) for own in patches])
        abnormal = 1 - _log_p(patches.float(), classes)[..., normal].exp()
        around = self.config.smoothing // 2
        padded = F.pad(abnormal[:, None], [around] * 4, mode="replicate")
        smooth = F.avg_pool2d(padded, self.config.smoothing, stride=1)
        return F.interpolate(smooth, step.images.shape[-2:], mode="bilinear", align_corners=True)[:, 0]

    @untraced  # steps of an optimiser cannot be traced
    def _adapted(self, patches: Tensor, classes: Tensor, texts: Tensor, normal: int) -> Tensor:
        """Return features `(rows, columns, e)` of an image's patches, passed through an adapter trained on this image.

        The adapter learns to classify the patches confidently as normal, and patches with added noise as abnormal.
        """
        with torch.inference_mode(False), torch.enable_grad():  # an inference tensor cannot enter a graph
            patches, classes, texts = (each.detach().float().clone() for each in (patches, classes, texts))
            draws = Generator().manual_seed(0)
            adapter = PatchAdapter(texts, draws, self.config.adapter == "linear")
            optimizer = AdamW(adapter.parameters(), lr=self.config.lr, weight_decay=0.01)
            for _ in range(self.config.steps):
                noise = self.config.noise * torch.randn(patches.shape, generator=draws).to(patches.device)
                optimizer.zero_grad()
                loss = adaptation_loss(adapter(patches), adapter(patches + noise), classes, normal)
                loss.backward()
                optimizer.step()
            return adapter(patches).detach()


class PatchAdapter(torch.nn.Module):
    """A residual adapter that adds text features `(m, e)`, weighted by the layer `ad`, to patch features `(..., e)`.

    If `linear`, the output of the layer itself is added.
    """

    def __init__(self, texts: Tensor, draws: Generator, linear: bool = False) -> None:
        super().__init__()
        self.texts = None if linear else texts
        count, size = (texts.shape[1], texts.shape[1]) if linear else texts.shape
        self.ad = torch.nn.Linear(size, count, device=texts.device)
        with torch.no_grad():
            for parameter in self.ad.parameters():  # torch's distribution, with the same draws for every image
                parameter.copy_((2 * torch.rand(parameter.shape, generator=draws) - 1) / size**0.5)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.ad(F.normalize(x, dim=-1))
        return (x + (mixed if self.texts is None else mixed.tanh() @ self.texts)) / 2


def adaptation_loss(patches: Tensor, noisy: Tensor, classes: Tensor, normal: int) -> Tensor:
    """Return the loss for classifying the adapted `patches` `(..., e)` as normal and `noisy` patches as abnormal.

    The loss is the entropy of the predictions for `patches`, plus half the sum of two cross-entropies, of `patches`
    with normal and of `noisy` with abnormal.
    """
    log_p = _log_p(patches, classes)
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    against = -torch.log1p(-_log_p(noisy, classes)[..., normal].exp()) - log_p[..., normal]
    return entropy + against.mean() / 2


def _log_p(patches: Tensor, classes: Tensor) -> Tensor:
    """Return log-probabilities `(..., n)` of classes for patches `(..., e)`, from unscaled cosines, as in the paper."""
    return (F.normalize(patches, dim=-1) @ classes.to(patches.dtype).T).log_softmax(-1)


def _pictures(kinds: Sequence[str]) -> list[str]:
    """Return 22 prompt templates for each kind of picture in `kinds`, such as "a photo of the {}"."""
    phrases = []
    for kind in kinds:
        article = "an" if kind[0] in "aeiou" else "a"
        phrases += [f"a {look}{kind} of {which} {{}}" for look in _LOOKS for which in ("the", "a")]
        for which in ("a", "the"):
            plain = f"{article} {kind} of {which}"
            phrases += [f"{plain} {{}}", f"{plain} small {{}}", f"{plain} large {{}}"]
            phrases += [f"{plain} {{}} for visual inspection", f"{plain} {{}} for anomaly detection"]
    return phrases
