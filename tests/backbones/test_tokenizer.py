"""Every backbone reads texts as its library's own tokenizer does, or is refused when it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny_backbones
import torch
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn

import adapt
from adapt import AdaptError, Backbone
from adapt.backbones.hf import build as build_hf

TEXTS = ["", "a photo of a Red_panda.", "It's  (no. 7)!", "naïve café — 猫", "a photo of a sea cucumber."]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]", "x", "photo", "red", "panda", "sea", "cucumber", "."]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789'()!_"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT tokenizer in a folder, with start and end tokens besides."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = list(dict.fromkeys(vocabulary))
    words = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    made = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="[BOS]", eos_token="[EOS]", **special)
    folder = tmp_path_factory.mktemp("bert")
    made.save_pretrained(folder)
    return folder


def clipa() -> nn.Module:
    """As CLIPA's: the last of 32 positions is pooled, and no position is masked."""
    text = {"context_length": 32, "vocab_size": 128, "width": 64, "heads": 2, "layers": 2}
    config = open_clip.CLIPTextCfg(**text, pool_type="last", no_causal_mask=True)
    vision = open_clip.CLIPVisionCfg(**tiny_backbones.VISION)
    return open_clip.model.CLIP(tiny_backbones.EMBED, vision, config).eval()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"strip_sep_token": True},
    {"tokenizer_mode": "clips"},
    {"clean": "canonicalize"},
    {"clean": "lower", "strip_sep_token": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_open_clips_tokenizer_of_transformers(options: dict[str, Any], bert: Path, images: Tensor) -> None:
    library = HFTokenizer(str(bert), context_length=32, **options)
    backbone = Backbone.from_open_clip(clipa(), library)
    assert torch.equal(backbone.tokenize(TEXTS), library(TEXTS))
    model = adapt.wrap(backbone, adapt.methods.ZeroShot(template="a photo of a {}."), ["red panda", "sea"])
    with torch.no_grad():
        ours = backbone.model.encode_text(library(["a photo of a red panda.", "a photo of a sea."]))
        assert torch.allclose(model.class_features(), nn.functional.normalize(ours, dim=-1), atol=1e-6)
    coop = adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=2, ctx_init=""), ["red panda", "sea"])
    assert coop(images).isfinite().all()


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
@pytest.mark.parametrize("mask", ["", "simple", "random"])
def test_open_clips_own_tokenizer(clean: str, mask: str) -> None:
    library = open_clip.SimpleTokenizer(clean=clean, reduction_mask=mask)
    backbone = Backbone.from_open_clip(tiny_backbones.native_clip(), library)
    assert torch.equal(backbone.tokenize(TEXTS), library(TEXTS))


def test_words_dropped_by_their_syntax() -> None:
    with pytest.raises(AdaptError, match="use a tokenizer without reduction_mask='syntax'"):
        Backbone.from_open_clip(tiny_backbones.native_clip(), open_clip.SimpleTokenizer(reduction_mask="syntax"))


class _Shouting(open_clip.SimpleTokenizer):
    def __call__(self, texts: Any, context_length: int | None = None) -> Any:
        return super().__call__([f"{text}!" for text in texts], context_length)


def test_a_tokenizer_that_reads_otherwise_is_refused() -> None:
    with pytest.raises(AdaptError, match=r"the tokenizer _Shouting encodes '' as \[49406, 256, 49407, .*adapt would"):
        Backbone.from_open_clip(tiny_backbones.native_clip(), _Shouting())


def test_padding_on_the_left_is_refused() -> None:
    processor: Any = tiny_backbones.hf_clip_processor()
    processor.tokenizer.padding_side = "left"
    try:
        with pytest.raises(AdaptError, match=r"the tokenizer CLIPTokenizer\w* encodes '' as"):
            build_hf(tiny_backbones.hf_clip_model(), processor)
    finally:
        processor.tokenizer.padding_side = "right"
