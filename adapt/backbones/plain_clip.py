"""CLIP in plain torch, for folders in open_clip's format whose settings are CLIP's own, as those of `mini-clip`.

open_clip takes two seconds to import, and brings transformers, timm and torchvision. The model here has the names,
settings and operations of open_clip's `CLIP`: weights, fingerprints, adapters and features are the same to the bit.
So the maps of the two towers here are also those of open_clip's own models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.preprocess import Preprocess
from adapt.backbones.tokenizer import FileText
from adapt.backbones.tower import (
    Block,
    Form,
    LastProjection,
    Norm,
    Pooling,
    Projection,
    Site,
    TextParts,
    Tower,
    VisionParts,
    fused_qkv,
)

Owner = Any  # a module whose attributes have open_clip's names


def text_tower(owner: Owner, form: Form) -> Tower:
    """Return the map of the text transformer in `owner`, a CLIP or its text encoder."""
    parts = TextParts(
        embedding=owner.token_embedding,
        positions=partial(_positions, owner),
        final_norm=owner.ln_final,
        project=LastProjection(owner, "text_projection"),
    )
    outside = {"final_norm": owner.ln_final, "projection": LastProjection.of(owner, "text_projection")}
    return _tower("text", form, owner, text=parts, **outside)


def vision_tower(visual: Owner, pooling: Pooling, read: Callable[[Tensor, Norm], Tensor]) -> Tower:
    """Return the map of a vision transformer, of which `read` pools the tokens `(b, l, d)` under the final norm."""
    parts = VisionParts(partial(_embed, visual), read, LastProjection(visual, "proj"))
    outside = {
        "pre_norm": visual.ln_pre,
        "final_norm": visual.ln_post,
        "projection": LastProjection.of(visual, "proj"),
    }
    return _tower("vision", Form(False, pooling), visual, vision=None if pooling == "map" else parts, **outside)


def _tower(name: str, form: Form, owner: Owner, **parts: Any) -> Tower:
    blocks = tuple(map(block_of, owner.transformer.resblocks))
    heads, width = blocks[0].attn.num_heads, blocks[0].projections["out"].shape[0]
    assert isinstance(heads, int)
    return Tower(name, width, heads, form, blocks, **parts)


def block_of(module: Owner) -> Block:
    """Return the map of a block with open_clip's names."""
    attn, mlp = module.attn, module.mlp
    projections = fused_qkv(attn, attn.embed_dim, "in_proj_weight", "in_proj_bias")
    projections |= {"out": Projection(attn.out_proj), "fc1": Projection(mlp.c_fc), "fc2": Projection(mlp.c_proj)}
    scales = (module.ls_1, module.ls_2)
    norms = (module.ln_1, module.ln_2)
    sites = dict(zip(("attn", "mlp"), map(Site, norms, scales)))
    form = {"batch_first": attn.batch_first, "quick_gelu": type(mlp.gelu).__name__ == "QuickGELU"}
    return Block(module, attn, *norms, mlp.gelu, projections, *scales, sites, mlp, **form)


# functions of their owner, not closures over it: a copy of the backbone must read its own


def _positions(owner: Owner) -> Tensor:
    positions: Tensor = owner.positional_embedding.detach()
    return positions


def _embed(visual: Owner, images: Tensor) -> Tensor:
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    first = visual.class_embedding.detach().to(patches.dtype).expand(patches.shape[0], 1, -1)
    return torch.cat([first, patches], dim=1) + visual.positional_embedding.detach().to(patches.dtype)


CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_Positive = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class _Vision(_Strict):
    image_size: PositiveInt
    patch_size: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    head_width: PositiveInt
    mlp_ratio: _Positive


class _Text(_Strict):
    context_length: PositiveInt
    vocab_size: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    mlp_ratio: _Positive
    hf_tokenizer_name: str


class _Model(_Strict):
    embed_dim: PositiveInt
    vision_cfg: _Vision
    text_cfg: _Text
    quick_gelu: bool = False


class _Pixels(_Strict):
    size: PositiveInt
    mean: tuple[float, float, float]
    std: tuple[_Positive, _Positive, _Positive]
    interpolation: Literal["bilinear", "bicubic"]
    resize_mode: Literal["shortest"]


class _Config(_Strict):
    """A configuration in open_clip's format with no option beyond a CLIP's sizes and pixels."""

    model_cfg: _Model
    preprocess_cfg: _Pixels


