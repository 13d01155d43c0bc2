"""Low-rank adaptation of any tower, by peft's tuners.

Paper: Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPR-W 2024 (CLIP-LoRA).
Reference: CLIP-LoRA `358f0d7`, `loralib/`, `lora.py`.
Deviations:
* peft owns the arithmetic. Its scaling alpha/sqrt(r) is `use_rslora`; DoRA, LoHa and the other tuners of peft that
  share no state between layers go by `tuner` and `options`.
* With dropout off, the reference passes no gradient through the low-rank path to its input: it takes the merged
  update off the weight, in place, between forward and backward. With dropout on (its setting) the gradient is whole.
  `input_gradient` left out does the same; true or false decides for both.
* Blocks are chosen by a range of indices in place of the reference's named positions.
* Parameters are called `TOWER.BLOCK.PROJECTION.lora_A.weight`; the reference saves a nested list.

peft works on stand-ins: linears that hold views of the frozen weights. The backbone itself is never handed to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.split import linear_over
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Projection, Tower, TowerName
from adapt.edits import Edit, Replace
from adapt.errors import AdaptError, nearest
from adapt.methods.base import Context, Method, MethodConfig
from adapt.methods.zero_shot import check_template
from adapt.prompts import Prompt, from_template

PROJECTIONS = ("q", "k", "v", "out", "fc1", "fc2")
Site = tuple[str, int, str]  # tower, block, projection
# settings of peft's configs that are not the user's to set here, and what stands for them
_OWNED = {
    "target_modules": "see projections, towers and blocks",
    "modules_to_save": "adapters hold the tuner's tensors only",
    "bias": "biases stay frozen",
    "lora_bias": "biases stay frozen",
    "lora_alpha": "see alpha",
    "lora_dropout": "see dropout",
    "use_rslora": "the scaling is alpha / sqrt(rank)",
}
ADAPTER = "adapt"  # the stand-ins belong to one method each, so one name serves


class LoRAConfig(MethodConfig):
    rank: int = Field(default=2, ge=1)
    """Of each update."""
    alpha: float = Field(default=1.0, gt=0)
    """The update is scaled by alpha / sqrt(rank), as published."""
    dropout: float = Field(default=0.25, ge=0, lt=1)
    """On the input of the low-rank path, while training."""
    projections: tuple[Literal["q", "k", "v", "out", "fc1", "fc2", "gate", "up", "down"], ...] = ("q", "k", "v")
    """Names, or a string of the letters q k v o."""
    towers: tuple[TowerName, ...] = ("text", "vision")
    blocks: tuple[int, int] | None = None
    """First block and the one after the last; all where left out."""
    template: str = "a photo of a {}."
    """With {} for the class name."""
    logit_scale: float | None = Field(default=100.0, gt=0)
    """Constant, as published; null takes the backbone's own."""
    input_gradient: bool | None = None
    """Whether the low-rank path passes gradient to its input; left out: while dropout is on, as in the reference."""
    tuner: str = "lora"
    """The name of a peft tuner."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More settings of that tuner's peft config, such as `use_dora: true`."""

    @field_validator("projections", mode="before")
    @classmethod
    def _letters(cls, value: Any) -> Any:
        return tuple("out" if letter == "o" else letter for letter in value) if isinstance(value, str) else value

    @field_validator("template")
    @classmethod
    def _place(cls, value: str) -> str:
        return check_template(value)

    @field_validator("options")
    @classmethod
    def _ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value.keys() & _OWNED:
            raise ValueError(f"{key} is set by the method itself ({_OWNED[key]})")
        if value.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
            raise ValueError(
                "such init_lora_weights change the frozen weights; take true, false, gaussian or orthogonal"
            )
        return value

    @model_validator(mode="after")
    def _only_plain(self) -> LoRAConfig:
        if self.input_gradient is False and not self.plain:
            raise ValueError("input_gradient can be stopped for the plain lora tuner only")
        return self

    @property
    def plain(self) -> bool:
        """Whether the update is a low-rank term beside the frozen projection, and nothing else."""
        return self.tuner == "lora" and not self.options


