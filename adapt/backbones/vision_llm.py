"""Vision LLMs as backbones: a frozen vision tower with a frozen language model; a method connects the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from adapt.backbones import chat_templates
from adapt.backbones.base import Backbone, DualEncoder, ImageEncoder
from adapt.backbones.decoder import decoder_tower
from adapt.backbones.locks import alone
from adapt.backbones.preprocess import Repixelled
from adapt.backbones.tower import Block, tokens_of
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IMAGE = "<image>"  # where an image's tokens stand in a prompt, as in LLaVA's
PROMPT = f"{IMAGE} question: {{}} answer:"


class Eyes(Backbone):
    """A vision model whose last block is made for a language model, such as BLIP-2's with its Q-Former.

    No method serves the eyes alone; the combination with a language model is a `VisionLLM`.
    """

    kind = "vision model"
    instead = "name a language model behind it, VISION+LLM"

    def encode_image(self, images: Tensor) -> Tensor:
        """Return the outputs `(b, l, d)` of the last block for images `(b, 3, h, w)`."""
        outputs: Tensor = self.model(images)
        return outputs


class VisionLLM(Backbone):
    """A backbone that combines a vision tower with a decoder-only language model from transformers.

    `prompt` contains {} for the question and <image> for the image. The default prompt is made from the tokenizer's
    chat template, or is `question: ... answer:` if the tokenizer has no template. `patch_block` is the index of the
    vision block whose output gives the patch features; by default the last but one, as in LLaVA, and the last of
    `Eyes`.

    With a `second` encoder of images, each patch has the features of both side by side (see `joined`). It reads the
    same pixels in its own size and normalisation, cannot be edited, and its patches are brought to the grid of the
    first one's. Of an encoder of images alone, such as DINOv2, they are the outputs of the last block (Tong et al.,
    Eyes Wide Shut?, CVPR 2024).
    """

    kind = "vision LLM"

    def __init__(
        self,
        vision: ImageEncoder | Eyes,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        second: ImageEncoder | None = None,
        name: str | None = None,
        prompt: str | None = None,
        patch_block: int | None = None,
    ) -> None:
        tower = vision.tower("vision")
        if tower.form.pooling not in ("class", "mean", "map", "none"):
            raise AdaptError(f"the vision tower has {tower.form.pooling!r} pooling; expected class, mean, map or none")
        if patch_block is None:
            patch_block = -1 if isinstance(vision, Eyes) else -2
        blocks = len(tower.blocks)
        if not -blocks <= patch_block < blocks:
            raise AdaptError(f"patch_block is {patch_block}, but the vision tower has only {blocks} blocks")
        super().__init__(
            model=nn.ModuleDict({"vision": vision.model, "llm": llm} | ({"second": second.model} if second else {})),
            towers={"vision": tower, "decoder": decoder_tower(llm)},
            tokenizer=tokenizer,
            preprocess=vision.preprocess,
            name=name,
            eval_transform=vision.eval_transform,
        )
        self.llm: Any = llm  # a `PreTrainedModel` that can also `generate`
        self.patch_block = patch_block
        self.prompt = prompt or _chat_prompt(tokenizer) or PROMPT
        if self.prompt.count("{}") != 1 or self.prompt.count(IMAGE) != 1:
            raise AdaptError(f"prompt is {self.prompt!r}; expected exactly one {{}} for the question, and one {IMAGE}")
        self._encode, self._vision, self.second = vision.encode_image, vision.model, second
        self._pixels = Repixelled(vision.preprocess, second.preprocess) if second else None

    def patches(self, images: Tensor) -> Tensor:
        """Return patch features `(b, p, d)` of images `(b, 3, h, w)` after `patch_block`, without other tokens."""
        return self.tokens(images)[:, self.first_patch :]

    @property
    def first_patch(self) -> int:
        """The position of the first patch among the tokens, after a class token and registers if there are any."""
        return self.tower("vision").form.first_patch

    def tokens(self, images: Tensor) -> Tensor:
        """Return features `(b, l, d)` of images `(b, 3, h, w)` after `patch_block`, those of a class token first."""
        tower, images = self.towers["vision"], images.to(self.dtype)
        with alone(self.model):  # otherwise the hook would also see other threads' calls
            tokens = _after(tower.blocks[self.patch_block], self._encode, images)
            if self.second is None or self._pixels is None:
                return tokens
            own, pixels = self.second.tower("vision"), self._pixels(images)
            block = own.blocks[self.patch_block if isinstance(self.second, DualEncoder) else -1]
            others = _after(block, self.second.encode_image, pixels.to(self.second.dtype))[:, own.form.first_patch :]
        others = on_grid(others.to(tokens.dtype), tokens.shape[1] - self.first_patch)
        return torch.cat([tokens, F.pad(others, (0, 0, self.first_patch, 0))], dim=-1)

    @property
    def widths(self) -> list[int]:
        """The widths of the features of a patch: that of the vision tower, and that of a second one."""
        return [self.tower("vision").width] + ([self.second.tower("vision").width] if self.second else [])

    def patch_shape(self) -> tuple[int, int]:
        """Return the number of patches per image and the width of a patch feature, measured by one forward pass."""
        with torch.inference_mode():
            _, count, width = self.patches(self.blank()).shape
        return count, width

    def text_tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the tokens `(b, l)` of texts as answers, padded on the right, and the mask of those that count.

        Raises AdaptError for a text without a token.
        """
        after = self.prompt.replace(IMAGE, "").rpartition("{}")[2] or ":"
        answered = [self.answered(after, text) for text in texts]
        rows = [torch.tensor(ids[len(ids) - count :]) for ids, count in answered]
        empty = [text for text, row in zip(texts, rows, strict=True) if not len(row)]
        if empty:
            raise AdaptError(f"{empty[0]!r} has no token: give words")
        ids, mask = (pad_sequence(each, batch_first=True) for each in (rows, [torch.ones_like(row) for row in rows]))
        return ids.to(self.device), mask.bool().to(self.device)

    def answered(self, before: str, answer: str) -> tuple[list[int], int]:
        """Return the tokens of the text `before` with an answer behind it, and how many at the end are the answer's."""
        ids = self.tokenizer(before, add_special_tokens=False)["input_ids"]
        text = before + " " * (not before[-1:].isspace()) + answer
        answered = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        common = next((i for i, (a, b) in enumerate(zip(ids, answered)) if a != b), min(len(ids), len(answered)))
        return answered, len(answered) - common

    def reading(self) -> dict[str, object]:
        second = {"second": self.second.reading()} if self.second else {}
        return super().reading() | {"prompt": self.prompt, "patch_block": self.patch_block} | second

    def read_as(self, reading: JsonObject) -> None:
        self.prompt = reading.get("prompt", self.prompt)
        self.patch_block = reading.get("patch_block", self.patch_block)

    @property
    def longest(self) -> int:
        """The maximum number of tokens that the language model accepts."""
        return int(getattr(self.llm.config.get_text_config(), "max_position_embeddings", 2**31))

    @property
    def _parameter(self) -> Tensor:
        return next(parameter for parameter in self._vision.parameters() if parameter.is_floating_point())


