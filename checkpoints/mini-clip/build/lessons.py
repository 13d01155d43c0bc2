"""The training images of the image tower with their two targets."""

from dataclasses import dataclass
from pathlib import Path

import augment
import numpy as np
import torch
import torch.nn.functional as F
from concepts import Concept, load
from render import open_renders
from teach import training_rows
from text import name_embeddings
from torch import Tensor

SOURCE_SIDE = 80  # px; a view takes 64 of them
# Mirroring changes what these show, or what is written on them.
NEVER_MIRRORED = {"arrow", "alphanum", "keycap", "country-flag", "subdivision-flag", "time", "math", "punctuation"}


@dataclass
class Lessons:
    """The training images with their targets; `images` (n, 4, 80, 80) uint8 premultiplied."""

    images: Tensor
    label: Tensor
    may_flip: Tensor
    looks: Tensor
    names: Tensor

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Fresh views, their labels among `names` and the teacher's targets."""
        rows = torch.randint(len(self.label), (size,))
        return augment.views(self.images[rows], self.may_flip[rows]), self.label[rows], self.looks[rows]


def mirrors(concept: Concept) -> bool:
    """Whether a mirror image still shows the concept."""
    return concept.group not in NEVER_MIRRORED and not {"left", "right", "facing"} & set(concept.name.split())


def load_lessons(work: Path) -> Lessons:
    """Read what `render.save` and `teach.save_*` wrote."""
    concepts, renders = load(work), open_renders(work)
    rows = training_rows(renders, concepts)
    images = torch.empty(len(rows), 4, SOURCE_SIDE, SOURCE_SIDE, dtype=torch.uint8)
    for part in np.array_split(np.arange(len(rows)), 20):
        x = torch.from_numpy(renders.images[rows[part]]).permute(0, 3, 1, 2).float()
        x[:, :3] *= x[:, 3:] / 255
        images[part] = F.interpolate(x, size=SOURCE_SIDE, mode="area").round().byte()
    seen, label = np.unique(renders.concept[rows], return_inverse=True)
    may_flip = torch.tensor([mirrors(concept) for concept in concepts])[renders.concept[rows]]
    looks, names = torch.load(work / "looks.pt")[rows], name_embeddings(work)[seen]
    return Lessons(images, torch.from_numpy(label), may_flip, looks, names)
