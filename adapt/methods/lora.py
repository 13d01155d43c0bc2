"""LoRA: low-rank adaptation of any tower, by peft's tuners.

Paper: Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPR-W 2024 (CLIP-LoRA).
Reference: CLIP-LoRA `358f0d7`, `loralib/`, `lora.py`.
Deviations:
* peft does the arithmetic. The scaling alpha/sqrt(r) is its `use_rslora`; `tuner` and `options` select DoRA, LoHa and
  peft's other tuners that share no state between layers.
* Without dropout, the reference passes no gradient through the low-rank path to its input, because it removes the
  merged update from the weight, in place, between forward and backward. With dropout (its setting) the gradient is
  complete. `input_gradient` left out does the same; true or false applies to both cases.
* A fused `qkv`, as in timm and in Qwen-VL's vision tower, gets three pairs of factors, one for each of q, k and v;
  peft by itself gives such a layer one pair.
* Blocks are chosen by a range of indices instead of the reference's named positions.
* Parameters are called `TOWER.BLOCK.PROJECTION.lora_A.weight`; the reference saves a nested list.

peft works on stand-ins, linear layers that hold views of the frozen weights, and never sees the backbone itself.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.split_attention import StandIn, ViewedWeight
from adapt.backbones.tower import Projection, Tower, TowerName
from adapt.common.errors import AdaptError, nearest
from adapt.edits import Edit, Replace
from adapt.methods.base import KINDS, Context, Method, Mixture
from adapt.methods.base.method import StepT
from adapt.methods.base.mixture import Mixes
from adapt.methods.base.places import Letter, Place, Projections, check_mergeable, owner_of, places
from adapt.methods.base.traits import InsideBlocks, Merges
from adapt.methods.zero_shot import TemplateConfig

logger = logging.getLogger("adapt")
Factors = tuple[Tensor, Tensor]  # A `(r, in)` and B `(out, r)`
NAME = "adapt"  # the adapter's name in each layer; one suffices, as each stand-in belongs to one method
# names of these settings in peft's configs, the first that a config has; TUNER is the tuner's name
_NAMES = {
    "rank": ("init_r", "r"),
    "alpha": ("TUNER_alpha", "lora_alpha", "alpha"),
    "dropout": ("TUNER_dropout", "lora_dropout"),
}
# settings of peft's configs that users cannot set here, with the reason or replacement
_OWNED = {
    "target_modules": "use projections, towers and blocks",
    "modules_to_save": "adapters hold only the tuner's tensors",
    "bias": "biases stay frozen",
    "lora_bias": "biases stay frozen",
    "lora_alpha": "use alpha",
    "lora_dropout": "use dropout",
    "use_rslora": "the scaling is alpha / sqrt(rank)",
}
_PUBLISHED = {"rank": 2, "alpha": 1.0, "dropout": 0.25}  # CLIP-LoRA's


class LoRAConfig(TemplateConfig):
    published: ClassVar[dict[str, Any]] = _PUBLISHED
    """The defaults of the plain tuner."""
    only: ClassVar[TowerName | None] = None
    """The tower that alone can be adapted, if there is such a tower."""
    rank: int | None = Field(default=None, ge=1)
    """The rank of each update; by default 2, or peft's default for another tuner."""
    alpha: float | None = Field(default=None, gt=0)
    """The numerator of the update's scale, alpha / sqrt(rank); by default 1, or peft's for another tuner."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout on the input of the low-rank path in training; by default 0.25, or peft's for another tuner."""
    projections: Projections = ("q", "k", "v")
    """The adapted projections: names, a string of the letters q k v o, or all that each tower has."""
    towers: tuple[TowerName, ...] = ("text", "vision")
    """The adapted towers."""
    blocks: tuple[int, int] | None = None
    """The first block and the one after the last; by default all blocks."""
    logit_scale: float | None = Field(default=100.0, gt=0)
    """A constant scale of the logits, as published; null means the backbone's own."""
    input_gradient: bool | None = None
    """Whether the low-rank path passes gradient to its input; by default only with dropout, as in the reference."""
    tuner: str = "lora"
    """The name of a peft tuner."""
    options: dict[str, object] = Field(default_factory=dict)
    """More settings of that tuner's peft config, such as `use_dora: true`."""

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, values: object) -> object:
        if not isinstance(values, dict) or values.get("tuner", "lora") != "lora":
            return values
        return values | {key: value for key, value in cls.published.items() if values.get(key) is None}

    @field_validator("towers")
    @classmethod
    def _served(cls, towers: tuple[TowerName, ...]) -> tuple[TowerName, ...]:
        if cls.only and towers != (cls.only,):
            raise ValueError(f"expected [{cls.only}]")
        return towers

    @field_validator("projections", mode="before", json_schema_input_type=tuple[Letter, ...] | str)
    @classmethod
    def _letters(cls, value: object) -> object:
        if value == "all":
            return value
        return tuple("out" if letter == "o" else letter for letter in value) if isinstance(value, str) else value

    @field_validator("options")
    @classmethod
    def _ours(cls, value: dict[str, object]) -> dict[str, object]:
        for key in value.keys() & _OWNED:
            raise ValueError(f"{key} cannot be set here ({_OWNED[key]}): leave {key} out")
        if value.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
            raise ValueError(
                "this init_lora_weights changes the frozen weights; expected true, false, gaussian or orthogonal"
            )
        return value

    @model_validator(mode="after")
    def _only_plain(self) -> LoRAConfig:
        if self.input_gradient is False and not self.plain:
            raise ValueError("input_gradient is false, which needs lora without options: leave input_gradient out")
        return self

    @property
    def plain(self) -> bool:
        """Whether the update is only a low-rank term added to the frozen projection (peft's `lora` without options)."""
        return self.tuner == "lora" and not self.options


