"""CLIP in plain torch, for folders in open_clip's format whose settings are CLIP's own, as those of `mini-clip`.

open_clip takes two seconds to import, and brings transformers, timm and torchvision. The model here has the names,
settings and operations of open_clip's `CLIP`: weights, fingerprints, adapters and features are the same to the bit.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapt.backbones import clip_towers
from adapt.backbones.base import DualEncoder
from adapt.backbones.preprocess import Preprocess
from adapt.backbones.tokenizer import FileText
from adapt.backbones.tower import Form, Norm

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_VISION = ("image_size", "patch_size", "width", "layers", "head_width")
_TEXT = ("context_length", "vocab_size", "width", "layers", "heads")
_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # Pillow's


def is_plain(folder: Path) -> bool:
    """Return whether a folder in open_clip's format needs nothing of open_clip's: no option beyond CLIP's sizes."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    model, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
    text = {**model["text_cfg"]}
    named = text.pop("hf_tokenizer_name", None)
    return (
        isinstance(named, str)
        and model.keys() - {"quick_gelu"} == {"embed_dim", "vision_cfg", "text_cfg"}
        and isinstance(model.get("quick_gelu", False), bool)
        and _sizes(model, ("embed_dim",))
        and all(
            tower.keys() == {*sizes, "mlp_ratio"} and _sizes(tower, sizes) and isinstance(tower["mlp_ratio"], float)
            for tower, sizes in ((model["vision_cfg"], _VISION), (text, _TEXT))
        )
        and preprocess.keys() == {"size", "mean", "std", "interpolation", "resize_mode"}
        and preprocess["size"] == model["vision_cfg"]["image_size"]
        and preprocess["resize_mode"] == "shortest"
        and preprocess["interpolation"] in _FILTERS
        and FileText.reads(folder)
    )


def _sizes(settings: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return all(type(settings[name]) is int and settings[name] > 0 for name in names)


def load(folder: Path, name: str | None, tensors: bool) -> DualEncoder:
    """Return the backbone of a folder for which `is_plain` holds, without `tensors` on the meta device."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = PlainCLIP(**config["model_cfg"])
    if tensors:
        stored = load_file(folder / WEIGHTS)
        model.load_state_dict({name: x.to(torch.float32, copy=True) for name, x in stored.items()}, assign=True)
    model.register_buffer("attn_mask", causal_mask(model.context_length), persistent=False)
    settings = config["preprocess_cfg"]
    preprocess = Preprocess(
        settings["size"], tuple(settings["mean"]), tuple(settings["std"]), settings["interpolation"]
    )
    tokenizer = FileText(folder, model.context_length)
    text = clip_towers.text_tower(model, Form(causal=True, pooling="end"))
    vision = clip_towers.vision_tower(model.visual, "class", _pooled)
    return DualEncoder(
        model=model.eval(),
        towers={tower.name: tower for tower in (text, vision)},
        tokenizer=tokenizer,
        preprocess=preprocess,
        encode_image=model.encode_image,
        encode_text=model.encode_text,
        name=name,
        eval_transform=Pillow(preprocess.size, preprocess.mean, preprocess.std, preprocess.interpolation),
        export=partial(_export, config, tokenizer),
    )


def causal_mask(length: int) -> Tensor:
    """Return the mask `(l, l)` that is added to scores: minus infinity for the tokens that follow."""
    return torch.full((length, length), float("-inf")).triu_(1)


def _pooled(x: Tensor, norm: Norm) -> Tensor:
    """Return the class token `(b, d)` of tokens `(b, l, d)`, under the final norm."""
    return norm(x)[:, 0]


def _export(config: Mapping[str, Any], tokenizer: FileText, folder: Path, model: nn.Module) -> None:
    """Save a model to a folder in open_clip's `local-dir:` format."""
    quick = {"quick_gelu": any(isinstance(module, QuickGELU) for module in model.modules())}
    written = {**config, "model_cfg": {**config["model_cfg"], **quick}}
    (folder / CONFIG).write_text(json.dumps(written, indent=2) + "\n")
    save_file({name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}, folder / WEIGHTS)
    tokenizer.save(folder)


class LayerNorm(nn.LayerNorm):
    """A layer norm whose output has the dtype of its input, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class AttentionBlock(nn.Module):
    """A pre-norm transformer layer. The scales `ls_1` and `ls_2` are identities in CLIP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: type[nn.Module]) -> None:
        super().__init__()
        inner = int(width * mlp_ratio)
        self.ln_1 = LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1 = nn.Identity()
        self.ln_2 = LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, inner), "gelu": activation(), "c_proj": nn.Linear(inner, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls_2 = nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        normed = self.ln_1(x)
        mask = None if attn_mask is None else attn_mask.to(normed.dtype)
        x = x + self.ls_1(self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0])
        added: Tensor = self.ls_2(self.mlp(self.ln_2(x)))
        return x + added


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, activation: type[nn.Module]) -> None:
        super().__init__()
        self.width, self.layers, self.batch_first, self.grad_checkpointing = width, layers, True, False
        self.resblocks = nn.ModuleList(AttentionBlock(width, heads, mlp_ratio, activation) for _ in range(layers))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, attn_mask=attn_mask)
        return x


