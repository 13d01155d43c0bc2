"""A model around tensors that came out of a file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapt.backbones.base import Backbone
from adapt.errors import AdaptError
from adapt.formats.adapter import check_shapes, load_tensors
from adapt.formats.allocation import at_most
from adapt.methods.base import Method
from adapt.models.wrap import Model, assemble, build


def build_for(
    method: Method,
    backbone: Backbone,
    class_names: Sequence[str],
    tensors: dict[str, Tensor],
    source: str,
    fast: bool | None = None,
) -> Model:
    """The model of `method` with the tensors of the file `source`.

    Raises AdaptError where they do not fit each other, and before anything larger than the tensors is built.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    with torch.random.fork_rng(devices=[]):  # building draws initial values that the file replaces
        try:
            with at_most(held):
                names = build(backbone, method, class_names)
        except AdaptError as error:
            raise AdaptError(f"{source}: {error}") from error
        check_shapes(method, tensors, source)
        built = assemble(backbone, method, names, fast)
    load_tensors(method, tensors, source)
    return built
