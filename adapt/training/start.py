"""Training that goes on from an earlier adapter: its tensors are what the method starts with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapt.errors import AdaptError
from adapt.formats.adapter import check_backbone, read_tensors
from adapt.formats.header import Header, read_header
from adapt.formats.loadable import load_tensors
from adapt.loading import located, method_of
from adapt.methods.base import Method
from adapt.methods.base.traits import chosen_setting
from adapt.models.base import Adapted


def start_from(model: Adapted, path: str | Path) -> None:
    """Copies the tensors of the adapter at `path`, or of a run directory, into the model's method.

    Its method may be another of the same kind, as `lora` is of `modx`, with the same settings where both have them.
    Raises AdaptError where method, settings, classes or backbone do not fit, and as `read_header` and `read_tensors`
    do; the model is as it was then.
    """
    file, described = check_start(path, model.method, model.method.takes_steps, model.class_names)
    check_backbone(described, model.backbone, file)
    load_tensors(model.method, read_tensors(file), str(file))
    model.started = True


def check_start(path: str | Path, method: Method, steps: bool, class_names: Sequence[str]) -> tuple[Path, Header]:
    """The adapter's file at `path`, or of a run directory, and its header: found, and checked, without a backbone.

    `steps` says whether `method`, which need not be built yet, is trained by such. Raises AdaptError as `start_from`
    does, but for what the backbone decides.
    """
    file = located(path)
    described = read_header(file)
    check_can_start(method, steps, str(file))
    _check_kin(method, class_names, described, file)
    return file, described


def check_can_start(method: Method, steps: bool, place: str) -> None:
    """AdaptError for a method whose training, by `steps` or not, has nothing that it could go on from at `place`."""
    if not steps:
        raise AdaptError(f"{method.name} is not trained by steps, and cannot start from {place}: leave start out")
    if method.begins_anew or chosen_setting(method):
        raise AdaptError(
            f"{method.name} gives what it trains first values of its own, so that nothing of {place} would be left: "
            "leave start out"
        )


def _check_kin(method: Method, class_names: Sequence[str], described: Header, file: Path) -> None:
    """AdaptError unless the adapter's method makes the same of its tensors as `method` does."""
    earlier = method_of(described, file)
    if not (isinstance(earlier, type(method)) or isinstance(method, type(earlier))):
        raise AdaptError(f"{file} is an adapter of {earlier.name}, and training is of {method.name}: take that one")
    _check_settings(method, earlier, file)
    if method.per_class and described.class_names != tuple(class_names):
        raise AdaptError(
            f"{file} has tensors of {method.name} for each of {len(described.class_names)} classes, and the data has "
            f"{len(class_names)} that are not the same ones: leave start out"
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
