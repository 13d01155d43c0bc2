"""Small language models with seeded random weights, alone and with a tiny CLIP: one of every family that adapt maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import tiny_backbones
import torch
from torch import nn

from adapt.backbones.vision_llm import VisionLLM

_WORDS = "question : answer is what which how many colour animal it there a the red green blue cat dog two three ? ."
WORDS = _WORDS.split()
VOCABULARY = ["<pad>", "<unk>", "<s>", "</s>", *WORDS]
_SHARED: dict[str, Any] = {
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


def _causal(config: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**_SHARED | settings)
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(made)
        return model

    return make


KINDS: dict[str, Callable[[], nn.Module]] = {
    "llama": _causal("LlamaConfig"),
    "llama_grouped": _causal("LlamaConfig", **_GROUPED),
    "qwen": _causal("Qwen2Config", **_GROUPED),
    "mistral": _causal("MistralConfig", **_GROUPED, sliding_window=16),
    "gemma": _causal("Gemma2Config", **_GROUPED, head_dim=16, sliding_window=16),
    "gpt_neox": _causal("GPTNeoXConfig"),
    "phi": _causal("PhiConfig", **_GROUPED),
    "phi3": _causal("Phi3Config", **_GROUPED),
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
