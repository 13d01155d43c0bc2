"""Full and partial fine-tuning: trains the weights of towers themselves, all, of the last blocks, or of named parts.

Papers: Dong et al., CLIP Itself is a Strong Fine-tuner, arXiv 2212.06138 (rates that fall from layer to layer, as in
BEiT); Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, CVPR 2022 (WiSE-FT: `alpha`); Goyal et al., Finetune
Like You Pretrain, CVPR 2023 (FLYP: `loss: contrastive`).
Reference: none; tests hold the formulas, in fp64. No number here is a paper's.
Deviations:
* An adapter holds differences from the frozen weights in half precision (`dtype`); what is measured has the same
  rounding. Between an evaluation and the next step, the weights that train are not rounded.
* The logit scale stays frozen, and buffers, such as the statistics of a batch norm, stay as they are: the backbone is
  in evaluation mode, without its own dropout. All prompts of a class are averaged; FLYP draws one for each image.
* WiSE-FT mixes the towers' weights, not a trained head (of a backbone without texts). Without validation images, alpha
  is chosen on held-out folds, each of which is trained by itself.
* FLYP's loss on image-caption pairs is the task's own, in which equal captions are no negatives.
* Of a fusion encoder, whatever comes before its fusing blocks has the rate of embeddings.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Tower, TowerName
from adapt.common.errors import AdaptError, nearest
from adapt.edits import Edit, Parameters
from adapt.engine.hooks import run
from adapt.methods.base import (
    Choice,
    Context,
    Grid,
    Method,
    PairStep,
    ParameterGroup,
    Step,
    Terms,
    Training,
    Trial,
    contrast,
)
from adapt.methods.base.places import owner_of
from adapt.methods.base.traits import OwnWeights, combinations
from adapt.methods.zero_shot import TemplatesConfig

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class FineTuneConfig(TemplatesConfig):
    towers: tuple[TowerName, ...] | None = Field(default=None, min_length=1)
    """The trained towers, text and vision; by default all. A fusion encoder trains whole, or by blocks and parts."""
    blocks: int | None = Field(default=None, ge=1)
    """How many of each tower's last blocks train, with what comes behind them; by default all, and the embeddings."""
    parts: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Only these train: shell patterns of the names of parameters in the model, such as *.attn.*; by default all."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """The factor of the learning rate from each block to the one below; what is behind the blocks has the full rate."""
    loss: Literal["cross-entropy", "contrastive"] = "cross-entropy"
    """The loss: the task's own, or FLYP's contrast of the batch's images with the prompts of their classes."""
    alpha: float | None = Field(default=1.0, ge=0, le=1)
    """The trained share of the weights, WiSE-FT; the rest is frozen. null lets held-out items choose."""
    dtype: Literal["bf16", "fp16"] = "bf16"
    """The precision of what an adapter holds, the differences from the frozen weights."""


