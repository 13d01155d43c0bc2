"""Which checkpoint is made: mini-clip, or mini-clip-half, a second one of half the width, where MINI_CLIP names it."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """The sizes of one of the two, where its random numbers start, and the ImageNet teachers of its image tower."""

    name: str
    seed: int
    embed_dim: int
    vocabulary: int
    text: dict
    text_steps: tuple[int, int]  # how many, and of how many phrases
    image: dict
    phrases: tuple[int, int]  # nouns, and pairs of adjective and noun, that the text tower reads
    teachers: tuple[int, ...]  # versions of EfficientNet-Lite
    minutes: float  # of the image tower's training

    @property
    def folder(self) -> Path:
        """Where it is bundled, with its card."""
        return Path(__file__).resolve().parents[2] / self.name


SHAPES = [
    Shape(
        "mini-clip",
        seed=0,
        embed_dim=256,
        vocabulary=10_000,
        text={"context_length": 48, "width": 192, "heads": 3, "layers": 4, "mlp_ratio": 4.0},
        text_steps=(350, 512),
        image={"image_size": 64, "patch_size": 8, "width": 192, "layers": 6, "heads": 3, "mlp_ratio": 3.0},
        phrases=(52_000, 28_000),
        teachers=(0, 2),
        minutes=68,
    ),
    Shape(
        "mini-clip-half",
        seed=1,
        embed_dim=128,
        vocabulary=3_500,
        text={"context_length": 48, "width": 96, "heads": 3, "layers": 4, "mlp_ratio": 4.0},
        text_steps=(600, 512),
        image={"image_size": 64, "patch_size": 8, "width": 96, "layers": 6, "heads": 3, "mlp_ratio": 3.0},
        phrases=(22_000, 6_000),
        teachers=(0,),
        minutes=56,
    ),
]
SHAPE = {shape.name: shape for shape in SHAPES}[os.environ.get("MINI_CLIP", "mini-clip")]
