"""A Qwen2.5-VL of 213 million random parameters, its processor, and a batch of conversations to learn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image

from adapt import Backbone
from adapt.backbones.native import NativeVLM
from adapt.backbones.sources import bundled
from adapt.chats import Chat

SIDE = 448  # pixels, which are 256 tokens
TOKENS, ANSWER = 350, 32  # of a conversation, and of its answer with the marks that end it
_MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_TEMPLATE = (  # with the marks of answers that TRL asks for
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}<|im_end|>\n{% endgeneration %}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def processor() -> Any:
    """Return Qwen2.5-VL's processor with the words of mini-vlm."""
    words = tf.PreTrainedTokenizerFast(
        tokenizer_file=str(bundled("mini-vlm") / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    words.add_tokens(list(_MARKS), special_tokens=True)
    pixels = tf.Qwen2VLImageProcessor(size={"shortest_edge": SIDE**2, "longest_edge": SIDE**2})
    return tf.Qwen2_5_VLProcessor(pixels, words, tf.Qwen2VLVideoProcessor(), chat_template=_TEMPLATE)


def model(words: Any) -> Any:
    """Return the model: a decoder of 12 x 768 with a vocabulary of 151,936, and eyes of 8 x 512."""
    ids = words.get_vocab()
    text = {
        "hidden_size": 768, "intermediate_size": 1792, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "vocab_size": 151_936,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        "bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
    }  # fmt: skip
    eyes = {
        "hidden_size": 512, "intermediate_size": 1280, "depth": 8, "num_heads": 8, "patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [3, 7], "out_hidden_size": 768, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    config = tf.Qwen2_5_VLConfig(
        text_config=text, vision_config=eyes, tie_word_embeddings=True, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return tf.Qwen2_5_VLForConditionalGeneration(config).float().eval()


def backbone() -> NativeVLM:
    """Return the model and its processor as a backbone."""
    read = processor()
    made = Backbone.from_transformers(model(read.tokenizer), read)
    assert isinstance(made, NativeVLM)
    return made


def pictures(count: int = 2) -> list[Image.Image]:
    """Return pictures of noise."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(count)]


def chat(words: Any, word: str = "dog") -> Chat:
    """Return a conversation about one picture with as many tokens as are measured, whose answer repeats a `word`."""
    answer = " ".join([word] * (ANSWER - 1))  # and the mark and the line break that end it
    bare = words.apply_chat_template(Chat.about("dog", answer).messages(), chat_template=_TEMPLATE, tokenize=False)
    left = TOKENS - (SIDE // 28) ** 2 + 2 - len(words(bare)["input_ids"])  # the picture's mark is one of them
    return Chat.about(" ".join(["dog"] * left), answer)
