"""Small backbones with seeded random weights: one of every kind that adapt maps. Nothing is downloaded."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from torch import nn

from adapt import Backbone

# the sizes of the tiny CLIP in tests/parity
IMAGE = 32
EMBED = 64
VISION = {"image_size": IMAGE, "layers": 3, "width": 192, "patch_size": 8, "head_width": 64}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3}
_SMALL_TEXT = TEXT | {"width": 64, "layers": 2}


@cache
def clip_tokenizer() -> Any:
    """CLIP's BPE, as open_clip gives it."""
    return open_clip.get_tokenizer("ViT-B-16")


@cache
def hf_clip_tokenizer() -> Any:
    """CLIP's BPE as transformers reads it, from the merges that come with open_clip."""
    from transformers import CLIPTokenizer

    merges_file = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(merges_file.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    pairs = [tuple(line.split()) for line in merges]
    vocabulary = {token: i for token, i in clip_tokenizer().encoder.items() if i < 49406}
    special = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return CLIPTokenizer(vocab=vocabulary | special, merges=pairs, model_max_length=77)


@cache
def siglip_tokenizer() -> Any:
    """As SigLIP's: no start token, lower case, no punctuation, and the end token pads. A letter is a token."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["<unk>", "</s>", "photo", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]"), "")],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>", model_max_length=64
    )


def native_clip() -> nn.Module:
    """open_clip's own CLIP of the parity sizes."""
    vision, text = open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**TEXT)
    return open_clip.model.CLIP(EMBED, vision, text, quick_gelu=True)


@cache
def _small_clip() -> nn.Module:
    vision = open_clip.CLIPVisionCfg(image_size=IMAGE, layers=2, width=64, patch_size=16, head_width=32)
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=32, heads=2, layers=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.model.CLIP(32, vision, text, quick_gelu=True)


def small() -> Backbone:
    """A fresh CLIP of few operations, for what takes long over each of them."""
    return from_open_clip(copy.deepcopy(_small_clip()))


def hf_clip_model() -> nn.Module:
    """transformers' CLIP of the parity sizes."""
    from transformers import CLIPConfig, CLIPModel

    shared: dict[str, Any] = {"num_hidden_layers": 3, "hidden_act": "quick_gelu", "projection_dim": EMBED}
    config = CLIPConfig(
        text_config={"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, **shared},
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_attention_heads": 3,
            "image_size": IMAGE,
            "patch_size": 8,
            **shared,
        },
        projection_dim=EMBED,
    )
    return CLIPModel(config)


def from_open_clip(model: nn.Module) -> Backbone:
    return Backbone.from_open_clip(model.eval(), clip_tokenizer())


def length_first(backbone: Backbone) -> Backbone:
    """The open_clip model of `backbone`, changed in place so that its transformers run `(l, b, d)`."""
    model: Any = backbone.model
    for transformer in (model.transformer, model.visual.transformer):
        transformer.batch_first = False
        for block in transformer.resblocks:
            block.attn.batch_first = False
    turned = from_open_clip(model)
    assert not any(block.batch_first for tower in turned.towers.values() for block in tower.blocks)
    return turned


def from_hf_clip(model: nn.Module) -> Backbone:
    return Backbone.from_transformers(model.eval(), hf_clip_processor())


def hf_clip_processor() -> Any:
    from transformers import CLIPImageProcessor, CLIPProcessor

    image_processor = CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE})
    return CLIPProcessor(image_processor, hf_clip_tokenizer())


def _timm_clip() -> nn.Module:
    """open_clip's CustomTextCLIP over a timm ViT, with layer scales and average pooling."""
    from timm.models.vision_transformer import VisionTransformer

    vision = open_clip.CLIPVisionCfg(timm_model_name="test_vit", timm_pool="avg", timm_proj="linear", image_size=IMAGE)
    model = open_clip.CustomTextCLIP(EMBED, vision, open_clip.CLIPTextCfg(**_SMALL_TEXT))
    model.visual.trunk = VisionTransformer(
        img_size=IMAGE, patch_size=8, embed_dim=64, depth=2, num_heads=4, num_classes=0, global_pool="avg",
        init_values=0.5,
    )  # fmt: skip
    model.visual.image_size = (IMAGE, IMAGE)
    return model


def _resnet_clip() -> nn.Module:
    """CLIP with a ModifiedResNet vision tower."""
    vision = open_clip.CLIPVisionCfg(image_size=IMAGE, layers=(1, 1, 1, 1), width=16)
    return open_clip.model.CLIP(EMBED, vision, open_clip.CLIPTextCfg(**_SMALL_TEXT))


def _siglip() -> nn.Module:
    from transformers import SiglipConfig, SiglipModel

    shared: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {
        "vocab_size": len(siglip_tokenizer()),
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 1,
        "eos_token_id": 1,
        **shared,
    }
    return SiglipModel(
        SiglipConfig(text_config=text, vision_config={"image_size": IMAGE, "patch_size": 8, **shared}),
    )


def _from_siglip(model: nn.Module) -> Backbone:
    from transformers import SiglipImageProcessor

    image_processor = SiglipImageProcessor(size={"height": IMAGE, "width": IMAGE})
    processor = SimpleNamespace(tokenizer=siglip_tokenizer(), image_processor=image_processor)
    return Backbone.from_transformers(model.eval(), processor)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Backbone]]] = {
    "open_clip": (native_clip, from_open_clip),
    "open_clip_timm": (_timm_clip, from_open_clip),
    "open_clip_resnet": (_resnet_clip, from_open_clip),
    "hf_clip": (hf_clip_model, from_hf_clip),
    "hf_siglip": (_siglip, _from_siglip),
}
WITH_VISION_BLOCKS = tuple(kind for kind in KINDS if kind != "open_clip_resnet")
WITH_VISION_PROJECTION = ("open_clip", "open_clip_timm", "hf_clip")
WITH_FAST_PATH = tuple(kind for kind in KINDS if kind != "hf_siglip")


@cache
def _model(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KINDS[kind][0]()


def backbone(kind: str) -> Backbone:
    """A fresh backbone of that kind, always with the same weights."""
    return KINDS[kind][1](copy.deepcopy(_model(kind)))
