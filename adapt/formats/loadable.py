"""Whether an adapter will load: the method, built anew from what its file will say, has the tensors that it has now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from adapt.backbones.base import outside_inference_mode
from adapt.backbones.turns import alone
from adapt.devices import keeping_rng
from adapt.engine.allocation import at_most
from adapt.engine.frozen import frozen
from adapt.errors import AdaptError
from adapt.methods.base import Method

if TYPE_CHECKING:
    from adapt.models.base import Adapted


def check_loadable(model: Adapted[Any], tensors: dict[str, Tensor]) -> None:
    """Raises AdaptError, naming the first tensor, unless `tensors` fit a method made from the settings as they are."""
    name = model.method.name
    expected = _built_anew(model, sum(tensor.numel() for tensor in tensors.values())).state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        now, anew = (_described(state.get(key)) for state in (tensors, expected))
        if now != anew:
            raise AdaptError(
                f"{name} could not be loaded again: its tensor {key!r} is {now}, and {anew} where its settings build "
                "it. Allocate it in build, by sizes in the settings; those that the data decides, prepare writes there "
                "(see Write a method)"
            )


def _built_anew(model: Adapted[Any], held: int) -> Method:
    kind, backbone, config = type(model.method), model.backbone, model.method.config.model_dump(mode="json")
    try:
        fresh = kind(**config)
        fresh.check_whole()
        with (
            keeping_rng(backbone.device),
            outside_inference_mode(),
            alone(backbone.model),
            frozen(backbone.model),
            at_most(held),
        ):
            fresh.build(backbone, model.class_names)
            model.add_head(fresh)
    except AdaptError as error:
        raise AdaptError(f"{kind.name} could not be loaded again from its settings: {error}") from error
    return fresh


def _described(tensor: Tensor | None) -> str:
    if tensor is None:
        return "not there"
    return f"{'numbers' if tensor.is_floating_point() else str(tensor.dtype)} {tuple(tensor.shape)}"