class FineTune(Method[Step], OwnWeights, Grid):
    """Fine-tuning of weights. `FineTune(towers, blocks, parts, ...)` stores `weights.` and a model's own names."""

    name = "finetune"
    title = "Fine-tuning, also of parts; WiSE-FT (Wortsman et al., CVPR 2022), FLYP (Goyal et al., CVPR 2023)"
    serves = ("dual encoder", "vision encoder", "fusion encoder")
    Config = FineTuneConfig
    tasks = frozenset({"classes", "pairs", "records"})
    learns_any_step = True
    choices = {"alpha": Choice(tuple(k / 10 for k in range(11)), usual=0.5, open_ended=False)}
    at_answer = frozenset({"alpha"})
    weights: TunedWeights
    _names: dict[str, set[str]] = {}  # of the trained weights, by the tower whose edits hold them
    _rates: dict[str, float]
    _share = 1.0  # of the trained weights, while shares are compared
    _rounded = False  # whether the weights are those that an adapter holds

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(self._names or self.config.towers or ("vision",))  # before it is built, as far as is known

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        if backbone.quantization:
            raise AdaptError(
                f"{self.name} trains weights, and those of {backbone.describe()} are quantised: load it without "
                "quantize, or use lora"
            )
        if self.config.loss == "contrastive" and backbone.kind != "dual encoder":
            raise AdaptError(
                f"{self.name}: loss is contrastive, which compares images with texts, but {backbone.describe()} is a "
                f"{backbone.kind}: set method.loss to cross-entropy, or use a dual encoder"
            )
        frozen, made = dict(backbone.model.named_parameters()), partial(TunedWeights, _DTYPES[self.config.dtype])
        self.weights, self._names, self._rates = made(), {}, {}
        for tower, below in _below(backbone, self.config.towers).items():
            chosen = self._chosen(backbone.tower(tower), below)
            self._names[tower] = set(chosen)
            for name in chosen:
                self._rates[f"weights.{name}"] = self.config.layer_decay ** below[name]
                *path, key = name.split(".")
                owner_of(self.weights, path, made).hold_weight(key, frozen[name])

    def _chosen(self, tower: Tower, below: Mapping[str, int]) -> list[str]:
        """Return the parameters that train among those of a tower. Raises AdaptError if there are none."""
        blocks, parts = self.config.blocks or len(tower.blocks), self.config.parts or ("*",)
        if blocks > len(tower.blocks):
            raise AdaptError(
                f"{self.name}: blocks is {blocks}, but the {tower.name} tower has {len(tower.blocks)}: give fewer, or "
                "leave blocks out to train everything"
            )
        within = [name for name, depth in below.items() if self.config.blocks is None or depth <= blocks]
        for part in parts:
            if not fnmatch.filter(within, part):
                raise AdaptError(
                    f"{self.name}: no weight of the {tower.name} tower that trains is called {part!r}; "
                    f"{nearest(part, within)}"
                )
        return [name for name in within if any(fnmatch.fnmatchcase(name, part) for part in parts)]

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        if tower.name not in self._names:
            return []
        own, share = self._names[tower.name], None if self.training or self._rounded else self._share
        return [Parameters({name: each.weight_of(key, share) for name, each, key in self._each() if name in own})]

    def _each(self) -> Iterator[tuple[str, TunedWeights, str]]:
        """Yield each trained weight's name in the backbone's model, the module that holds it, and its name there."""
        for path, module in self.weights.named_modules():
            assert isinstance(module, TunedWeights)
            for key in module.frozen_weights:
                yield f"{path}.{key}" if path else key, module, key

    def loss(self, step: Any) -> Terms:
        if self.config.loss == "cross-entropy" or isinstance(step, PairStep):
            return step.task_loss()
        if step.labels is None or step.labels.ndim > 1:
            raise AdaptError(
                f"{self.name}: loss is contrastive, which needs the one class of each image: set method.loss to "
                "cross-entropy"
            )
        return {"contrastive": contrast(step.cosine_logits(step.class_features[step.labels]))}

    def groups(self) -> Iterable[ParameterGroup]:
        """Return groups by layer, of which vectors, such as norms and biases, do not decay."""
        named = self.named_parameters()
        return ParameterGroup.alike(
            (parameter, self._rates.get(name, 1.0), parameter.ndim > 1) for name, parameter in named
        )

    def train(self, mode: bool = True) -> Self:
        self._rounded &= not mode
        return super().train(mode)

    def training_state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.weights.named_parameters()}

    def _load_from_state_dict(self, *inputs: Any) -> None:
        self._rounded = True
        super()._load_from_state_dict(*inputs)

    @torch.no_grad()
    def finish(self, training: Training) -> None:
        """Mix the trained with the frozen weights by `alpha`, and round them to what an adapter holds."""
        for _, module, key in self._each():
            module.get_parameter(key).copy_(module.weight_of(key, self.setting("alpha")))
        self._rounded = True

    def trials(self, training: Training, choices: Mapping[str, Choice], learned: bool = False) -> Iterator[Trial]:
        """Yield trials as `Grid.trials` does; if not yet `learned`, after a training on the images of a fold."""
        start = [parameter.detach().clone() for parameter in self.parameters()]
        try:
            if not learned:
                training.prepare()
                training.train("fold")
            training.model.eval()
            for settings in combinations(choices):
                self._share = settings["alpha"]  # type: ignore[assignment]
                with torch.no_grad():
                    yield settings, torch.cat([step.logits.cpu() for step in training.steps("val")])
        finally:
            self._share = 1.0
            if not learned:
                for parameter, value in zip(self.parameters(), start, strict=True):
                    parameter.data.copy_(value)


