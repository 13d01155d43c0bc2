"""BitFit: trains the biases of both towers, and nothing else.

Papers: Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models,
ACL 2022; also the first stage of Farina et al., CVPR 2025.
Reference: rethinking_fewshot_vlms `64ac143`, `fs/utils/model_utils.py`.
Deviations: the biases of q, k and v stay frozen, as in this reference and unlike the paper; biases are fp32 whatever
the backbone's precision. The norms outside the blocks are tuned whichever block is the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Block, Projection, Tower
from adapt.edits import Edit, Replace
from adapt.methods.base import Context
from adapt.methods.ln_tuning import NORMS, LNTuning, held, hold, layer_norm

LINEARS = {"out": ("attn", "out_proj"), "fc1": ("mlp", "c_fc"), "fc2": ("mlp", "c_proj")}
OUTER = {"text": {"final_norm": "ln_final"}, "vision": {"pre_norm": "ln_pre", "final_norm": "ln_post"}}


class BitFit(LNTuning):
    """Bias tuning. `BitFit()` trains the biases of layer norms, `attn.out_proj`, `mlp.c_fc` and `mlp.c_proj`."""

    name = "bitfit"
    title = "BitFit (Ben Zaken et al., ACL 2022)"

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        for name in self.config.towers:
            tower = backbone.tower(name)
            hold(self, name, {index: self._biases(block) for index, block in self.tuned_blocks(tower)})
            for part, called in _outer(tower):
                self._owner(tower).add_module(called, _Bias(layer_norm(tower.parts[part], self)))
        self.to(backbone.device)

    def _biases(self, block: Block) -> dict[str, nn.Module]:
        norms = {called: _Bias(layer_norm(getattr(block, part), self)) for part, called in NORMS.items()}
        within: dict[str, dict[str, nn.Module]] = {}
        for letter, (module, linear) in _linears(block):
            within.setdefault(module, {})[linear] = _Bias(block.projections[letter])
        return {**norms, **{module: nn.ModuleDict(own) for module, own in within.items()}}

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        edits: list[Edit] = []
        for index, own in held(self, tower.name):
            block = tower.blocks[int(index)]
            for part, called in NORMS.items():
                edits.append(Replace(int(index), part, _Norm(layer_norm(getattr(block, part), self), own[called])))
            for letter, (module, linear) in _linears(block):
                moved = _Linear(block.projections[letter], own[module][linear])  # type: ignore[index]
                edits.append(Replace(int(index), letter, moved))
        for part, called in _outer(tower):
            outer = self._owner(tower).get_submodule(called)
            edits.append(Replace(None, part, _Norm(layer_norm(tower.parts[part], self), outer)))
        return edits

    def _owner(self, tower: Tower) -> nn.Module:
        """Return the submodule of the method that stores the biases of the layer norms outside a tower's blocks."""
        return self if tower.name == "text" else self.get_submodule("visual")


def _linears(block: Block) -> list[tuple[str, tuple[str, str]]]:
    """Return the linear layers of `block` whose bias is trained, each with its module names in CLIP's state dict."""
    return [(letter, names) for letter, names in LINEARS.items() if letter in block.projections]


def _outer(tower: Tower) -> list[tuple[str, str]]:
    """Return the layer norms outside a tower's blocks, as pairs of the name in `tower` and the name in CLIP."""
    return [
        (part, called)
        for part, called in OUTER[tower.name].items()
        if not isinstance(tower.parts.get(part, nn.Identity()), nn.Identity)
    ]


class _Bias(nn.Module):
    """A trained bias, initialised with the bias of a frozen layer norm or linear layer."""

    def __init__(self, frozen: nn.LayerNorm | Projection) -> None:
        super().__init__()
        size = frozen.normalized_shape if isinstance(frozen, nn.LayerNorm) else frozen.shape[0]
        start = torch.zeros(size) if frozen.bias is None else frozen.bias.detach().float().clone()
        self.bias = nn.Parameter(start)


class _Norm(nn.Module):
    """A frozen layer norm whose bias is replaced by a trained bias."""

    def __init__(self, norm: nn.LayerNorm, own: Any) -> None:
        super().__init__()
        self._frozen, self.own = (norm,), own  # in a tuple, so that it is not a submodule

    def forward(self, x: Tensor) -> Tensor:
        (norm,), bias = self._frozen, self.own.bias
        weight = None if norm.weight is None else norm.weight.detach().to(bias.dtype)
        return F.layer_norm(x.to(bias.dtype), norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)


class _Linear(nn.Module):
    """A frozen linear layer whose bias is replaced by a trained bias."""

    def __init__(self, projection: Projection, own: Any) -> None:
        super().__init__()
        self._frozen, self.own = projection, own

    def forward(self, x: Tensor) -> Tensor:
        moved = self.own.bias
        if self._frozen.bias is not None:
            moved = moved - self._frozen.bias
        return self._frozen(x) + moved.to(x.dtype)
