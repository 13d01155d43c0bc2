"""Checkpoints as Dassl saves them for the published methods."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save(path: Path, state: dict[str, Tensor], **more: Any) -> Path:
    """State, optimiser, and a schedule that holds the optimiser itself."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.002, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    content = {
        "state_dict": state,
        "epoch": 50,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": successor, "counts": collections.defaultdict(dict), "last_epoch": 50},
        "val_result": None,
    }
    torch.save(content | more, path)
    return path


def of_a_learner(tensors: dict[str, Tensor], classes: int = 3) -> dict[str, Tensor]:
    """The state of CoOp's or CoCoOp's prompt learner: `tensors` and the frozen ends of the prompts."""
    n_ctx, width = tensors["ctx"].shape[-2:]
    ends = {"token_prefix": 1, "token_suffix": 76 - n_ctx}
    return tensors | {name: torch.ones(classes, length, width) for name, length in ends.items()}


def of_kgcoop(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of KgCoOp's prompt learner, with a bias and a network that it never uses."""
    return of_a_learner(tensors) | {"bias_vectors": torch.ones(1, 64), "meta_net.linear1.weight": torch.ones(4, 64)}


def of_maple(tensors: dict[str, Tensor], classes: int = 3) -> dict[str, Tensor]:
    """The state of a published MaPLe: its prompt learner and all of CLIP, which a few tensors stand for."""
    return _CLIP | {f"prompt_learner.{name}": tensor for name, tensor in of_a_learner(tensors, classes).items()}


def of_ivlp(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a published IVLP, or VPT, whose prompts `tensors` hold as `TOWER.BLOCK`."""
    return _CLIP | {_ivlp_key(*name.split(".")): tensor for name, tensor in tensors.items()}


def _ivlp_key(tower: str, block: str) -> str:
    encoder = {"text": "text_encoder", "vision": "image_encoder"}[tower]
    if block == "0":
        return {"text": "prompt_learner.ctx", "vision": "image_encoder.VPT"}[tower]
    return f"{encoder}.transformer.resblocks.{block}.VPT_shallow"


_CLIP = {
    "image_encoder.conv1.weight": torch.ones(4, 3, 2, 2),
    "image_encoder.transformer.resblocks.1.ln_1.weight": torch.ones(4),
    "text_encoder.transformer.resblocks.1.attn.in_proj_weight": torch.ones(6, 2),
    "text_encoder.ln_final.weight": torch.ones(2),
    "logit_scale": torch.tensor(4.6),
}
