"""Rebuilding of a model from the tensors of a file, which must fit its method, on the backbone that the file names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapt import methods
from adapt.backbones.base import Backbone
from adapt.backbones.load import load_backbone
from adapt.common.devices import keeping_rng
from adapt.common.errors import AdaptError, about
from adapt.formats.tensor_file import check_finite
from adapt.methods.base import Method, trait
from adapt.methods.base.traits import ChecksAdapter
from adapt.models.base import Adapted
from adapt.models.building import at_most, build
from adapt.models.wrap import Model, assemble

logger = logging.getLogger("adapt")


def named_backbone(
    name: str, device: str | torch.device, quantization: str | None, reading: Mapping[str, object]
) -> Backbone:
    """Load the backbone `name` with the quantisation and the preprocessing that an adapter file records."""
    backbone: Backbone = load_backbone(name, device, quantization)
    backbone.read_as(dict(reading))
    return backbone


def note_quantization(recorded: str | None, backbone: Backbone, path: Path) -> None:
    """Warn if the quantisation of `backbone` differs from the quantisation that the adapter at `path` records."""
    if backbone.quantization != recorded:
        trained, given = (each or "no quantisation" for each in (recorded, backbone.quantization))
        logger.warning(
            "%s was trained on a backbone with %s, but the given backbone has %s: results will differ slightly",
            path,
            trained,
            given,
        )


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
    largest = sum(tensor.numel() for tensor in tensors.values())
    # building draws initial values, which the tensors replace
    with keeping_rng(backbone.device), about(source), at_most(largest):
        names = build(backbone, method, class_names)
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


def build_for(
    method: Method,
    backbone: Backbone,
    class_names: Sequence[str],
    tensors: dict[str, Tensor],
    source: str,
    fast: bool | None = None,
) -> Model:
    """Return an adapted model of `method` on `backbone`, with the trained `tensors` that were read from `source`.

    Raises AdaptError if the tensors do not fit the method, before any allocation much larger than the tensors.
    """
    names = build_within(method, backbone, class_names, tensors, source)
    model = assemble(backbone, method, names, fast)
    load_tensors(method, tensors, source)
    return model


def method_called(name: str) -> type[Method]:
    """Return the class of the method that an adapter names, which may be an average of others."""
    if name != "average":
        return methods.find(name)
    from adapt.models.average import AverageOfAdapters

    return AverageOfAdapters