def load(folder: Path, name: str | None, tensors: bool) -> DualEncoder | None:
    """Return the backbone of a folder in open_clip's format, without `tensors` on the meta device.

    The result is None if the folder has an option, a weight or a tokenizer that needs open_clip: then open_clip loads
    the folder, or says what is wrong with it.
    """
    try:
        config = _Config.model_validate_json((folder / CONFIG).read_bytes())
    except (OSError, ValidationError):
        return None
    tokenizer = FileText.of(folder, config.model_cfg.text_cfg.context_length)
    if tokenizer is None or config.preprocess_cfg.size != config.model_cfg.vision_cfg.image_size:
        return None
    with torch.device("meta"):
        model = PlainCLIP(config.model_cfg)
    if tensors:
        if _shapes(folder / WEIGHTS) != {name: tuple(x.shape) for name, x in model.state_dict().items()}:
            return None
        stored = load_file(folder / WEIGHTS)
        model.load_state_dict({name: x.to(torch.float32, copy=True) for name, x in stored.items()}, assign=True)
    square = (model.context_length,) * 2
    # added to the scores of tokens that follow
    later = torch.full(square, float("-inf"), device=model.logit_scale.device).triu_(1)
    model.register_buffer("attn_mask", later, persistent=False)
    pixels = config.preprocess_cfg
    preprocess = Preprocess(pixels.size, pixels.mean, pixels.std, pixels.interpolation)
    text = text_tower(model, Form(causal=True, pooling="end"))
    vision = vision_tower(model.visual, "class", _pooled)
    return DualEncoder(
        model=model.eval(),
        towers={tower.name: tower for tower in (text, vision)},
        tokenizer=tokenizer,
        preprocess=preprocess,
        encode_image=model.encode_image,
        encode_text=model.encode_text,
        name=name,
        eval_transform=Pillow(preprocess),
        write=partial(_export, config, tokenizer),
    )


def _shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file by name; empty if the file cannot be read."""
    try:
        with safe_open(weights, framework="pt") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def _pooled(x: Tensor, norm: Norm) -> Tensor:
    """Return the class token `(b, d)` of tokens `(b, l, d)`, under the final norm."""
    return norm(x)[:, 0]


def _projected(pooled: Tensor, projection: Tensor | None) -> Tensor:
    """Return the features `(n, e)` of pooled tokens `(n, d)`; an edit of the projection leaves None in its place."""
    return pooled if projection is None else pooled @ projection


def _export(config: _Config, tokenizer: FileText, folder: Path, model: nn.Module) -> None:
    """Save a model to a folder in open_clip's `local-dir:` format."""
    (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
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
        self.resblocks = nn.ModuleList(AttentionBlock(width, heads, mlp_ratio, activation) for _ in range(layers))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, attn_mask=attn_mask)
        return x


class VisionTransformer(nn.Module):
    """CLIP's ViT, which returns features `(b, e)` of images `(b, 3, h, w)`."""

    def __init__(self, embed_dim: int, sizes: _Vision, activation: type[nn.Module]) -> None:
        super().__init__()
        width, patch_size = sizes.width, sizes.patch_size
        side = sizes.image_size // patch_size
        # nothing reads these settings but the fingerprint, which is then that of open_clip's model
        self.image_size, self.patch_size = (sizes.image_size,) * 2, (patch_size,) * 2
        self.final_ln_after_pool, self.attn_pool, self.pool_type = False, None, "tok"
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.patch_dropout = nn.Identity()
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, sizes.layers, width // sizes.head_width, sizes.mlp_ratio, activation)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        x = self.transformer(self.ln_pre(self.patch_dropout(x)))
        return _projected(_pooled(x, self.ln_post), self.proj)


class PlainCLIP(nn.Module):
    """CLIP with a ViT."""

    attn_mask: Tensor

    def __init__(self, sizes: _Model) -> None:
        super().__init__()
        activation = QuickGELU if sizes.quick_gelu else nn.GELU
        text, embed_dim = sizes.text_cfg, sizes.embed_dim
        width = text.width
        self.context_length, self.vocab_size = text.context_length, text.vocab_size
        self.text_pool_type, self.text_eos_id, self.logit_bias = "argmax", 2, None  # as above
        self.visual = VisionTransformer(embed_dim, sizes.vision_cfg, activation)
        self.transformer = Transformer(width, text.layers, text.heads, text.mlp_ratio, activation)
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
        return _projected(pooled, self.text_projection)


@dataclass(frozen=True)
class Pillow:
    """The evaluation transform of open_clip, by Pillow alone: resize the shorter edge, crop the centre, normalise."""

    preprocess: Preprocess

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels `(3, size, size)` of an image, with a mean of 0 and a deviation of 1 on CLIP's images."""
        size, (width, height) = self.preprocess.size, image.size
        resized = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
        if resized != image.size:
            image = image.resize(resized, _FILTERS[self.preprocess.interpolation])
        left, top = (round((edge - size) / 2) for edge in resized)
        image = image.crop((left, top, left + size, top + size)).convert("RGB")
        pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.preprocess.mean, self.preprocess.std))
        return pixels.sub_(mean).div_(std)
