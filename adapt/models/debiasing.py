"""Answers of a vision-language model, less what it would have answered without seeing the image.

Paper: Zhang et al., Debiasing Multimodal Large Language Models via Penalization of Language Priors, ACM MM 2025. The
mode `noise`: Leng et al., Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive
Decoding, CVPR 2024 (VCD).
Reference: yfzhang114/LLaVA-Align `dfbecfa`, `vcd_utils`, `experiments/utils/metrics.py`,
`experiments/eval/eval_pope_calibrate.py`.
Deviations:
* Options of several tokens are compared by the mean log-probability of their tokens (`choose`). The reference
  compares the first token alone.
* Rows with and without the image are in one batch, and greedy decoding and beams are debiased; sampling is refused, as
  each row would draw a token of its own. The reference takes one image at a time, and debiases only where it samples.
* Noise is added to pixels scaled to -1 to 1, and cut to what a picture can hold; the reference adds it to what its
  preprocessing returns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from adapt.backbones.encoded_images import EncodedImage, PreparedImage
from adapt.chats import Chat
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from PIL.Image import Image

    from adapt.backbones.native import ChatImages

Mode = Literal["none", "unk", "both", "noise"]
"""What stands in place of the image: nothing, the unknown token, the mean of these two, or the image in noise."""
NOISED, STEPS = 500, 1000  # the step of the diffusion whose noise is added, and all its steps
_LEAST = 1e-4  # is added to the probabilities that are divided by


class ChatAtUse(BaseModel, extra="forbid", frozen=True):
    """The settings of a native vision-language model that can be changed at inference."""

    calibrate: Mode | None = None
    """The mode by which probabilities of classes and options are divided."""
    debias: Mode | None = None
    """The mode by which answers in words are debiased."""
    alpha: float = Field(default=1.0, ge=0)
    """How much `debias` takes out."""
    beta: float = Field(default=0.1, gt=0, le=1)
    """The share of the most probable token's probability below which a token is left out by `debias`."""
    describe: str | None = Field(default=None, min_length=1)
    """A prompt, such as "Describe the image.", whose answer is put before questions that are answered in words."""


def calibrated(logits: Tensor, without: Tensor) -> Tensor:
    """Return the logits `(b, n)` of options, divided by the probabilities `without` the image `(b or 1, n)`.

    If an image says no more than its absence, all options are equally probable.
    """
    return logits.log_softmax(-1) - (without + _LEAST).log()


def debiased(scores: Tensor, without: Tensor, alpha: float, beta: float) -> Tensor:
    """Return scores `(b, v)` of tokens, less `alpha` times those `without` the image `(b, v)`.

    A token is left out (minus infinity) if, with the image, its probability is below `beta` times the largest.
    """
    least = scores.max(-1, keepdim=True).values + math.log(beta)
    return ((1 + alpha) * scores - alpha * without).masked_fill(scores < least, -torch.inf)


class Debiasing:
    """A logits processor of transformers' `generate`, which debiases each next token of `groups` equal groups of rows.

    The first group sees the images. All groups get its scores, so that they go on with the same tokens. The class does
    without transformers' superclass, because importing transformers takes a second.
    """

    def __init__(self, groups: int, alpha: float, beta: float) -> None:
        self._groups, self._alpha, self._beta = groups, alpha, beta

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        seen, *others = scores.float().chunk(self._groups)
        without = torch.stack(others).mean(0)
        chosen = debiased(seen, without, self._alpha, self._beta).log_softmax(-1)  # which beams add up
        return chosen.repeat(self._groups, 1)


ImagesAndChats = tuple[list["ChatImages"], list[Chat]]  # of several conversations


def without_images(
    mode: Mode, images: Sequence[ChatImages], chats: Sequence[Chat], unknown: str | None
) -> list[ImagesAndChats]:
    """Return conversations as the model reads them without seeing their images, in one way or two.

    `unknown` is the tokenizer's unknown token. Raises AdaptError if there is none and `mode` needs one, and if noise is
    to be added to images that are encoded already.
    """
    if mode == "both":
        return without_images("none", images, chats, unknown) + without_images("unk", images, chats, unknown)
    if mode == "noise":
        return [([[noised(image) for image in own] for own in images], list(chats))]
    if mode == "unk" and unknown is None:
        raise AdaptError("the tokenizer has no unknown token to put in an image's place: use none or noise")
    return [([[] for _ in chats], [chat.without_images(unknown if mode == "unk" else None) for chat in chats])]


def noised(image: Image | PreparedImage | EncodedImage) -> Image:
    """Return a picture as it is half-way through a diffusion, by noise from torch's generator."""
    from PIL import Image

    if isinstance(image, PreparedImage | EncodedImage):
        raise AdaptError("noise is added to pictures, and these are encoded already: switch the cache off (--no-cache)")
    pixels = torch.from_numpy(numpy.asarray(image.convert("RGB"), dtype=numpy.float32)) / 127.5 - 1
    kept = share_kept(NOISED)
    mixed = kept**0.5 * pixels + (1 - kept) ** 0.5 * torch.randn(pixels.shape)
    return Image.fromarray(((mixed.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())


def share_kept(step: int) -> float:
    """Return the share of a picture's variance that is left at a step of the diffusion (alpha bar)."""
    spread = torch.sigmoid(torch.linspace(-6, 6, STEPS, dtype=torch.float64)) * (5e-3 - 1e-5) + 1e-5
    return float((1 - spread).cumprod(0)[step])
