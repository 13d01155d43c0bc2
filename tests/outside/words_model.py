"""A dual encoder in plain torch that reads words: someone's own model, as a family of backbones meets it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, FEATURES, SIDE, PATCH, LENGTH, END = 32, 2, 3, 24, 32, 8, 77, 127


class Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        mixed: Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), Attention(causal), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH) / 10)
        self.layers = nn.Sequential(*(Layer(causal=True) for _ in range(LAYERS)))
        self.final_norm, self.projection = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, FEATURES, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.final_norm(self.layers(self.embedding(ids) + self.positions[: ids.shape[1]]))
        features: Tensor = self.projection(x[torch.arange(len(ids)), ids.argmax(-1)])
        return features


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH) / 10)
        self.pre_norm = nn.LayerNorm(WIDTH)
        self.layers = nn.Sequential(*(Layer(causal=False) for _ in range(LAYERS)))
        self.final_norm, self.projection = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, FEATURES, bias=False)

    def embed(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(images), 1, -1), patches], 1) + self.positions

    def read(self, x: Tensor, norm: nn.Module) -> Tensor:
        pooled: Tensor = norm(x[:, 0])
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.projection(self.read(self.layers(self.pre_norm(self.embed(images))), self.final_norm))
        return features


class WordsModel(nn.Module):
    """`encode` of images and texts; always the same random weights."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.text, self.vision = Text(), Vision()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))
