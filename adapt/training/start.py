"""The start of a training from an earlier adapter, whose tensors are the method's initial values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.formats.adapter import Header, check_backbone, read_header, read_tensors
from adapt.formats.rebuild import load_tensors
from adapt.methods.base import Method
from adapt.methods.base.traits import chosen_setting
from adapt.models.base import Adapted


def start_from(model: Adapted, path: str | Path) -> None:
    """Copy the tensors of the adapter at `path`, a file or a run directory, into the model's method.

    The adapter's method may be a base class or subclass of the model's method, as `lora` is of `modx`. Settings that
    both methods have must be equal. Raises AdaptError if the method, settings, classes or backbone do not match, and
    for the errors of `read_header` and `read_tensors`. After an error, the model is unchanged.
    """
    file, described = check_start(path, model.method, model.method.takes_steps, model.class_names)
    check_backbone(described, model.backbone, file)
    load_tensors(model.method, read_tensors(file), str(file))
    model.started = True


def check_start(path: str | Path, method: Method, steps: bool, class_names: Sequence[str]) -> tuple[Path, Header]:
    """Return the file and the header of the adapter at `path`, after all checks that do not need a backbone.

    `path` is a file or a run directory. `steps` is true if `method`, which does not have to be built yet, takes
    gradient steps. Raises the same errors as `start_from`, except for errors about the backbone.
    """
    from adapt.loading import located, method_of

    file = located(path)
    described = read_header(file)
    check_can_start(method, steps, str(file))
    earlier = method_of(described, file)
    if not (isinstance(earlier, type(method)) or isinstance(method, type(earlier))):
        raise AdaptError(
            f"{file} is an adapter of {earlier.name}, but the method to train is {method.name}: train {earlier.name}, "
            f"or start from an adapter of {method.name}"
        )
    set_by_training = method.config.set_by_training
    ours, theirs = (each.config.model_dump(mode="json", exclude=set_by_training) for each in (method, earlier))
    for key in ours:
        if key in theirs and ours[key] != theirs[key]:
            raise AdaptError(
                f"{file} was trained with {key} set to {theirs[key]!r}, but this training has {ours[key]!r}: set "
                f"method.{key} to {theirs[key]!r}"
            )
    if method.per_class and described.class_names != tuple(class_names):
        raise AdaptError(
            f"{file} has tensors of {method.name} for each of its {len(described.class_names)} classes, but the data "
            f"has {len(class_names)} classes that are not the same: omit start"
        )
    return file, described


def check_can_start(method: Method, steps: bool, place: str) -> None:
    """Raise AdaptError if `method` cannot start from an adapter, for example without gradient steps (`steps`)."""
    if not steps:
        raise AdaptError(f"{method.name} is not trained by gradient steps, and cannot start from {place}: omit start")
    if method.begins_anew or chosen_setting(method):
        raise AdaptError(
            f"{method.name} sets the initial values of its tensors itself, so no value from {place} would be used: "
            "omit start"
        )
