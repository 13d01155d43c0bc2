"""Fingerprints of models, by which an adapter recognises the model that it was trained on."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapt.backbones import configuration

SAMPLES = 64
TOLERANCE = 0.01  # relative; bf16 rounds by 0.4 %


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a model: its structure, sampled weights and configuration.

    `structure` is a hash of the names and shapes of all parameters. `values` contains one value from each of a few
    parameters. `configuration` contains the settings that affect the model's outputs.
    """

    structure: str
    values: tuple[float, ...]
    configuration: configuration.Configuration

    def matches(self, other: Fingerprint) -> bool:
        """Return whether this fingerprint and `other` belong to the same model, regardless of the precision."""
        return self.difference(other) is None

    def difference(self, other: Fingerprint) -> str | None:
        """Return the first difference from the fingerprint `other`, as text for a message; None if equal."""
        if self.structure != other.structure or len(self.values) != len(other.values):
            return "another architecture"
        if not all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b), 1e-3) for a, b in zip(self.values, other.values)):
            return "same architecture, other weights"
        differences = configuration.differences(self.configuration, other.configuration, TOLERANCE)
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        return f"same weights, another configuration: {differences[0]}{more}" if differences else None

    def short(self) -> str:
        """Return twelve hex digits that identify the model in messages, cache keys and metadata."""
        sampled = ",".join(f"{value:.2e}" for value in self.values)
        return hashlib.sha256(f"{self.structure}/{sampled}/{_text(self.configuration)}".encode()).hexdigest()[:12]


def _text(configured: configuration.Configuration) -> str:
    return json.dumps(configured, sort_keys=True)


def content(model: nn.Module) -> str:
    """Return a hash of a model's configuration and of the exact values and dtypes of its parameters and buffers.

    Hashing takes about one second per gigabyte.
    """
    digest = hashlib.blake2b(_text(configuration.of_model(model)).encode(), digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}:{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sampled(name: str, parameter: Tensor) -> Tensor:
    """Return the single value that represents `parameter` in a fingerprint; its index is derived from `name`."""
    return parameter.detach().flatten()[zlib.crc32(name.encode()) % parameter.numel()].float().cpu()


def of_model(model: nn.Module) -> Fingerprint:
    """Return the fingerprint of `model`; the order of the model's parameters has no effect."""
    parameters = dict(sorted(model.named_parameters()))
    described = ";".join(f"{name}:{tuple(value.shape)}" for name, value in parameters.items())
    chosen = sorted(parameters, key=lambda name: zlib.crc32(name.encode()))[:SAMPLES]
    values = tuple(float(sampled(name, parameters[name])) for name in chosen)
    return Fingerprint(hashlib.sha256(described.encode()).hexdigest(), values, configuration.of_model(model))
