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
from adapt.backbones.native import NativeVLM

KINDS = {
    "smolvlm": "SmolVLMForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
}
_MARKS = {  # the tokens that start a text, end an answer, fill rows
    "smolvlm": ("<|im_start|>", "<end_of_utterance>", "<|im_end|>"),
    "idefics3": ("<s>", "<end_of_utterance>", "<pad>"),
    "qwen": (None, "<|im_end|>", "<|endoftext|>"),
    "llava": ("<s>", "</s>", "<pad>"),
}


def _family(kind: str) -> str:
    return "qwen" if kind.startswith("qwen") else kind


# chat templates


_ENDS = "{% endif %}{% endfor %}"


def _parts(image: str) -> str:
    return "{% for p in m['content'] %}{% if p['type'] == 'image' %}" + image + "{% else %}{{ p['text'] }}" + _ENDS


def _chatml(system: str) -> str:
    body = _parts("<|vision_start|><|image_pad|><|vision_end|>")
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
TEMPLATES = {
    "smolvlm": _utterances("<|im_start|>"),
    "idefics3": _utterances("<s>"),
    "qwen2_vl": _chatml(_SYSTEM),
    "qwen2_5_vl": _chatml(_SYSTEM),
    "qwen3_vl": _chatml(""),
    "llava": _LLAVA,
}


@cache
def _words() -> str:
    return str(Path(__file__).parent / "vlm_words" / "tokenizer.json")


def tokenizer(kind: str) -> Any:
    start, end, fill = _MARKS[_family(kind)]
    return tf.PreTrainedTokenizerFast(
        tokenizer_file=_words(), bos_token=start, eos_token=end, pad_token=fill, padding_side="right",
        clean_up_tokenization_spaces=False,
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
    if kind == "llava":
        eyes = {"model_type": "clip_vision_model", **_EYES, "num_hidden_layers": 3, "projection_dim": 24}
        return tf.LlavaConfig(
            text_config={"model_type": "llama", **text}, vision_config=eyes, image_token_index=ids["<image>"],
            image_seq_length=16, vision_feature_layer=-2, vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )  # fmt: skip
    return _qwen(kind, text, ids)


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


def processor(kind: str, split: bool = False) -> Any:
    """With `split`, Idefics3 and SmolVLM cut images into tiles of 32 pixels."""
    words, chat = tokenizer(kind), TEMPLATES[kind]
    if kind in ("smolvlm", "idefics3"):
        tiles: dict[str, Any] = {
            "size": {"longest_edge": 64 if split else 32}, "max_image_size": {"longest_edge": 32},
            "do_image_splitting": split, **_HALF,
        }  # fmt: skip
        if kind == "idefics3":
            return tf.Idefics3Processor(tf.Idefics3ImageProcessor(**tiles), words, image_seq_len=4, chat_template=chat)
        films = tf.SmolVLMVideoProcessor(**_HALF)
        return tf.SmolVLMProcessor(tf.SmolVLMImageProcessor(**tiles), words, films, image_seq_len=4, chat_template=chat)
    if kind == "llava":
        pixels = tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, **_HALF)
        return tf.LlavaProcessor(
            pixels, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            chat_template=chat,
        )  # fmt: skip
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
