"""Tiny native vision-language models with their processors, one of each family, with weights drawn from their names.

One tokenizer serves all: a byte-level BPE of 419 tokens; the models have 427, as real ones have more than theirs. Chat
templates give the text of the families' own. The numbers in `parity/cases` were computed on these models.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from parity.tiny_clip import draw

from adapt import Backbone
from adapt.backbones.embedding import EmbeddingVLM
from adapt.backbones.native import NativeVLM

QUESTION = "in one word?"  # before a feature is read

KINDS = {
    "smolvlm": "SmolVLMForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "paligemma": "PaliGemmaForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
}
_MARKS = {  # the tokens that start a text, end an answer, fill rows
    "smolvlm": ("<|im_start|>", "<end_of_utterance>", "<|im_end|>"),
    "idefics3": ("<s>", "<end_of_utterance>", "<pad>"),
    "llava": ("<s>", "</s>", "<pad>"),
    "llava_next": ("<s>", "</s>", "<pad>"),
    "paligemma": ("<bos>", "<eos>", "<pad>"),
    "gemma3": ("<bos>", "<eos>", "<pad>"),
}
_CHATML_MARKS = (None, "<|im_end|>", "<|endoftext|>")


# chat templates


_ENDS = "{% endif %}{% endfor %}"


def _parts(image: str) -> str:
    return "{% for p in m['content'] %}{% if p['type'] == 'image' %}" + image + "{% else %}{{ p['text'] }}" + _ENDS


def _chatml(system: str, image: str = "<|vision_start|><|image_pad|><|vision_end|>") -> str:
    body = _parts(image)
    return (
        system + "{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + body + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _utterances(start: str) -> str:
    space = "{% if m['content'][0]['type'] != 'image' %} {% endif %}"
    return (
        start
        + "{% for m in messages %}{{ m['role'] | capitalize }}:"
        + space
        + _parts("<image>")
        + "<end_of_utterance>\n"
        "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )


_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
_LLAVA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{% for p in m['content'] %}{{ p['text'] }} "
    "{% endfor %}{% elif m['role'] == 'user' %}USER: {% for p in m['content'] if p['type'] == 'image' %}<image>\n"
    "{% endfor %}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }} {% endfor %}{% else %}ASSISTANT:"
    "{% for p in m['content'] %} {{ p['text'] }}{% endfor %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for p in m['content'] %}{{ '<start_of_image>' if p['type'] == 'image' else p['text'] | trim }}"
    "{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEMPLATES = {
    "smolvlm": _utterances("<|im_start|>"),
    "idefics3": _utterances("<s>"),
    "qwen2_vl": _chatml(_SYSTEM),
    "qwen2_5_vl": _chatml(_SYSTEM),
    "qwen3_vl": _chatml(""),
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "llava_onevision": _chatml("", "<image>\n"),
    "internvl": _chatml("", "<IMG_CONTEXT>\n"),
    "gemma3": _GEMMA,
}  # PaliGemma has none


_EXTRA = {
    "internvl": {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "gemma3": {
        "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
    },
}  # fmt: skip


@cache
def _words() -> str:
    return str(Path(__file__).parent / "vlm_words" / "tokenizer.json")


def tokenizer(kind: str) -> Any:
    start, end, fill = _MARKS.get(kind, _CHATML_MARKS)
    more = {"extra_special_tokens": _EXTRA[kind]} if kind in _EXTRA else {}
    return tf.PreTrainedTokenizerFast(
        tokenizer_file=_words(), bos_token=start, eos_token=end, pad_token=fill, padding_side="right",
        clean_up_tokenization_spaces=False, **more,
    )  # fmt: skip


# configurations

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "rope_parameters": _ROPE, "vocab_size": 427,
}  # fmt: skip
_EYES: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_MROPE = {**_ROPE, "mrope_section": [1, 1, 2]}
_QWEN_EYES: dict[str, Any] = {
    "hidden_size": 16, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip


def config(kind: str) -> Any:
    words = tokenizer(kind)
    ids = words.get_vocab()
    marks = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = {**_TEXT, **marks}
    if kind in ("smolvlm", "idefics3"):
        made = {"smolvlm": tf.SmolVLMConfig, "idefics3": tf.Idefics3Config}[kind]
        return made(
            text_config={"model_type": "llama", **text}, vision_config={"model_type": f"{kind}_vision", **_EYES},
            scale_factor=2, image_token_id=ids["<image>"], tie_word_embeddings=False, pad_token_id=words.pad_token_id,
        )  # fmt: skip
    if kind.startswith("llava"):
        return _llava(kind, text, ids)
    if kind == "internvl":
        return tf.InternVLConfig(
            text_config={"model_type": "qwen2", **text}, image_token_id=ids["<IMG_CONTEXT>"], image_seq_length=4,
            vision_config={**_EYES, "image_size": [32, 32], "patch_size": [8, 8]}, downsample_ratio=0.5,
            tie_word_embeddings=False,
        )  # fmt: skip
    if kind in ("paligemma", "gemma3"):
        return _gemma(kind, text, ids)
    return _qwen(kind, text, ids)


_SIGLIP = {"model_type": "siglip_vision_model", **_EYES, "vision_use_head": False}
_GRIDS = [[32, 32], [32, 64], [64, 32], [64, 64]]


def _llava(kind: str, text: dict[str, Any], ids: dict[str, int]) -> Any:
    if kind == "llava_onevision":
        return tf.LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **text}, vision_config=_SIGLIP, image_token_index=ids["<image>"],
            video_token_index=ids["<video>"], vision_feature_layer=-1, vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_4", image_grid_pinpoints=_GRIDS, tie_word_embeddings=False,
        )  # fmt: skip
    eyes = {"model_type": "clip_vision_model", **_EYES, "num_hidden_layers": 3, "projection_dim": 24}
    settings: dict[str, Any] = {
        "text_config": {"model_type": "llama", **text}, "vision_config": eyes, "image_token_index": ids["<image>"],
        "image_seq_length": 16, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    }  # fmt: skip
    if kind == "llava":
        return tf.LlavaConfig(**settings)
    return tf.LlavaNextConfig(**settings, image_grid_pinpoints=_GRIDS[1:])


def _gemma(kind: str, text: dict[str, Any], ids: dict[str, int]) -> Any:
    text = {name: value for name, value in text.items() if name != "rope_parameters"} | {"head_dim": 8}
    if kind == "gemma3":
        own = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
        return tf.Gemma3Config(
            text_config={**text, **own, "query_pre_attn_scalar": 8}, vision_config=_SIGLIP, mm_tokens_per_image=4,
            image_token_index=ids["<image_soft_token>"], boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"], tie_word_embeddings=False,
        )  # fmt: skip
    more = 427 + 1152  # its processor adds 1024 places and 128 segments to the tokenizer
    return tf.PaliGemmaConfig(
        text_config={"model_type": "gemma", **text, "vocab_size": more, "num_key_value_heads": 1},
        vision_config=_SIGLIP, image_token_index=ids["<image>"], projection_dim=32, hidden_size=32, vocab_size=more,
        tie_word_embeddings=False,
    )  # fmt: skip


def _qwen(kind: str, text: dict[str, Any], ids: dict[str, int]) -> Any:
    places = {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
    }  # fmt: skip
    if kind == "qwen3_vl":
        eyes = {
            **_QWEN_EYES, "intermediate_size": 32, "out_hidden_size": 32, "depth": 3, "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        }  # fmt: skip
        text = {**text, "rope_parameters": {**_MROPE, "mrope_interleaved": True}, "head_dim": 8}
        return tf.Qwen3VLConfig(text_config=text, vision_config=eyes, **places)
    text = {**text, "rope_parameters": _MROPE}
    if kind == "qwen2_vl":
        eyes = {**_QWEN_EYES, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "depth": 2}
        return tf.Qwen2VLConfig(text_config=text, vision_config=eyes, **places)
    eyes = {**_QWEN_EYES, "intermediate_size": 32, "out_hidden_size": 32, "depth": 2, "window_size": 16}
    return tf.Qwen2_5_VLConfig(text_config=text, vision_config=eyes | {"fullatt_block_indexes": [1]}, **places)


# processors

_HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_SQUARE = {"height": 32, "width": 32}


def processor(kind: str, split: bool = False) -> Any:
    """With `split`, Idefics3 and SmolVLM cut images into tiles of 32 pixels."""
    words, chat = tokenizer(kind), TEMPLATES.get(kind)
    if kind in ("smolvlm", "idefics3"):
        tiles: dict[str, Any] = {
            "size": {"longest_edge": 64 if split else 32}, "max_image_size": {"longest_edge": 32},
            "do_image_splitting": split, **_HALF,
        }  # fmt: skip
        if kind == "idefics3":
            return tf.Idefics3Processor(tf.Idefics3ImageProcessor(**tiles), words, image_seq_len=4, chat_template=chat)
        films = tf.SmolVLMVideoProcessor(**_HALF)
        return tf.SmolVLMProcessor(tf.SmolVLMImageProcessor(**tiles), words, films, image_seq_len=4, chat_template=chat)
    if kind in ("llava", "llava_next"):
        settings: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": _SQUARE, **_HALF}
        read, made = (tf.CLIPImageProcessor(**settings), tf.LlavaProcessor)
        if kind == "llava_next":
            read = tf.LlavaNextImageProcessor(**settings, image_grid_pinpoints=_GRIDS[1:])
            made = tf.LlavaNextProcessor
        return made(
            read, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            chat_template=chat,
        )  # fmt: skip
    if kind == "llava_onevision":
        read = tf.LlavaOnevisionImageProcessor(size=_SQUARE, image_grid_pinpoints=_GRIDS, **_HALF)
        return tf.LlavaOnevisionProcessor(
            read, words, tf.LlavaOnevisionVideoProcessor(size=_SQUARE), num_image_tokens=16,
            vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_4", chat_template=chat,
        )  # fmt: skip
    if kind == "internvl":
        read = tf.GotOcr2ImageProcessor(size=_SQUARE, crop_to_patches=True, min_patches=1, max_patches=4, **_HALF)
        films = tf.InternVLVideoProcessor(size=_SQUARE)
        return tf.InternVLProcessor(read, words, films, image_seq_length=4, chat_template=chat)
    if kind == "paligemma":
        read = tf.SiglipImageProcessor(size=_SQUARE, **_HALF)
        read.image_seq_length = 16
        return tf.PaliGemmaProcessor(read, words)
    if kind == "gemma3":
        read = tf.Gemma3ImageProcessor(size=_SQUARE, **_HALF)
        return tf.Gemma3Processor(read, words, image_seq_length=4, chat_template=chat)
    packed = {"patch_size": 4, "merge_size": 2}
    areas = {"shortest_edge": 16 * 16, "longest_edge": 40 * 40}
    pixels = tf.Qwen2VLImageProcessor(size=areas, temporal_patch_size=2, **packed, **_HALF)
    made = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    films = (tf.Qwen3VLVideoProcessor if kind == "qwen3_vl" else tf.Qwen2VLVideoProcessor)(**packed)
    return getattr(tf, f"{made}Processor")(pixels, words, films, chat_template=chat)


# models


@cache
def _state(kind: str, seed: int) -> dict[str, torch.Tensor]:
    """Every floating tensor of the model by its name."""
    state = {}
    for key, value in getattr(tf, KINDS[kind])(config(kind)).state_dict().items():
        if not value.is_floating_point():
            continue
        drawn = draw(f"vlm/{kind}/{seed}/{key}", tuple(value.shape))
        if value.ndim <= 1:
            drawn = 1 + 0.1 * drawn if key.endswith("weight") else 0.02 * drawn
        elif key.endswith(("pos_embed", "cls_token")):
            drawn = 0.05 * drawn
        else:
            drawn = drawn / math.sqrt(math.prod(value.shape[1:]))
        state[key] = drawn
    return state


def model(kind: str, seed: int = 0) -> Any:
    """A fresh model in fp32 and evaluation mode, always with the same weights."""
    settings = config(kind)
    settings._attn_implementation = "sdpa"
    made = getattr(tf, KINDS[kind])(settings).float().eval()
    made.load_state_dict(_state(kind, seed), strict=False)
    return made


def backbone(kind: str, seed: int = 0, split: bool = False) -> NativeVLM:
    made = Backbone.from_transformers(model(kind, seed), processor(kind, split))
    assert isinstance(made, NativeVLM)
    return made


def dual_encoder(kind: str = "llava") -> EmbeddingVLM:
    return EmbeddingVLM(backbone(kind), QUESTION, name=f"embed:{kind}")