class PlainLoRAConfig(LoRAConfig):
    """The LoRA settings for papers that specify only "LoRA" and that keep the backbone's logit scale."""

    published = {"rank": 4, "alpha": 1.0, "dropout": 0.0, "input_gradient": True}
    logit_scale: float | None = Field(default=None, gt=0)
    """A constant scale of the logits; null means the backbone's own."""


class LoRA(Method[StepT], InsideBlocks, Merges, Mixes):
    """Low-rank adaptation by peft. `LoRA(rank, alpha, ...)` trains `TOWER.BLOCK.PROJECTION.lora_A` and `lora_B`."""

    name = "lora"
    title = "CLIP-LoRA (Zanella and Ben Ayed, CVPR-W 2024) and peft's other tuners"
    serves = KINDS
    Config = LoRAConfig
    tasks = frozenset({"classes", "pairs", "records", "translations"})
    example = {"dropout": 0.0}
    _sites_of: dict[Place, Projection]
    _shell: Any  # an nn.ModuleDict of peft's layers
    _in_training: bool
    _ties: dict[Place, list[tuple[Held, Held]]]  # parameters of peft's layers, and of this module

    @property
    def training(self) -> bool:
        """Whether the method is in training mode. Setting this property also sets the mode of all peft layers."""
        return self._in_training

    @training.setter
    def training(self, mode: bool) -> None:
        vars(self)["_in_training"] = mode
        if "_shell" in vars(self):
            self._shell.train(mode)

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        self._modules.clear()  # an earlier build may have tensors for blocks that are absent now
        sites = dict(places(self, backbone))
        # not as submodules: a stand-in's frozen weight must not be trained, saved or moved with this module
        object.__setattr__(self, "_sites_of", sites)
        settings = {name: getattr(self.config, name) for name in _PUBLISHED}
        named = {_key(site): projection for site, projection in sites.items()}
        shell = inject(named, self.config.tuner, settings, self.config.options)
        object.__setattr__(self, "_shell", shell.train(self.training))
        object.__setattr__(self, "_ties", {site: list(self._tied(site)) for site in sites})

    def _tied(self, site: Place) -> Iterator[tuple[Held, Held]]:
        """Register the peft layer's parameters at `site` in this module, and yield every parameter's two locations."""
        tower, block, letter = site
        for name, held in held_parameters(self._shell[_key(site)]).items():
            parameter = held.module._parameters[held.name]
            assert parameter is not None
            parameter.data = parameter.data.float()  # fp32 whatever the backbone's precision
            path = [tower, str(block), letter, *name.split(".")]
            owner = owner_of(self, path[:-1])
            owner.register_parameter(path[-1], parameter)
            yield held, Held(owner, path[-1])

    def _layers(self) -> Iterator[tuple[Place, Any]]:
        """Yield each adapted projection with its peft layer, after setting the layer's tensors from this module."""
        for site in self._sites_of:
            layer = self._shell[_key(site)]
            for held, own in self._ties[site]:
                held.module._parameters[held.name] = own.module._parameters[own.name]
            layer.get_base_layer().place()
            yield site, layer

    @property
    def sites(self) -> tuple[Place, ...]:
        """The adapted projections, each as (tower, block index, projection), such as ('vision', 0, 'q')."""
        return tuple(self._sites_of)

    def pair(self, tower: str, block: int, projection: str) -> tuple[Tensor, Tensor]:
        """Return the LoRA factors of a projection: A `(r, in)` and B `(out, r)`."""
        site = (tower, block, "out" if projection == "o" else projection)
        if site not in self._sites_of:
            raise AdaptError(f"lora has no factors for {site}; expected one of {', '.join(map(_key, self._sites_of))}")
        layer = dict(self._layers())[site]
        return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight

    def merged(self) -> dict[Place, Tensor]:
        return {site: merged_weight(layer) for site, layer in self._layers()}

    @classmethod
    def mixed(cls, members: Sequence[Method], mixture: Mixture) -> tuple[dict[str, object], dict[str, Tensor]]:
        """Return the settings and tensors of a LoRA that merges several LoRAs: the products B A are mixed."""
        adapters: list[Any] = list(members)
        sites, config = adapters[0].sites, adapters[0].config
        if not config.plain:
            raise AdaptError(
                f"lora: the adapters have tuner {config.tuner!r}; expected lora without options, whose weight changes "
                "can be mixed"
            )
        scaling = config.alpha / config.rank**0.5
        factors = mixed_factors([[each.pair(*site) for each in adapters] for site in sites], scaling, mixture)
        rank = factors[0][0].shape[0]
        alpha = scaled_alpha(config.alpha, config.rank, rank)
        tensors = {
            ".".join((*map(str, site), f"lora_{letter}", "weight")): factor
            for site, pair in zip(sites, factors, strict=True)
            for letter, factor in zip("AB", pair, strict=True)
        }
        return config.model_dump(mode="json") | {"rank": rank, "alpha": alpha}, tensors

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        edits: list[Edit] = []
        config = self.config
        passes_gradient = bool(config.input_gradient)
        if config.input_gradient is None:
            passes_gradient = not config.plain or (self.training and config.dropout > 0)
        for site, layer in self._layers():
            if site[0] == tower.name:
                module = PlainLayer(layer, passes_gradient) if config.plain else layer
                edits.append(Replace(site[1], site[2], module))
        return edits


