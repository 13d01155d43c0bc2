"""Which model an adapter belongs to: names, shapes and a few sampled values."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SAMPLES = 64
TOLERANCE = 0.01  # relative; bf16 rounds by 0.4 %


@dataclass(frozen=True)
class Fingerprint:
    """`structure` hashes the parameters' names and shapes; `values` are sampled entries, one per chosen parameter."""

    structure: str
    values: tuple[float, ...]

    def matches(self, other: Fingerprint) -> bool:
        """Whether both are of one model, whatever its precision."""
        if self.structure != other.structure or len(self.values) != len(other.values):
            return False
        return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b), 1e-3) for a, b in zip(self.values, other.values))

    def short(self) -> str:
        """Twelve hex digits that identify the model in messages, cache keys and metadata."""
        sampled = ",".join(f"{value:.2e}" for value in self.values)
        return hashlib.sha256(f"{self.structure}/{sampled}".encode()).hexdigest()[:12]


def content(model: nn.Module) -> str:
    """A hash of all parameters and buffers, to the bit and with their types; about a second for each gigabyte."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}:{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sampled(name: str, parameter: Tensor) -> Tensor:
    """The entry of a parameter that stands for it, a place that its name chooses."""
    return parameter.detach().flatten()[zlib.crc32(name.encode()) % parameter.numel()].float().cpu()


def of_model(model: nn.Module) -> Fingerprint:
    """The fingerprint of `model`'s parameters, in whatever order."""
    parameters = dict(sorted(model.named_parameters()))
    described = ";".join(f"{name}:{tuple(value.shape)}" for name, value in parameters.items())
    chosen = sorted(parameters, key=lambda name: zlib.crc32(name.encode()))[:SAMPLES]
    values = tuple(float(sampled(name, parameters[name])) for name in chosen)
    return Fingerprint(hashlib.sha256(described.encode()).hexdigest(), values)
