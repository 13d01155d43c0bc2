"""The parts of the model before training: mini-clip's eyes, mini-lm's decoder and words, and a random connector."""

from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor

CHECKPOINTS = Path(__file__).resolve().parents[2]
WORDS = ["yes", "no", "neither", "both", "image", "images", "same", "describe"]  # that mini-lm does not know
IMAGE = "<image>"
POSITIONS = 512
# mini-lm's own form of questions, turn after turn
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} answer: {% generation %}"
    "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{{ eos_token }}{% endgeneration %}"
    "{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' %} picture: <image>"
    "{% elif m['role'] == 'system' %} {{ p['text'] }}{% else %} question: {{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} answer:{% endif %}"
)


def untrained() -> tuple[tf.LlavaForConditionalGeneration, tf.LlavaProcessor]:
    """The model in fp32, and its processor."""
    tokenizer = tf.AutoTokenizer.from_pretrained(CHECKPOINTS / "mini-lm")
    tokenizer.add_tokens(WORDS)
    tokenizer.clean_up_tokenization_spaces = True  # "it is a dog.", without a space before the full stop
    decoder = tf.AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "mini-lm", dtype=torch.float32)
    decoder.resize_token_embeddings(len(tokenizer))
    decoder.config.max_position_embeddings = POSITIONS
    decoder.config._name_or_path = ""  # or the file would name a folder here
    eyes = tf.CLIPVisionConfig(
        hidden_size=192, intermediate_size=576, num_hidden_layers=6, num_attention_heads=3, image_size=64, patch_size=8,
        hidden_act="gelu",
    )  # fmt: skip
    config = tf.LlavaConfig(
        vision_config=eyes,
        text_config=decoder.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=64,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = tf.LlavaForConditionalGeneration(config).float().eval()
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.tie_weights()
    model.model.vision_tower.load_state_dict(_eyes())
    return model, _processor(tokenizer)


def _processor(tokenizer: tf.PreTrainedTokenizerBase) -> tf.LlavaProcessor:
    square = {"height": 64, "width": 64}
    pixels = tf.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=square)
    return tf.LlavaProcessor(
        pixels, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip


def _eyes() -> dict[str, Tensor]:
    """mini-clip's vision tower under the names of transformers."""
    state = {
        key.removeprefix("visual."): value.float()
        for key, value in load_file(CHECKPOINTS / "mini-clip" / "open_clip_model.safetensors").items()
        if key.startswith("visual.")
    }
    named = {
        "embeddings.class_embedding": state["class_embedding"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "embeddings.patch_embedding.weight": state["conv1.weight"],
    }
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        named |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    for key, value in state.items():
        if not key.startswith("transformer.resblocks."):
            continue
        number, _, part = key.removeprefix("transformer.resblocks.").partition(".")
        block = f"encoder.layers.{number}"
        if part.startswith("attn.in_proj_"):
            kind = part.removeprefix("attn.in_proj_")
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                named[f"{block}.self_attn.{letter}_proj.{kind}"] = third
            continue
        for old, new in (
            ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
        ):  # fmt: skip
            part = part.replace(old, new)
        named[f"{block}.{part}"] = value
    return named
