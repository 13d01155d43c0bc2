"""IVLP: independent prompts in the blocks of both towers, or deep visual prompts (VPT) or deep language prompts alone.

Papers: Jia et al., Visual Prompt Tuning, ECCV 2022 (VPT); Rasheed et al., Fine-tuned CLIP Models are Efficient Video
Learners, CVPR 2023 (IVLP); both as baselines of Khattak et al., MaPLe, CVPR 2023.
Reference: MaPLe `69bce21`, `trainers/ivlp.py`, `trainers/vpt.py`, `clip/model.py`.
Deviations:
* Parameters are called `text.I` and `vision.I` after the block that they enter; in the reference the first ones belong
  to the prompt learner and the vision tower, and deeper ones to the blocks. Published checkpoints are renamed on
  import.
* More learned tokens than `ctx_init` has are refused; the reference starts them at random and drops the words.
* VPT's head, its uniform start and its dropout of tokens are left out.
* Prompts are fp32 whatever the backbone's precision.

`n_ctx_text=0` is VPT, whose text is `ctx_init` and the class name; `n_ctx_vision=0` is deep language prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Tower
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context, ImageStep, Method, MethodConfig
from adapt.methods.base.places import depth_in
from adapt.methods.base.traits import LEARNER, Imported, LearnedTokens, ReadsPublished, learned
from adapt.prompts import Prompt, initial_context, published_words, with_context

# the names of prompts in published checkpoints, which hold all of CLIP
_TOWERS = {"text": "text", "image": "vision"}
_FIRST_VISION = "image_encoder.VPT"
_DEEPER = re.compile(r"(text|image)_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow")


class IVLPConfig(MethodConfig):
    n_ctx_text: int = Field(default=2, ge=0)
    """The number of learned tokens in the text tower; 0 leaves the tower unchanged (VPT)."""
    n_ctx_vision: int = Field(default=2, ge=0)
    """The number of learned tokens in the vision tower; 0 leaves the tower unchanged."""
    depth_text: int | None = Field(default=12, ge=1)
    """Number of text blocks, from the first, with learned tokens of their own; null: the published share of all."""
    depth_vision: int | None = Field(default=12, ge=1)
    """The same for the vision tower."""
    ctx_init: str = "a photo of a"
    """The words before the class name, from which the first learned tokens start; empty draws these from N(0, 0.02)."""

    project: int | None = Field(default=None, ge=1)
    """The width of the vision tower's learned tokens, if a linear map brings them to that of the tower (VPT)."""

    @model_validator(mode="after")
    def _something_learns(self) -> IVLPConfig:
        if self.n_ctx_text + self.n_ctx_vision == 0:
            raise ValueError("n_ctx_text and n_ctx_vision are both 0; expected at least one above 0, to train tokens")
        if self.project is not None and not self.n_ctx_vision:
            raise ValueError("project is given, but n_ctx_vision is 0, so that there are no tokens to project")
        return self


class IVLP(Method[ImageStep], LearnedTokens, ReadsPublished):
    """Deep prompts in both towers. `IVLP(n_ctx_text, ...)` trains `text.I` and `vision.I` `(k, d)` for each block I.

    With `project`, the latter are `(k, project)`, and `prompt_proj` maps them all.
    """

    name = "ivlp"
    title = "VPT, deep language prompts and IVLP (Jia et al., ECCV 2022; Khattak et al., CVPR 2023)"
    Config = IVLPConfig
    serves: tuple[str, ...] = ("dual encoder", "vision encoder")
    published_share = 1.0  # the share of blocks that get tokens if no depth is given
    example = {"n_ctx_vision": 3, "depth_text": 2, "depth_vision": 2}

    @property
    def touches(self) -> frozenset[str]:
        counts = {"text": self.config.n_ctx_text, "vision": self.config.n_ctx_vision}
        return frozenset(tower for tower, count in counts.items() if count)

    @property
    def owns_prompts(self) -> bool:
        return "text" in self.touches

    @property
    def learned_tokens(self) -> dict[str, Tensor]:
        return {"text.0": self.text[0]} if "text" in self.touches else {}

    @classmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        tensors = {"text.0" if key == "ctx" else key: x for key, x in learned(state, LEARNER).items()}
        for key, x in state.items():
            if key == _FIRST_VISION:
                tensors["vision.0"] = x
            if match := _DEEPER.fullmatch(key):
                tensors[f"{_TOWERS[match[1]]}.{match[2]}"] = x
        if not tensors:
            raise KeyError(f"{LEARNER}ctx or {_FIRST_VISION}")
        settings: dict[str, Any] = {}
        for tower in _TOWERS.values():
            own = [x for name, x in tensors.items() if name.startswith(tower)]
            settings |= {f"n_ctx_{tower}": len(own[0]) if own else 0, f"depth_{tower}": max(1, len(own))}
        return tensors, settings | {"ctx_init": published_words(settings["n_ctx_text"])}

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        config = self.config
        self.text, self.vision = nn.ParameterList(), nn.ParameterList()
        if "text" in self.touches:
            first = initial_context(backbone, config.ctx_init, config.n_ctx_text)
            self.text = self._prompts(backbone.tower("text"), first, config.depth_text).to(backbone.device)
        if "vision" in self.touches:
            width = backbone.tower("vision").width
            first = torch.empty(config.n_ctx_vision, config.project or width).normal_(std=0.02)
            if config.project:
                self.prompt_proj = nn.Linear(config.project, width)
                nn.init.kaiming_normal_(self.prompt_proj.weight, mode="fan_out")
                self.prompt_proj.to(backbone.device)
            self.vision = self._prompts(backbone.tower("vision"), first, config.depth_vision).to(backbone.device)

    def _prompts(self, tower: Tower, first: Tensor, depth: int | None) -> nn.ParameterList:
        """Return the initial prompts of a tower's blocks, `first` in block 0 and N(0, 0.02) noise in later blocks."""
        depth = depth_in((tower,), depth, self.published_share, self.name, f"depth_{tower.name}")
        self.config = self.config.model_copy(update={f"depth_{tower.name}": depth})
        return nn.ParameterList([first, *(torch.empty_like(first).normal_(std=0.02) for _ in range(depth - 1))])

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        return [with_context(tokenizer, self.config.ctx_init, self.config.n_ctx_text, class_name)]

    def tokens(self, tower: str) -> Iterable[Tensor]:
        """Return the tokens `(k, d)` that enter each block of a tower, from the first, before any projection."""
        return {"text": self.text, "vision": self.vision}[tower]

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        enters = self.prompt_proj if tower.name == "vision" and self.config.project else nn.Identity()
        return [Tokens(enters(values), block or None) for block, values in enumerate(self.tokens(tower.name))]
