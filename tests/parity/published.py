"""The numbers of the published implementations in `cases`, and the tiny CLIP that they were computed on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tiny_backbones
import tiny_clip
import torch
import torch.nn.functional as F
from checks import relative, scaled
from safetensors.torch import load_file
from torch import Tensor

from adapt import Backbone

CASES = Path(__file__).parent / "cases"
LIBRARIES = ("open_clip", "transformers")
TOLERANCE = 1e-5  # of max(1, largest logit)
GRADIENT_TOLERANCE = 1e-4  # relative
Reading = Callable[[Tensor], Tensor]


def unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)


@dataclass
class Used:
    """The keys of a case that the running test has read, and those of them that it compared with something."""

    read: set[str] = field(default_factory=set)
    compared: set[str] = field(default_factory=set)


USED: dict[str, Used] = defaultdict(Used)  # by case, since the running test began


class Stored(Mapping[str, Any]):
    """Numbers of a case by their keys; `USED` tells which of them a test read, and which it held something against."""

    def __init__(self, name: str, values: Mapping[str, Any], prefix: str = "") -> None:
        self._name, self._values, self._prefix = name, values, prefix

    def __getitem__(self, key: str) -> Any:
        USED[self._name].read.add(self._prefix + key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def under(self, prefix: str) -> dict[str, Any]:
        """Those whose keys begin with `prefix`, without it."""
        return {key.removeprefix(prefix): self[key] for key in self._values if key.startswith(prefix)}

    def scaled(self, key: str, value: Tensor, of: Reading = lambda stored: stored, within: float = TOLERANCE) -> None:
        """Holds `value` against `of` what is stored: the largest difference, in units of max(1, largest)."""
        self._hold(key, scaled(value, self._right(key, value, of)), within)

    def relative(
        self, key: str, value: Tensor | None, of: Reading = lambda stored: stored, within: float = GRADIENT_TOLERANCE
    ) -> None:
        """The same by norms: that of the difference over that of what is stored."""
        assert value is not None, f"{self._name}: nothing is there to hold against {key}"
        self._hold(key, relative(value, self._right(key, value, of)), within)

    def equal(self, key: str, value: Any, of: Callable[[Any], Any] = lambda stored: stored) -> None:
        """Holds numbers and words against `of` what is stored: they are the same."""
        USED[self._name].compared.add(self._prefix + key)
        stored = of(self[key])
        stored, value = (each.tolist() if isinstance(each, Tensor) else each for each in (stored, value))
        assert stored == value, f"{self._name}: {key}"

    def _right(self, key: str, value: Tensor, of: Reading) -> Tensor:
        USED[self._name].compared.add(self._prefix + key)
        right = of(self[key])
        assert value.shape == right.shape, f"{self._name}: {key} is {tuple(right.shape)}, not {tuple(value.shape)}"
        return right

    def _hold(self, key: str, off: float, within: float) -> None:
        assert off < within, f"{self._name}: {key} is off by {off:.1e}, and {within:.0e} is allowed"


def case(name: str) -> tuple[Stored, Stored]:
    """The settings and the tensors of one case. The keys of settings are known to the list with `settings.` before."""
    settings, tensors = _read(name)
    return Stored(name, settings, "settings."), Stored(name, tensors)


def keys(name: str) -> list[str]:
    """All that is stored of a case."""
    settings, tensors = _read(name)
    return [*(f"settings.{key}" for key in settings), *tensors]


@cache
def _read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
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


OF_LLAMA = {  # a block's tensors as Meta's code and as transformers calls them
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
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
