"""Keys of image transforms, made from their classes and settings: cached features are stored under them."""

from __future__ import annotations

import hashlib
from enum import Enum
from functools import cache, partial
from importlib.metadata import version
from types import FunctionType

import torch
from torch import nn

from adapt.common.version import __version__

_KNOWN = ("adapt", "torchvision", "open_clip")  # packages whose steps are identified by their version
_LIBRARIES = ("torch", "torchvision", "pillow", "open_clip_torch")


class _Unknown(Exception):
    """The error raised for a transform whose code cannot be identified, such as a user's own function."""


def transform_key(transform: object) -> str | None:
    """Return a cache key that is equal only for equivalent image transforms; None for an unknown transform.

    Transforms of torchvision, open_clip and adapt are identified by their settings and by the versions of these
    libraries. The key of a transform is the same in all processes.
    """
    try:
        described = repr((_versions(), _plain_of(transform)))
    except _Unknown:
        return None
    return hashlib.blake2b(described.encode(), digest_size=20).hexdigest()


@cache
def _versions() -> tuple[str, ...]:
    return __version__, *map(version, _LIBRARIES)


def _plain_of(value: object) -> object:
    """Describe `value`, a component of a transform, as numbers, texts and lists. Raises _Unknown for a user's code."""
    if value is object or isinstance(value, Enum | torch.dtype):
        return str(value)
    if isinstance(value, None | bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, list | tuple):
        return [_plain_of(each) for each in value]
    if isinstance(value, partial):
        return [
            _plain_of(value.func),
            _plain_of(value.args),
            [(name, _plain_of(x)) for name, x in value.keywords.items()],
        ]
    if isinstance(value, FunctionType | type):
        return _named(value)
    return [_named(type(value)), [(name, _plain_of(x)) for name, x in sorted(_settings(value).items())]]


def _named(value: FunctionType | type) -> str:
    """Return the qualified name of a function or class from a known library. Raises _Unknown for a user's own code."""
    if value.__module__.partition(".")[0] not in _KNOWN or "<locals>" in value.__qualname__:
        raise _Unknown
    return f"{value.__module__}.{value.__qualname__}"


def _settings(step: object) -> dict[str, object]:
    """Return a transform's attributes as a dict. Raises _Unknown for a module with submodules, parameters or hooks."""
    if not isinstance(step, nn.Module):
        return vars(step)
    bare = vars(nn.Module()) | {"training": step.training}
    if any(vars(step)[name] != value for name, value in bare.items()):
        raise _Unknown
    return {name: value for name, value in vars(step).items() if name not in bare}
