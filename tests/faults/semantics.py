"""Files whose bytes are whole and whose checksums are right, and which say what makes no sense: drawn by seed.

A value somewhere inside an adapter, an index or a recipe becomes another: of another type, length, range or width,
taken away, doubled, or put where none was.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt import methods
from adapt.formats import tensor_file

_NUMBERS = (-1, 0, 1, 2, 3, 7, 10_000, 10**9, 2**62, -(2**62), 0.5, -0.5, 1e-30, 1e30, 1e300, -1e300)
_TEXTS = ("", " ", "x", "{}", "a {} and a {}", "\x1b[2J", "\u202eabc", "\n", "x" * 900, "x " * 450, "\u732b" * 300)
_LISTS = ([], [[]], [None], [1], [-1, 5], [5, 1], ["x"], ["x", "x"], [0, 10**9], ["{}"] * 3)
_OTHERS = (None, True, False, {}, {"a": 1}, {"name": "coop"}, {"1": 2})
_ANSWERS = (
    {"blend": 0.0, "template": [], "temperature": 1.0},
    {"blend": 0.3, "template": ["no place"], "temperature": 1.0},
    {"blend": 0.0, "template": ["a {}", "the {}"], "temperature": 1e-300},
    {"blend": 1.0, "template": [""], "temperature": 1e300, "logit_bias": 1e300},
    {"blend": 0.5, "template": ["{} " * 300], "temperature": 0.1, "logit_bias": -3.0},
)
_COUNTS = (10_000, 200_000)  # entries of what is made far too long


def _another(value: Any, draw: random.Random) -> Any:
    """What a hand may put in the place of `value`."""
    kind = draw.random()
    if kind < 0.3:
        return copy.deepcopy(draw.choice((*_NUMBERS, *_TEXTS, *_LISTS, *_OTHERS)))
    if isinstance(value, bool):
        return draw.choice((not value, *_NUMBERS[:4]))
    if isinstance(value, int | float):
        return draw.choice((-value, value + 1, value - 1, value * 1000, value / 3, float(value), str(value), [value]))
    if isinstance(value, str):
        return draw.choice((value.upper(), value + value, value[:-1], f" {value}", [value], *_TEXTS, *methods.names()))
    if isinstance(value, list):
        if draw.random() < 0.15:
            return [f"thing {number}" for number in range(draw.choice(_COUNTS))]
        longer = [*value, *value], value[:-1], value[::-1], [value], dict(enumerate(map(str, value)))
        return draw.choice((*longer, [], value * 50))
    if isinstance(value, dict):
        if draw.random() < 0.1:
            return {str(number): number for number in range(draw.choice(_COUNTS))}
        return draw.choice(({**value, "no_such": 1}, dict(list(value.items())[1:]), {}, [value], list(value)))
    return draw.choice((*_NUMBERS, *_TEXTS, *_LISTS, *_OTHERS))


def otherwise(tree: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """`tree` with one value somewhere inside it another, or gone."""
    owner: Any = tree
    while True:
        places = list(owner) if isinstance(owner, dict) else range(len(owner))
        place = draw.choice(list(places))
        inside = owner[place]
        if isinstance(inside, dict | list) and inside and draw.random() < 0.75:
            owner = inside
            continue
        if isinstance(owner, dict) and draw.random() < 0.08:
            del owner[place]
        else:
            owner[place] = _another(inside, draw)
        return tree


def _header_otherwise(metadata: dict[str, str], draw: random.Random) -> dict[str, str]:
    values = {key: json.loads(value) for key, value in metadata.items()}
    if draw.random() < 0.12:
        values["answers"] = draw.choice(_ANSWERS)
    elif draw.random() < 0.5:  # what the method is built from
        place = draw.choice([key for key in ("config", "class_names") if values.get(key)] or [next(iter(values))])
        values |= otherwise({place: values[place]}, draw)
    else:
        otherwise(values, draw)
    return {key: json.dumps(value) for key, value in values.items()}


def _reshaped(x: Tensor, draw: random.Random) -> Tensor:
    shape = [*x.shape]
    if not shape:
        return torch.stack([x, x])
    shape[draw.randrange(len(shape))] = draw.choice((0, 1, 2, 5, 77))
    return torch.zeros(shape, dtype=x.dtype)


_OF_TENSORS: tuple[Callable[[Tensor, random.Random], Tensor], ...] = (
    _reshaped,
    lambda x, draw: x.flatten(),
    lambda x, draw: x[None],
    lambda x, draw: torch.full_like(x, draw.choice((0, 1, 100))),
    lambda x, draw: -x if x.dtype != torch.bool else ~x,
    lambda x, draw: x * 10**6,
    lambda x, draw: x.double() if x.is_floating_point() else x.to(torch.int32),
    lambda x, draw: x.half() if x.is_floating_point() else x.float(),
    lambda x, draw: torch.full_like(x, float("nan")) if x.is_floating_point() else x,
    lambda x, draw: torch.full_like(x, 3e38) if x.dtype == torch.float32 else x,
)


def tensors_otherwise(tensors: dict[str, Tensor], draw: random.Random) -> dict[str, Tensor]:
    if not tensors or draw.random() < 0.1:
        return tensors | {"more": torch.zeros(2)}
    name = draw.choice(sorted(tensors))
    kind = draw.random()
    if kind < 0.1:
        return {key: tensor for key, tensor in tensors.items() if key != name}
    if kind < 0.2:
        return {f"{key}x" if key == name else key: tensor for key, tensor in tensors.items()}
    changed = draw.choice(_OF_TENSORS)(tensors[name].clone(), draw)
    return tensors | {name: changed.contiguous()}


def resigned(source: Path, target: Path, draw: random.Random, *, of_tensors: float) -> None:
    """Writes `source` to `target` with one or two things otherwise, and a checksum that fits."""
    metadata, tensors = tensor_file.describe(source).metadata, tensor_file.read(source)
    for _ in range(draw.choice((1, 1, 2))):
        if draw.random() < of_tensors:
            tensors = tensors_otherwise(tensors, draw)
        else:
            metadata = _header_otherwise(metadata, draw)
    tensor_file.write(tensors, target, metadata)
