"""Training that goes on from an earlier adapter: its tensors are what the method starts with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapt.errors import AdaptError
from adapt.formats.adapter import check_backbone, load_tensors, read_tensors
from adapt.formats.header import Header, read_header
from adapt.loading import located, method_of
from adapt.methods.base import Method
from adapt.models.base import Adapted


def start_from(model: Adapted[Any], path: str | Path) -> None:
    """Copies the tensors of the adapter at `path`, or of a run directory, into the model's method.

    Its method may be another of the same kind, as `lora` is of `modx`, with the same settings where both have them.
    Raises AdaptError where method, settings, classes or backbone do not fit, and as `read_header` and `read_tensors`
    do; the model is as it was then.
    """
    file = located(path)
    described = read_header(file)
    _check_kin(model, described, file)
    check_backbone(described, model.backbone, file)
    load_tensors(model.method, read_tensors(file), str(file))
    model.started = True


def check_can_start(method: Method, steps: bool, place: str) -> None:
    """AdaptError for a method whose training, by `steps` or not, has nothing that it could go on from at `place`."""
    if not steps:
        raise AdaptError(f"{method.name} is not trained by steps, and cannot start from {place}: leave start out")
    if method.begins_anew or method.chosen_on_validation:
        raise AdaptError(
            f"{method.name} gives what it trains first values of its own, so that nothing of {place} would be left: "
            "leave start out"
        )


def _check_kin(model: Adapted[Any], described: Header, file: Path) -> None:
    """AdaptError unless the adapter's method makes the same of its tensors as the model's does."""
    method, earlier = model.method, method_of(described, file)
    check_can_start(method, method.takes_steps, str(file))
    if not (isinstance(earlier, type(method)) or isinstance(method, type(earlier))):
        raise AdaptError(f"{file} is an adapter of {earlier.name}, and training is of {method.name}: take that one")
    _check_settings(method, earlier, file)
    if method.per_class and described.class_names != model.class_names:
        raise AdaptError(
            f"{file} has tensors of {method.name} for each of {len(described.class_names)} classes, and the data has "
            f"{len(model.class_names)} that are not the same ones: leave start out"
        )


def _check_settings(method: Method, earlier: Method, file: Path) -> None:
    ours, theirs = (each.config.model_dump(mode="json") for each in (method, earlier))
    differing = [key for key in ours if key in theirs and ours[key] != theirs[key]]
    if differing:
        key = differing[0]
        raise AdaptError(
            f"{file} was trained with {key} {theirs[key]!r}, and this training has {ours[key]!r}: set method.{key} to "
            "what it was"
        )