def _key(site: Place) -> str:
    return "_".join(map(str, site))


def mixed_factors(places: Sequence[Sequence[Factors]], scaling: float, mixture: Mixture) -> list[Factors]:
    """Return the LoRA factors that merge several adapters for each projection, with the adapters' common scaling.

    A linear mixture is exact, and its rank is the sum of the adapters' ranks (peft's `cat`). Any other mixture, or a
    lower `mixture.rank`, is approximated by a truncated SVD, by default at the adapters' rank (peft's `..._svd`).
    """
    rank = sum(a.shape[0] for a, _ in places[0])
    if mixture.is_linear and (mixture.rank is None or mixture.rank >= rank):
        weighted = [[w * b for w, (_, b) in zip(mixture.weights, members, strict=True)] for members in places]
        downs = [[a for a, _ in members] for members in places]
        return [(torch.cat(a), torch.cat(b, dim=1)) for a, b in zip(downs, weighted, strict=True)]
    rank = mixture.rank or places[0][0][0].shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixture.seed)
        changes = [mixture.of_changes([scaling * (b @ a) for a, b in members]) for members in places]
    factors = [_nearest(change / scaling, rank) for change in changes]
    exact = sum(float(change.square().sum()) for change in changes)
    retained = sum(float((scaling * (b @ a)).square().sum()) for a, b in factors)
    logger.info(
        "rank %d retains %.1f %% of the squared norm of the mixed weight change", rank, 100 * retained / (exact or 1.0)
    )
    return factors