class LoRA(Method):
    """`LoRA(rank, alpha, dropout, projections, towers, blocks)`; the defaults are CLIP-LoRA's."""

    name = "lora"
    title = "CLIP-LoRA (Zanella and Ben Ayed, CVPR-W 2024) and peft's other tuners"
    serves = ("dual encoder", "fusion encoder", "vision LLM")
    Config = LoRAConfig
    _sites_of: dict[Site, Projection]
    _shell: Any  # an nn.ModuleDict of peft's layers

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(self.config.towers)

    @property
    def logit_scale(self) -> float | None:
        return self.config.logit_scale

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        sites = dict(self._sites(backbone))
        # kept out of this module's children: a stand-in's frozen weight is not ours to train, save or move
        object.__setattr__(self, "_sites_of", sites)
        object.__setattr__(self, "_shell", _inject(self, sites))
        for (tower, block, letter), layer in self._layers():
            parameters = _adapter_parameters(layer)
            for parameter in parameters.values():
                parameter.data = parameter.data.float()  # what trains is fp32, whatever the backbone is
            _register(self, (tower, str(block), letter), parameters)

    def spare(self, blocks: Collection[str]) -> None:
        for tower, block, letter in self.sites:
            if f"{tower}.{block}" in blocks:
                del self._sites_of[tower, block, letter], self._shell[_key((tower, block, letter))]
                self._modules[tower]._modules.pop(str(block), None)  # type: ignore[union-attr]

    def _sites(self, backbone: Backbone) -> Iterator[tuple[Site, Projection]]:
        for name in self.config.towers:
            tower = backbone.tower(name)
            first, stop = self.config.blocks or (0, len(tower.blocks))
            if not 0 <= first < stop <= len(tower.blocks):
                raise AdaptError(
                    f"lora: blocks {first} to {stop} of the {name} tower, which has {len(tower.blocks)}; "
                    "give the first and the one after the last"
                )
            for index in range(first, stop):
                for letter in self.config.projections:
                    if letter not in tower.projections:
                        has = ", ".join(tower.projections)
                        raise AdaptError(f"lora: the {name} tower has no projection {letter}; it has {has}")
                    yield (name, index, letter), tower.blocks[index].projections[letter]

    def _layers(self) -> Iterator[tuple[Site, Any]]:
        for site in self._sites_of:
            yield site, self._shell[_key(site)]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The adapted projections: tower, block, letter."""
        return tuple(self._sites_of)

    def pair(self, tower: str, block: int, projection: str) -> tuple[Tensor, Tensor]:
        """The factors of one projection: A `(r, in)` and B `(out, r)`."""
        site = (tower, block, "out" if projection == "o" else projection)
        if site not in self._sites_of:
            raise AdaptError(f"lora has no pair at {site}; adapted: {', '.join(map(_key, self._sites_of))}")
        layer = self._shell[_key(site)]
        return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight

    def merged(self) -> dict[Site, Tensor]:
        """The weight `(out, in)` of every adapted projection with the adapter folded in; nothing here changes."""
        weights = {}
        for site, layer in self._layers():
            base = layer.get_base_layer()
            if isinstance(base, _Frozen):
                if base.projection.quantized:
                    raise AdaptError("lora cannot be merged into quantised weights: load the backbone without quantize")
                raise AdaptError(
                    "lora cannot be merged into weights that are interleaved by heads: keep it beside them"
                )
            frozen = base.weight.data
            base.weight.data = frozen.clone()
            try:
                layer.merge(safe_merge=True)
                weights[site] = base.weight.data.clone()  # unmerge subtracts in place
                layer.unmerge()
            finally:
                base.weight.data = frozen
        return weights

    def train(self, mode: bool = True) -> LoRA:
        super().train(mode)
        if self.built:
            self._shell.train(mode)
        return self

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        return [from_template(tokenizer, self.config.template, class_name)]

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        edits: list[Edit] = []
        whole = self._whole_gradient()
        for site, layer in self._layers():
            if site[0] == tower.name:
                _tie(layer.get_base_layer(), self._sites_of[site])
                edits.append(Replace(site[1], site[2], layer if whole else _StopInputGradient(layer)))
        return edits

    def _whole_gradient(self) -> bool:
        config = self.config
        drops = self.training and config.dropout > 0
        return not config.plain or drops if config.input_gradient is None else config.input_gradient


class _StopInputGradient(nn.Module):
    """A tuner layer whose input receives gradient through the frozen projection only."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return _ThroughFrozen.apply(self.layer(x.detach()), x, self.layer.get_base_layer())


class _ThroughFrozen(torch.autograd.Function):
    """`output` as it is; backward gives `x` the gradient of `x @ weight.T`, with the weight of a frozen `linear`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, linear: nn.Linear) -> Tensor:
        ctx.linear = linear
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, gradient @ _frozen_weight(ctx.linear).to(gradient.dtype), None


def _key(site: Site) -> str:
    return "_".join(map(str, site))


def _tie(linear: nn.Linear, projection: Projection) -> None:
    """Points the stand-in at the backbone's weight again after `.to()` moved that elsewhere."""
    if projection.is_view and linear.weight.data_ptr() != projection.weight.data_ptr():
        linear.weight.data = projection.weight
        if projection.bias is not None:
            linear.bias.data = projection.bias


