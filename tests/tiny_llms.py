"""Small language models with seeded random weights, alone and with a tiny CLIP: one of every family that adapt maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import tiny_backbones
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.preprocess import Preprocess
from adapt.backbones.tower import Block, Form, Tower
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.backbones.vision_llm import VisionLLM

_WORDS = "question : answer is what which how many colour animal it there a the red green blue cat dog two three ? ."
WORDS = _WORDS.split()
VOCABULARY = ["<pad>", "<unk>", "<s>", "</s>", *WORDS]
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 2}


def word_tokenizer(vocabulary: list[str], single: str, **special: str) -> Any:
    """A word is a token; `single` says where the special tokens stand about a text, `$A`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=special["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [(token, vocabulary.index(token)) for token in single.split() if token != "$A"]
    words.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@cache
def tokenizer() -> Any:
    """Rows start with <s>."""
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return word_tokenizer(VOCABULARY, "<s> $A", **special)


def causal(config: str, **settings: Any) -> Callable[[], nn.Module]:
    """How to make a causal language model of that transformers config."""

    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**SIZES | settings)
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(made)
        return model

    return make


KINDS: dict[str, Callable[[], nn.Module]] = {
    "llama": causal("LlamaConfig"),
    "llama_grouped": causal("LlamaConfig", **_GROUPED),
    "qwen": causal("Qwen2Config", **_GROUPED),
    "mistral": causal("MistralConfig", **_GROUPED, sliding_window=16),
    "gemma": causal("Gemma2Config", **_GROUPED, head_dim=16, sliding_window=16),
    "gpt_neox": causal("GPTNeoXConfig"),
    "phi": causal("PhiConfig", **_GROUPED),
    "phi3": causal("Phi3Config", **_GROUPED),
}


@cache
def _model(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KINDS[kind]()


def llm(kind: str) -> Any:
    """A fresh language model of that kind, always with the same weights."""
    return copy.deepcopy(_model(kind)).eval()


def vision_llm(kind: str, **settings: Any) -> VisionLLM:
    """The tiny open_clip CLIP's vision tower with the language model of that kind."""
    return VisionLLM(tiny_backbones.backbone("open_clip"), llm(kind), tokenizer(), **settings)


class Unfold(nn.Module):
    """Stands for a vision tower: its patch features are the pixels of the image's squares."""

    def __init__(self, image: int, patch: int) -> None:
        super().__init__()
        self.image, self.patch = image, patch
        self.precision = nn.Parameter(torch.zeros(1))
        self.block = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.block(F.unfold(images, self.patch, stride=self.patch).transpose(1, 2))
        return features.mean(1)

    def images(self, features: Tensor) -> Tensor:
        """The images `(b, 3, h, w)` whose patch features are `features` `(b, p, d)`."""
        return F.fold(features.transpose(1, 2), self.image, self.patch, stride=self.patch)

    def vision(self) -> VisionEncoder:
        inside = Block(self.block, *[self.block] * 4, projections={})
        tower = Tower("vision", 3 * self.patch**2, 1, Form(causal=False, pooling="mean"), (inside,))
        pixels = Preprocess(self.image, (0.5,) * 3, (0.5,) * 3)
        return VisionEncoder(model=self, towers={"vision": tower}, preprocess=pixels, encode_image=self)