def _nearest(change: Tensor, rank: int) -> Factors:
    """Return the LoRA factors of rank `rank` that best approximate the weight change `change`, padded with zeros."""
    u, values, v = torch.linalg.svd(change, full_matrices=False)
    short = max(0, rank - len(values))
    root = values[:rank].sqrt()
    a, b = root[:, None] * v[:rank], u[:, :rank] * root
    return torch.nn.functional.pad(a, (0, 0, 0, short)), torch.nn.functional.pad(b, (0, short))


def scaled_alpha(alpha: float, rank: int, new_rank: int) -> float:
    """Return the alpha that keeps alpha / sqrt(rank) constant when the rank changes to `new_rank`."""
    return alpha * math.sqrt(new_rank / rank)


def inject(
    projections: Mapping[str, Projection], tuner: str, settings: Mapping[str, object], options: Mapping[str, object]
) -> nn.ModuleDict:
    """Return a layer of peft's `tuner`, such as lora, for each of the frozen `projections`.

    `settings` are rank, alpha and dropout; a None is ignored. `options` are further settings of peft's config.
    Raises AdaptError for an unknown tuner, for settings and options that the tuner does not have, and for a tuner whose
    layers share state.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    kinds: dict[str, type[Any]] = {
        str(kind.value).lower(): PEFT_TYPE_TO_CONFIG_MAPPING[kind] for kind in PEFT_TYPE_TO_TUNER_MAPPING
    }
    if tuner not in kinds:
        raise AdaptError(f"lora: tuner is {tuner!r}, which peft does not have; {nearest(tuner, kinds)}")
    plain = tuner == "lora" and not options
    shell = nn.ModuleDict({key: _stand_in(each, plain, tuner) for key, each in projections.items()})
    arguments = {"target_modules": list(shell), **_named(settings, tuner, kinds[tuner], options), **options}
    try:
        config = kinds[tuner](**arguments)
    except (TypeError, ValueError) as error:
        raise AdaptError(f"lora: options {dict(options)} do not fit peft's tuner {tuner}: {error}") from error
    import peft

    try:
        peft.inject_adapter_in_model(config, shell, NAME)
    except ValueError as error:  # peft itself refuses some tuners whose layers share state
        raise AdaptError(f"lora: peft's {tuner} cannot be used: {error}") from error
    _refuse_shared_state(shell, tuner)
    for module in list(shell.modules()):
        for name, part in module.named_children():
            if type(part) is nn.Dropout:
                setattr(module, name, Dropout(part.p))
    return shell


def _named(settings: Mapping[str, Any], tuner: str, kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are not None, under their names in peft's config class `kind`."""
    fields = {field.name for field in dataclasses.fields(kind)}
    named: dict[str, object] = {"use_rslora": True} if tuner == "lora" else {}
    for ours, value in settings.items():
        if value is None:
            continue
        theirs = [name.replace("TUNER", tuner) for name in _NAMES[ours]]
        name = next((name for name in theirs if name in fields), None)
        if name is None and value == 0:  # no dropout
            continue
        if name is None:
            raise AdaptError(f"lora: {ours} is {value}, but peft's {tuner} has no such setting: leave {ours} out")
        if name in options:
            raise AdaptError(f"lora: options contains {name}: use the setting {ours} instead")
        named[name] = value
    return named


def _stand_in(projection: Projection, plain: bool, tuner: str) -> StandIn:
    """Return a linear layer that replaces a frozen projection for peft, with a readable weight if not `plain`."""
    if plain:
        return StandIn(projection)
    if not projection.is_view:
        raise AdaptError(
            f"lora: {tuner} with these options reads frozen weights, but these weights are quantised or interleaved: "
            "use the tuner lora without options"
        )
    return ViewedWeight(projection)


