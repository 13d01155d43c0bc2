"""peft's tuner layers around stand-ins (linear layers that compute frozen projections), with a faster dropout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.split_attention import StandIn, ViewedWeight
from adapt.backbones.tower import Projection
from adapt.common.errors import AdaptError, nearest
from adapt.methods.base.places import check_mergeable

NAME = "adapt"  # the adapter's name in each layer; one suffices, as each stand-in belongs to one method
# names of these settings in peft's configs, the first that a config has; TUNER is the tuner's name
_NAMES = {
    "rank": ("init_r", "r"),
    "alpha": ("TUNER_alpha", "lora_alpha", "alpha"),
    "dropout": ("TUNER_dropout", "lora_dropout"),
}


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


def parameters(layer: Any) -> dict[str, Held]:
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


def merged(layer: Any) -> Tensor:
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
        if not self.training or self.p == 0 or x.device.type != "cpu":
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
