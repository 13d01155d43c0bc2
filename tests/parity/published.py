"""The numbers of the published implementations in `cases`, and the tiny CLIP that they were computed on."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import tiny_backbones
import tiny_clip
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapt import AdaptedModel, Backbone

CASES = Path(__file__).parent / "cases"
LIBRARIES = ("open_clip", "transformers")
TOLERANCE = 1e-5  # of max(1, largest logit)
GRADIENT_TOLERANCE = 1e-4  # relative


@cache
def case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the tensors of one case."""
    return json.loads((CASES / f"{name}.json").read_text(encoding="utf-8")), load_file(CASES / f"{name}.safetensors")


@cache
def backbone(library: str) -> Backbone:
    """The tiny CLIP in open_clip, or with the same weights in transformers."""
    model = tiny_backbones.native_clip()
    tiny_clip.fill(model)
    if library == "open_clip":
        return tiny_backbones.from_open_clip(model)
    same = tiny_backbones.hf_clip_model()
    same.load_state_dict(to_transformers(model.state_dict()))
    return tiny_backbones.from_hf_clip(same)


class GivenFeatures:
    """A training whose features are at hand: views of the training images `(n, v, e)`, and validation ones `(n, e)`."""

    def __init__(self, model: AdaptedModel, views: Tensor, labels: Tensor, val: tuple[Tensor, Tensor]) -> None:
        self.model, self._views, self._labels, self._val = model, views, labels, val
        self.noted: dict[str, Any] = {}

    def features(self, part: str, *, views: int = 0, unit: bool = True, projected: bool = True) -> Tensor:
        return self._views[:, :views] if part == "train" else self._val[0]

    def labels(self, part: str) -> Tensor:
        return self._labels if part == "train" else self._val[1]

    def items(self, part: str) -> list[int]:
        return self.labels(part).tolist()

    def note(self, **figures: Any) -> None:
        self.noted |= figures


_TOP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "logit_scale": "logit_scale",
}
_PREFIXES = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
}
_PARTS = {
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names and layouts to those of transformers' CLIPModel."""
    mapped = {}
    for key, tensor in state.items():
        if key in _TOP:
            mapped[_TOP[key]] = tensor
        elif key in ("text_projection", "visual.proj"):
            mapped["text_projection.weight" if key == "text_projection" else "visual_projection.weight"] = tensor.T
        elif key != "attn_mask":
            mapped |= _in_a_block(key, tensor)
    return mapped


def _in_a_block(key: str, tensor: Tensor) -> dict[str, Tensor]:
    old, new = next((old, new) for old, new in _PREFIXES.items() if key.startswith(old))
    name = new + key.removeprefix(old)
    for part, renamed in _PARTS.items():
        name = name.replace(part, renamed)
    if ".attn.in_proj_" not in name:
        return {name: tensor}
    block, kind = name.split(".attn.in_proj_")
    thirds = zip("qkv", torch.chunk(tensor, 3))
    return {f"{block}.self_attn.{letter}_proj.{kind}": third for letter, third in thirds}
