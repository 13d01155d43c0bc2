"""Small encoders of an image with a question, with seeded random weights: one of every kind that adapt maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from tiny_llms import WORDS, word_tokenizer
from torch import nn

from adapt import Backbone
from adapt.backbones.fusion import FusionEncoder

IMAGE = 32
ANSWERS = ("red", "green", "two")
_SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}


@cache
def tokenizer() -> Any:
    """A word is a token; rows start and end as BERT's do, and padding is where RoBERTa has it."""
    vocabulary = ["[CLS]", "[PAD]", "[UNK]", "[SEP]", *WORDS]
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return word_tokenizer(vocabulary, "[CLS] $A [SEP]", **special)


def vilt(answers: tuple[str, ...] | None = ANSWERS) -> FusionEncoder:
    """transformers' ViLT, with a head for `answers`, or without one."""
    return _backbone(_vilt(answers), "ViltImageProcessor")


def bridgetower(layers: int = 2) -> FusionEncoder:
    """transformers' BridgeTower, with this number of layers in each stream."""
    return _backbone(_bridgetower(layers), "BridgeTowerImageProcessor")


KINDS: dict[str, Callable[[], FusionEncoder]] = {"vilt": vilt, "bridgetower": bridgetower}


def _backbone(model: nn.Module, processor: str) -> FusionEncoder:
    import transformers

    image_processor = getattr(transformers, processor)(size={"shortest_edge": IMAGE})
    parts = SimpleNamespace(tokenizer=tokenizer(), image_processor=image_processor)
    backbone: FusionEncoder = Backbone.from_transformers(copy.deepcopy(model).eval(), parts)
    return backbone


@cache
def _vilt(answers: tuple[str, ...] | None) -> nn.Module:
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltModel

    config = ViltConfig(
        vocab_size=len(tokenizer()), intermediate_size=64, max_position_embeddings=12, image_size=IMAGE, patch_size=8,
        id2label=dict(enumerate(answers or ANSWERS)), **_SIZES,
    )  # fmt: skip
    return _seeded(lambda: ViltModel(config) if answers is None else ViltForQuestionAnswering(config))


@cache
def _bridgetower(layers: int) -> nn.Module:
    from transformers import BridgeTowerConfig, BridgeTowerModel

    text = _SIZES | {"vocab_size": len(tokenizer()), "intermediate_size": 64, "max_position_embeddings": 14}
    text["num_hidden_layers"] = max(3, layers)
    vision = {"hidden_size": 64, "num_hidden_layers": max(3, layers), "image_size": IMAGE, "patch_size": 8}
    config = BridgeTowerConfig(**_SIZES | {"num_hidden_layers": layers}, text_config=text, vision_config=vision)
    return _seeded(lambda: BridgeTowerModel(config))


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` gives, its matrices and the tokens that it learns drawn large enough for inputs to tell."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
    return model
