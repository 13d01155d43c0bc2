"""Loading tensors into a method: the method is built, and the tensors are checked to fit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from adapt.backbones.base import Backbone
from adapt.common.devices import keeping_rng
from adapt.common.errors import AdaptError
from adapt.formats.tensor_file import check_finite
from adapt.methods.base import Method, trait
from adapt.methods.base.traits import ChecksAdapter
from adapt.models.building import at_most, build

if TYPE_CHECKING:
    from adapt.models.base import Adapted


def check_loadable(model: Adapted, tensors: dict[str, Tensor]) -> None:
    """Raise AdaptError if `tensors` would not fit the model's method after it is rebuilt from its settings."""
    kind, config = type(model.method), model.method.config.model_dump(mode="json")
    try:
        method = kind(**config)
        if checks := trait(method, ChecksAdapter):
            checks.check_settings()
        build_within(method, model.backbone, model.class_names, tensors, "this model")
    except AdaptError as error:
        raise AdaptError(
            f"{kind.name} could not be loaded again from its settings: {error}. Allocate every tensor in build, with "
            "sizes from the settings. Let prepare write sizes that depend on data to the settings (see Write a method)"
        ) from error


def build_within(
    method: Method, backbone: Backbone, class_names: Sequence[str], tensors: dict[str, Tensor], source: str
) -> tuple[str, ...]:
    """Build `method` on `backbone`, check that `tensors` fit it, and return the class names used to build it.

    Building may need only little more memory than `tensors`. Raises AdaptError if building needs more memory, or if the
    tensors do not fit.
    """
    with keeping_rng(backbone.device):  # building draws initial values, which the tensors replace
        try:
            with at_most(sum(tensor.numel() for tensor in tensors.values())):
                names = build(backbone, method, class_names)
        except AdaptError as error:
            raise AdaptError(f"{source}: {error}") from error
    check_fit(method, tensors, source)
    return names


def load_tensors(method: Method, tensors: dict[str, Tensor], source: str) -> None:
    """Copy `tensors` into `method`. Raises AdaptError, with nothing copied, if a tensor does not fit the method."""
    check_fit(method, tensors, source)
    expected = method.state_dict()
    cast = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    check_finite(cast, source)  # a number may be too large for the method's own type
    if checks := trait(method, ChecksAdapter):
        checks.check_tensors(cast, source)
    method.load_state_dict(cast)


def check_fit(method: Method, tensors: dict[str, Tensor], source: str) -> None:
    """Raise AdaptError if `tensors` and `method` differ in tensor names, shapes or type (floating point or not)."""
    expected = method.state_dict()
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unknown:
        lacks = f"lacks {', '.join(sorted(missing))}" if missing else ""
        extra = f"has the unknown {', '.join(sorted(unknown))}" if unknown else ""
        raise AdaptError(
            f"{source} {' and '.join(filter(None, (lacks, extra)))}, and does not fit its method {method.name}"
        )
    for name in expected:
        if tensors[name].shape != expected[name].shape:
            raise AdaptError(
                f"tensor {name!r} of {source} has shape {tuple(tensors[name].shape)}; {method.name} on this backbone "
                f"expects {tuple(expected[name].shape)}"
            )
        if tensors[name].is_floating_point() != expected[name].is_floating_point():
            raise AdaptError(f"tensor {name!r} of {source} is {tensors[name].dtype}; expected {expected[name].dtype}")