class VisionTransformer(nn.Module):
    """CLIP's ViT, which returns features `(b, e)` of images `(b, 3, h, w)`."""

    def __init__(
        self,
        embed_dim: int,
        activation: type[nn.Module],
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        head_width: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        side = image_size // patch_size
        self.image_size, self.patch_size, self.grid_size = (image_size,) * 2, (patch_size,) * 2, (side,) * 2
        self.final_ln_after_pool, self.attn_pool, self.pool_type = False, None, "tok"
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.patch_dropout = nn.Identity()
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, width // head_width, mlp_ratio, activation)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        x = self.transformer(self.ln_pre(self.patch_dropout(x)))
        return _pooled(x, self.ln_post) @ self.proj


class PlainCLIP(nn.Module):
    """CLIP with a ViT, of sizes in the words of open_clip's configuration."""

    attn_mask: Tensor

    def __init__(
        self, embed_dim: int, vision_cfg: Mapping[str, Any], text_cfg: Mapping[str, Any], quick_gelu: bool = False
    ) -> None:
        super().__init__()
        activation = QuickGELU if quick_gelu else nn.GELU
        width, ratio = text_cfg["width"], text_cfg["mlp_ratio"]
        self.context_length, self.vocab_size = text_cfg["context_length"], text_cfg["vocab_size"]
        self.text_pool_type, self.text_eos_id, self.logit_bias = "argmax", 2, None
        self.visual = VisionTransformer(embed_dim, activation, **vision_cfg)
        self.transformer = Transformer(width, text_cfg["layers"], text_cfg["heads"], ratio, activation)
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(self.vocab_size, width), freeze=False)
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.empty([]))

    def encode_image(self, images: Tensor) -> Tensor:
        """Return the features `(b, e)` of images `(b, 3, h, w)`."""
        features: Tensor = self.visual(images)
        return features

    def encode_text(self, ids: Tensor) -> Tensor:
        """Return the features `(n, e)` of token ids `(n, l)`, read at the end token, whose id is the highest."""
        x = self.token_embedding(ids)
        x = x + self.positional_embedding.to(x.dtype)
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask))
        pooled = x[torch.arange(x.shape[0], device=x.device), ids.argmax(dim=-1)]
        features: Tensor = pooled @ self.text_projection
        return features


@dataclass(frozen=True)
class Pillow:
    """The evaluation transform of open_clip, by Pillow alone: resize the shorter edge, crop the centre, normalise."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels `(3, size, size)` of an image, with a mean of 0 and a deviation of 1 on CLIP's images."""
        size, (width, height) = self.size, image.size
        resized = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
        if resized != image.size:
            image = image.resize(resized, Image.Resampling(_FILTERS[self.interpolation]))
        left, top = (round((edge - size) / 2) for edge in resized)
        image = image.crop((left, top, left + size, top + size)).convert("RGB")
        pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)
