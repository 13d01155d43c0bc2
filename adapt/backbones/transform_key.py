"""Keys of image transforms, made from their classes and settings: cached features are stored under them."""

from __future__ import annotations

import hashlib
from enum import Enum
from functools import cache, partial
from importlib.metadata import version
from types import FunctionType

import torch
from torch import nn

from adapt.version import __version__

_KNOWN = ("adapt", "torchvision", "open_clip")  # packages whose steps are identified by their version
_LIBRARIES = ("torch", "torchvision", "pillow", "open_clip_torch")


class _Unknown(Exception):
    """The error for a transform with code that cannot be identified, such as a user's own function."""


def transform_key(transform: object) -> str | None:
    """Return a key that is equal only for image transforms that do the same; None if the transform is not known.

    Transforms of torchvision, open_clip and adapt are known, and identified by their settings and the versions of these
    libraries. A key stays valid in other processes.
    """
    try:
        described = repr((_versions(), _said_of(transform)))
    except _Unknown:
        return None
    return hashlib.blake2b(described.encode(), digest_size=20).hexdigest()


@cache
def _versions() -> tuple[str, ...]:
    return __version__, *map(version, _LIBRARIES)


def _said_of(value: object) -> object:
    """Return `value`, a part of a transform, as numbers, texts and lists. Raises _Unknown for a user's own code."""
    if value is object or isinstance(value, Enum | torch.dtype):
        return str(value)
    if isinstance(value, None | bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, list | tuple):
        return [_said_of(each) for each in value]
    if isinstance(value, partial):
        return [_said_of(value.func), _said_of(value.args), [(name, _said_of(x)) for name, x in value.keywords.items()]]
    if isinstance(value, FunctionType | type):
        return _named(value)
    return [_named(type(value)), [(name, _said_of(x)) for name, x in sorted(_settings(value).items())]]


def _named(value: FunctionType | type) -> str:
    """Return the qualified name of a function or class of a known library. Raises _Unknown for a user's own."""
    if value.__module__.partition(".")[0] not in _KNOWN or "<locals>" in value.__qualname__:
        raise _Unknown
    return f"{value.__module__}.{value.__qualname__}"


def _settings(step: object) -> dict[str, object]:
    """Return the attributes of a transform. Raises _Unknown for a module with submodules, parameters or hooks."""
    if not isinstance(step, nn.Module):
        return vars(step)
    bare = vars(nn.Module()) | {"training": step.training}
    if any(vars(step)[name] != value for name, value in bare.items()):
        raise _Unknown
    return {name: value for name, value in vars(step).items() if name not in bare}
