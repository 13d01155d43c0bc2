"""A quick look at the image tower while it is trained; the figures of the card come from `evaluate.py`."""

from pathlib import Path

import augment
import numpy as np
import torch
from concepts import load
from render import on_white, open_renders
from sources import UNSEEN_STYLE
from text import name_embeddings
from torch import Tensor, nn


class Monitor:
    """Zero-shot over the names on samples: a seen style, the unseen style, the held-out concepts."""

    def __init__(self, work: Path):
        concepts, renders = load(work), open_renders(work)
        held_out = np.array([concept.held_out for concept in concepts])
        self.names = name_embeddings(work)
        self.sets = {
            "seen": (renders.rows(["twemoji"], ~held_out)[::4], np.arange(len(concepts))),
            "unseen": (renders.rows([UNSEEN_STYLE], np.ones_like(held_out))[::3], np.arange(len(concepts))),
            "held_out": (renders.rows(["twemoji", UNSEEN_STYLE], held_out)[::2], np.flatnonzero(held_out)),
        }
        self.images = {k: to_tensor(on_white(renders.images[rows], augment.OUT)) for k, (rows, _) in self.sets.items()}
        self.truth = {k: torch.from_numpy(renders.concept[rows]) for k, (rows, _) in self.sets.items()}

    @torch.no_grad()
    def __call__(self, student: nn.Module) -> dict[str, float]:
        """Top-1 and top-5 in per cent."""
        student.eval()
        scores = {}
        for name, (_, candidates) in self.sets.items():
            embedding = torch.cat([student(x)[0] for x in self.images[name].split(256)])
            best = torch.from_numpy(candidates)[(embedding @ self.names[candidates].T).topk(5).indices]
            hits = best == self.truth[name][:, None]
            scores[name] = [round(100 * hits[:, :k].any(1).float().mean().item(), 1) for k in (1, 5)]
        return scores


def to_tensor(pictures: list) -> Tensor:
    """PIL pictures to (n, 3, s, s) in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 255