def _inject(method: LoRA, sites: dict[Site, Projection]) -> nn.ModuleDict:
    """peft's tuner layers around a stand-in for every site."""
    import peft

    shell = nn.ModuleDict({_key(site): _stand_in(projection, method.config) for site, projection in sites.items()})
    config = _peft_config(method.config, list(shell))
    try:
        peft.inject_adapter_in_model(config, shell, ADAPTER)
    except ValueError as error:  # among others, peft itself refuses tuners whose layers share state
        raise AdaptError(f"lora: peft's {method.config.tuner} cannot be used here: {error}") from error
    _refuse_shared_state(shell, method.config.tuner)
    return shell


def _stand_in(projection: Projection, config: LoRAConfig) -> nn.Linear:
    """What peft takes for the frozen linear: one over views of its weight, or one that computes by the projection."""
    if projection.is_view:
        return linear_over(projection.weight, projection.bias)
    if not config.plain:
        raise AdaptError(
            f"lora: {config.tuner} with options {config.options} reads frozen weights, and these are quantised or "
            "interleaved: use the plain tuner, lora without options"
        )
    return _Frozen(projection)


class _Frozen(nn.Linear):
    """Computes a projection that has no view of its weight, and holds no weight itself."""

    def __init__(self, projection: Projection) -> None:
        rows, columns = projection.shape
        super().__init__(columns, rows, bias=False, device="meta")
        device = getattr(projection.module, projection.weight_name).device
        placed = torch.zeros(1, device=device).expand(rows, columns)
        self.weight = nn.Parameter(placed, requires_grad=False)  # one number, for peft to see where it is
        self.projection = projection

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x)


def _frozen_weight(linear: nn.Linear) -> Tensor:
    return linear.projection.weight if isinstance(linear, _Frozen) else linear.weight


def _peft_config(config: LoRAConfig, targets: list[str]) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    known = {str(kind.value).lower(): PEFT_TYPE_TO_CONFIG_MAPPING[kind] for kind in PEFT_TYPE_TO_TUNER_MAPPING}
    if config.tuner not in known:
        raise AdaptError(f"lora: peft has no tuner {config.tuner!r}; {nearest(config.tuner, known)}")
    settings: dict[str, Any] = {"target_modules": targets, **config.options}
    if config.tuner == "lora":
        if "r" in config.options:
            raise AdaptError("lora: options set r; give rank in its place")
        low_rank = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "use_rslora": True}
        settings = low_rank | settings
    try:
        return known[config.tuner](**settings)
    except (TypeError, ValueError) as error:
        raise AdaptError(f"lora: options {config.options} do not fit peft's {config.tuner}: {error}") from error


def _refuse_shared_state(shell: nn.ModuleDict, tuner: str) -> None:
    """A tensor that several layers hold could not be saved, moved or compared layer by layer."""
    owners: dict[int, str] = {}
    for key, layer in shell.items():
        base = {id(tensor) for tensor in cast(Any, layer).get_base_layer().parameters()}
        for tensor in {id(t): t for t in [*layer.parameters(), *layer.buffers()] if id(t) not in base}.values():
            if owners.setdefault(id(tensor), key) != key:
                raise AdaptError(f"lora: peft's {tuner} shares state between layers and is not supported")


def _adapter_parameters(layer: Any) -> dict[str, nn.Parameter]:
    """What peft lists as the layer's adapter parameters, by name, such as `lora_A.weight`."""
    found = {}
    for attribute in layer.adapter_layer_names:
        holder = getattr(layer, attribute, {})
        if ADAPTER not in holder:
            continue
        held = holder[ADAPTER]
        named = {"": held} if isinstance(held, nn.Parameter) else dict(held.named_parameters())
        found.update({".".join(filter(None, (attribute, name))): parameter for name, parameter in named.items()})
    return found


def _register(root: nn.Module, path: tuple[str, ...], parameters: dict[str, nn.Parameter]) -> None:
    """Registers `parameters` under `path` below `root`, so that their names read as dotted paths."""
    for name, parameter in parameters.items():
        *modules, leaf = [*path, *name.split(".")]
        owner = root
        for part in modules:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        owner.register_parameter(leaf, parameter)
