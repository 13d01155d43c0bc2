"""A question to a vision LLM by VLoRA's weights, against the projector's visual tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

import adapt
from adapt.backbones.hf import vision_tower
from adapt.backbones.preprocess import Preprocess
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.backbones.vision_llm import VisionLLM
from adapt.evaluation.flops import flops
from adapt.recipe import read_recipe
from benchmarks.measure import Row, compared, in_fresh_process

BACKBONE: Final = "mini-clip+mini-lm"
QUESTION, NEW_TOKENS = "what is on the left?", 4
TEXT, PATCHES = 32, 576  # tokens


def answering(method: str) -> Callable[[], object]:
    """Return a step from one image and question to a few tokens, by the shipped recipe's method before training."""
    settings = read_recipe(method).method_config
    model = adapt.wrap(adapt.load_backbone(BACKBONE, "cpu"), adapt.methods.find(method)(**settings)).eval()
    image = torch.randn(1, 3, *[model.backbone.preprocess.size] * 2)
    return lambda: model.generate(image, [QUESTION], max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)


def large(method: str, **at_use: object) -> int:
    """Return the operations of a question of 32 tokens at Vicuna-7B's and CLIP ViT-L/14-336's sizes, without towers."""
    backbone = large_backbone()
    model = adapt.wrap(backbone, adapt.methods.find(method)()).eval().requires_grad_(False)
    if at_use:
        model.set_at_use(**at_use)
    image = torch.zeros(1, 3, *[backbone.preprocess.size] * 2, device="meta")
    question = " ".join(["word"] * TEXT)
    return flops(lambda: model(image, [question])) - flops(lambda: backbone.patches(image))


def large_backbone() -> VisionLLM:
    """Return a backbone of Vicuna-7B's shape behind CLIP ViT-L/14-336's, without allocating anything."""
    eager: Any = {"attn_implementation": "eager"}  # which the counter sees
    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(**eager)).eval()
        config = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            image_size=336, patch_size=14,
        )  # fmt: skip
        tower: Any = CLIPVisionModel(config).eval()
    vision = VisionEncoder(
        model=tower,
        towers={"vision": vision_tower(tower, config)},
        preprocess=Preprocess(336, (0.5,) * 3, (0.5,) * 3),
        encode_image=tower,
    )
    return VisionLLM(vision, llm, _OneToken(), prompt="<image>{}")  # type: ignore[arg-type]


class _OneToken:
    """A tokenizer that gives every word the same token."""

    eos_token_id = pad_token_id = 0
    bos_token = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text.split())}


def by_formula(method: str) -> int:
    """Return the same by formula: 32 blocks of width 4096 with an MLP of 11008, and a head over 32,000 words."""
    width, hidden, blocks, words, rank = 4096, 11008, 32, 32_000, 64
    tokens = TEXT + (PATCHES if method == "projector" else 0)
    block = 4 * tokens * width**2 + 3 * tokens * width * hidden + 2 * tokens**2 * width
    total = blocks * block + tokens * width * words
    if method == "projector":
        return 2 * (total + PATCHES * (1024 * width + width**2))
    dim, depth, updated, letters = 512, 8, 8, 5
    queries = updated  # of each letter's generator
    decoder = 2 * PATCHES * dim**2 + (4 + 2 + 8) * queries * dim**2 + 2 * queries * (queries + PATCHES) * dim
    generator = depth * decoder + queries * dim * width * rank
    applied = updated * letters * tokens * 2 * width * rank
    return 2 * (total + PATCHES * 1024 * dim + letters * generator + applied)


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report operations at 7B by torch's counter and by formula; seconds for an answer of the bundled model."""
    counted, computed = {}, {}
    for method in ("projector", "vlora"):
        progress(f"counting {method} at 7B")
        counted[method], computed[method] = large(method), by_formula(method)
    yield {
        "case": f"7B, {TEXT} text tokens",
        "projector_flops": counted["projector"],
        "vlora_flops": counted["vlora"],
        "share": counted["vlora"] / counted["projector"],
        "share_by_formula": computed["vlora"] / computed["projector"],
        "formula_over_counter": {method: computed[method] / counted[method] for method in counted},
        "text": f"{counted['projector'] / 1e12:.2f} T operations -> {counted['vlora'] / 1e12:.2f} T, "
        f"{100 * counted['vlora'] / counted['projector']:.1f} % "
        f"(by formula {100 * computed['vlora'] / computed['projector']:.1f} %)",
    }
    measured = {}
    for method in ("projector", "vlora"):
        progress(f"answering by {method}")
        measured[method] = in_fresh_process(20, answering, method)
    case = f"{BACKBONE}, an answer of {NEW_TOKENS} tokens"
    yield {"case": case} | compared(measured["projector"], measured["vlora"])