def _after(block: Block, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the output `(b, l, d)` of a block while images are encoded."""
    outputs = list[Tensor]()
    handle = block.module.register_forward_hook(lambda module, inputs, output: outputs.append(tokens_of(output)))
    try:
        encode(images)
    finally:
        handle.remove()
    return outputs[0] if block.batch_first else outputs[0].transpose(0, 1)


def on_grid(patches: Tensor, count: int) -> Tensor:
    """Return the patches `(b, p, d)` of a square, interpolated between, as `count` patches of the same square.

    Raises AdaptError if one of both numbers is no square.
    """
    sides = [math.isqrt(number) for number in (patches.shape[1], count)]
    if [side**2 for side in sides] != [patches.shape[1], count]:
        raise AdaptError(f"two vision towers give {count} and {patches.shape[1]} patches; expected those of squares")
    square = patches.transpose(1, 2).unflatten(-1, (sides[0], sides[0]))
    return F.interpolate(square, (sides[1], sides[1]), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


def _chat_prompt(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a prompt made from the tokenizer's chat template and one user message; None without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    who = "the chat template of the language model's tokenizer"
    # templates of language models take text, those of LLaVA a list of parts
    turns = [
        [{"role": "user", "content": content}]
        for content in (f"{IMAGE}\n{{}}", [{"type": "image"}, {"type": "text", "text": "{}"}])
    ]
    if isinstance(tokenizer.chat_template, str):
        chat_templates.check(tokenizer.chat_template, turns, tokenizer, who)
    apply: Any = tokenizer.apply_chat_template
    for turn in turns:
        prompt = chat_templates.rendered(
            partial(apply, turn, add_generation_prompt=True, tokenize=False),
            f"{who} cannot be used. Correct or remove the template, or give a prompt",
        )
        if IMAGE in prompt:
            break
    return prompt
