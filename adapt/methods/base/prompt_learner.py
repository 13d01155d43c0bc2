"""Tensors of learned prompts in published checkpoints."""

from __future__ import annotations

from torch import Tensor

LEARNER = "prompt_learner."  # where published checkpoints that hold all of CLIP keep a method's tensors


def learned(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors under `prefix` in a published prompt-learning checkpoint, without frozen token embeddings."""
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    return {key: tensor for key, tensor in own.items() if key not in ("token_prefix", "token_suffix")}
