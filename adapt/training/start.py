"""The start of a training from an earlier adapter, whose tensors are the method's initial values."""

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
    """Copy the tensors of the adapter at `path`, a file or a run directory, into the model's method.

    The adapter's method may be a relative, as `lora` is of `modx`; settings that both have must be equal. Raises
    AdaptError if method, settings, classes or backbone do not fit, or as `read_header` and `read_tensors` do; the model
    is then unchanged.
    """
    file, described = check_start(path, model.method, model.method.takes_steps, model.class_names)
    check_backbone(described, model.backbone, file)
    load_tensors(model.method, read_tensors(file), str(file))
    model.started = True


def check_start(path: str | Path, method: Method, steps: bool, class_names: Sequence[str]) -> tuple[Path, Header]:
    """Return the adapter's file and header, checked as far as this is possible without a backbone.

    `path` is the file or a run directory; `steps` says whether `method`, which need not be built yet, takes gradient
    steps. Raises AdaptError as `start_from` does, except about the backbone.
    """
    file = located(path)
    described = read_header(file)
    check_can_start(method, steps, str(file))
    _check_kin(method, class_names, described, file)
    return file, described


def check_can_start(method: Method, steps: bool, place: str) -> None:
    """Raise AdaptError if the training of `method`, by `steps` or not, cannot start from the adapter at `place`."""
    if not steps:
        raise AdaptError(f"{method.name} is not trained by steps, and cannot start from {place}: leave start out")
    if method.begins_anew or chosen_setting(method):
        raise AdaptError(
            f"{method.name} sets the initial values of its tensors itself, so nothing of {place} would remain: leave "
            "start out"
        )


def _check_kin(method: Method, class_names: Sequence[str], described: Header, file: Path) -> None:
    """Raise AdaptError unless the adapter's method and `method` have the same kinds of tensors and classes."""
    earlier = method_of(described, file)
    if not (isinstance(earlier, type(method)) or isinstance(method, type(earlier))):
        raise AdaptError(
            f"{file} is an adapter of {earlier.name}, but the method to train is {method.name}: train {earlier.name}, "
            f"or start from an adapter of {method.name}"
        )
    _check_settings(method, earlier, file)
    if method.per_class and described.class_names != tuple(class_names):
        raise AdaptError(
            f"{file} has tensors of {method.name} for each of its {len(described.class_names)} classes, and the "
            f"{len(class_names)} classes of the data are not the same: leave start out"
        )


def _check_settings(method: Method, earlier: Method, file: Path) -> None:
    """Raise AdaptError if a setting that both methods have differs."""
    ours, theirs = (each.config.model_dump(mode="json") for each in (method, earlier))
    differing = [key for key in ours if key in theirs and ours[key] != theirs[key]]
    if differing:
        key = differing[0]
        raise AdaptError(
            f"{file} was trained with {key} {theirs[key]!r}, but this training has {ours[key]!r}: set method.{key} to "
            f"{theirs[key]!r}"
        )