class TunedWeights(nn.Module):
    """Trained weights in fp32, whose state is their differences, in `dtype`, from frozen ones of the same names."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.kept_as = dtype
        self.frozen_weights: dict[str, nn.Parameter] = {}  # in a dict, so that torch does not register them

    def hold_weight(self, name: str, frozen: nn.Parameter) -> None:
        self.frozen_weights[name] = frozen
        self.register_parameter(name, nn.Parameter(frozen.detach().float().clone()))

    def weight_of(self, name: str, share: float | None = None) -> Tensor:
        """Return a trained weight for the backbone; with `share`, as an adapter holds such a share of its change."""
        frozen, own = self.frozen_weights[name].detach(), getattr(self, name)
        if share is not None:  # with the gradient of the trained weight
            own = frozen.to(own.dtype) + self._change(name, share) + (own - own.detach())
        return own.to(frozen.dtype)

    def _change(self, name: str, share: float = 1.0) -> Tensor:
        own = getattr(self, name).detach()
        change = share * (own - self.frozen_weights[name].detach().to(own))
        return change.to(self.kept_as) + 0  # which makes -0 to 0, as after loading

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination |= {prefix + name: self._change(name) for name in self.frozen_weights}

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        own = {prefix + name: frozen for name, frozen in self.frozen_weights.items() if prefix + name in state}
        moved = {name: frozen.detach().float() + state[name].float() for name, frozen in own.items()}
        super()._load_from_state_dict(state | moved, prefix, *others)


def _below(backbone: Any, towers: Sequence[str] | None) -> dict[str, dict[str, int]]:
    """Return, for each tower, the parameters on which its features depend, and how far each is below the last block.

    That is 0 behind the blocks, 1 in the last block, and one more than the number of blocks before them.
    """
    if backbone.kind == "fusion encoder":  # all of its towers have one output
        if towers:
            raise AdaptError(f"{backbone.describe()} has one output of its towers: leave method.towers out")
        inside, forward = [*backbone.towers.values()], lambda: backbone.encode(backbone.blank(), ["a"])
        return {inside[0].name: _of_output(backbone, inside, forward)}
    forwards: dict[str, Callable[[], Tensor]] = {"vision": lambda: backbone.encode_image(backbone.blank())}
    if backbone.kind == "dual encoder":
        forwards["text"] = lambda: backbone.encode_text(backbone.tokenize(["a"]).to(backbone.device))
    return {name: _of_output(backbone, [backbone.tower(name)], forwards[name]) for name in towers or forwards}


def _of_output(backbone: Backbone, towers: Sequence[Tower], forward: Callable[[], Tensor]) -> dict[str, int]:
    names = {id(parameter): name for name, parameter in backbone.model.named_parameters()}
    every = dict[str, int]()
    for tower in towers:
        for index, block in enumerate(tower.blocks):
            own = [names[id(parameter)] for parameter in block.module.parameters()]
            every |= dict.fromkeys(own, len(tower.blocks) - index)
    behind = _reached(backbone, towers[0], forward, [tower.blocks[-1].module for tower in towers])
    before = len(towers[0].blocks) + 1
    return {
        name: every.get(name, 0 if name in behind else before) for name in _reached(backbone, towers[0], forward, ())
    }


def _reached(backbone: Backbone, tower: Tower, forward: Callable[[], Tensor], cut: Sequence[nn.Module]) -> list[str]:
    """Return the parameters on which the output of `forward` depends otherwise than by the outputs of modules `cut`."""
    own = {name: each for name, each in backbone.model.named_parameters() if each.is_floating_point()}
    values = {name: each.detach().requires_grad_() for name, each in own.items()}
    with ExitStack() as stack, torch.enable_grad():
        for module in cut:
            hook = module.register_forward_hook(lambda _, __, output: tree_map_only(Tensor, Tensor.detach, output))
            stack.callback(hook.remove)
        output = run(backbone.model, [(tower, [Parameters(values)])], forward)
        if not output.requires_grad:
            raise AdaptError(f"the features of {backbone.describe()} give its weights no gradient: use another")
        gradients = torch.autograd.grad(output.sum(), [*values.values()], allow_unused=True)
    return [name for name, gradient in zip(values, gradients, strict=True) if gradient is not None]