def _refuse_shared_state(shell: nn.ModuleDict, tuner: str) -> None:
    """Raise AdaptError if layers share a tensor, which could not be saved, moved or compared layer by layer."""
    owners: dict[int, str] = {}
    for key, layer in shell.items():
        base = {id(tensor) for tensor in cast(Any, layer).get_base_layer().parameters()}
        for tensor in {id(t): t for t in [*layer.parameters(), *layer.buffers()] if id(t) not in base}.values():
            if owners.setdefault(id(tensor), key) != key:
                raise AdaptError(f"lora: peft's {tuner} shares state between layers: use another tuner")


class PlainLayer(nn.Module):
    """peft's layer of LoRA without options, with its scale on the low-rank side and one product that adds it.

    If `passes_gradient` is false, the low-rank path passes no gradient to its input; only the frozen projection does.
    """

    def __init__(self, layer: Any, passes_gradient: bool) -> None:
        super().__init__()
        self.layer, self.passes_gradient = layer, passes_gradient

    def forward(self, x: Tensor) -> Tensor:
        down, up = (getattr(self.layer, factor)[NAME].weight for factor in ("lora_A", "lora_B"))
        frozen: Tensor = self.layer.get_base_layer()(x)
        entering = (x if self.passes_gradient else x.detach()).to(down.dtype)
        low = F.linear(self.layer.lora_dropout[NAME](entering), down) * self.layer.scaling[NAME]
        if low.dtype != frozen.dtype:  # of a backbone in half precision
            return (frozen + F.linear(low, up)).to(frozen.dtype)
        return torch.addmm(frozen.flatten(0, -2), low.flatten(0, -2), up.T).view(frozen.shape)


class Held(NamedTuple):
    """The location of a parameter, which consists of a module and the parameter's name in the module."""

    module: nn.Module
    name: str


def held_parameters(layer: Any) -> dict[str, Held]:
    """Return the locations of the trained parameters of a peft layer, by names such as `lora_A.weight`."""
    places: dict[str, Held] = {}
    for attribute in layer.adapter_layer_names:
        holder: Any = getattr(layer, attribute, {})
        if NAME not in holder:
            continue
        if isinstance(holder[NAME], nn.Parameter):
            places[attribute] = Held(holder, NAME)
            continue
        for path, module in holder[NAME].named_modules():
            for name in module._parameters:
                if module._parameters[name] is not None:
                    places[".".join(filter(None, (attribute, path, name)))] = Held(module, name)
    return places


def merged_weight(layer: Any) -> Tensor:
    """Return the frozen weight `(out, in)` plus the update. Raises AdaptError for quantised or interleaved weights."""
    base: StandIn = layer.get_base_layer()
    check_mergeable(base.projection, "lora")
    if not isinstance(base, ViewedWeight):
        update: Tensor = layer.get_delta_weight(NAME)
        return base.projection.weight + update.to(base.projection.weight.dtype)
    frozen = base.weight.data
    base.weight.data = frozen.clone()
    try:
        layer.merge(safe_merge=True)
        weight: Tensor = base.weight.data.clone()  # unmerge subtracts in place
        layer.unmerge()
    finally:
        base.weight.data = frozen
    return weight


class Dropout(nn.Dropout):
    """A faster `nn.Dropout(p)` for the CPU, which draws different random numbers from the same generator.

    On a CPU, torch draws one float at a time and stores the mask as floats. This takes a tenth of the time, and a
    quarter of the memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        transformed = torch._C._are_functorch_transforms_active()  # by torch.func, which has rules for torch's alone
        if not self.training or self.p == 0 or x.device.type != "cpu" or transformed:
            return super().forward(x)
        dropped: Tensor = _Masked.apply(x, kept(x.shape, self.p), 1 / (1 - self.p))
        return dropped


def kept(shape: torch.Size, p: float) -> Tensor:
    """Return a random mask that is true with probability 1 - p, where p is rounded to 32 bits."""
    dtype = torch.uint8 if (256 * p).is_integer() else torch.int32
    count, each = math.prod(shape), dtype.itemsize
    words = torch.empty(-(-count * each // 8), dtype=torch.int64).random_(-(2**63), None)
    drawn = words.view(dtype)[:count].view(shape)
    return drawn >= torch.iinfo(dtype).min + round(p * 256**each)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return x * mask.to(x.dtype).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return gradient * mask.to(gradient.dtype).mul_(ctx.scale), None, None
