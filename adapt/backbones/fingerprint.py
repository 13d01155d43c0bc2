"""Fingerprints of models, by which an adapter recognises the model that it was trained on.

The configuration in a fingerprint is JSON data: all settings, besides the weights, that affect a model's outputs.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.common.shown import brief

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
    configuration: Configuration

    def matches(self, other: Fingerprint) -> bool:
        """Return whether this fingerprint and `other` belong to the same model, regardless of the precision."""
        return self.difference(other) is None

    def difference(self, other: Fingerprint) -> str | None:
        """Return the first difference from the fingerprint `other`, as text for a message; None if equal."""
        if self.structure != other.structure or len(self.values) != len(other.values):
            return "another architecture"
        if not all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b), 1e-3) for a, b in zip(self.values, other.values)):
            return "same architecture, other weights"
        found = differences(self.configuration, other.configuration, TOLERANCE)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"same weights, another configuration: {found[0]}{more}" if found else None

    def short(self) -> str:
        """Return twelve hex digits that identify the model in messages, cache keys and metadata."""
        sampled = ",".join(f"{value:.2e}" for value in self.values)
        return hashlib.sha256(f"{self.structure}/{sampled}/{_text(self.configuration)}".encode()).hexdigest()[:12]


def _text(configured: Configuration) -> str:
    return json.dumps(configured, sort_keys=True)


def content(model: nn.Module) -> str:
    """Return a hash of a model's configuration and of the exact values and dtypes of its parameters and buffers.

    SHA-256 takes about one second per gigabyte, as processors have instructions for it.
    """
    digest = hashlib.sha256(_text(configuration_of(model)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}:{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def sampled(name: str, parameter: Tensor) -> Tensor:
    """Return the single value that represents `parameter` in a fingerprint; its index is derived from `name`.

    Without values, on the meta device, it is NaN.
    """
    if parameter.is_meta:
        return torch.tensor(torch.nan, device="cpu")
    return parameter.detach().flatten()[zlib.crc32(name.encode()) % parameter.numel()].float().cpu()


def of_model(model: nn.Module) -> Fingerprint:
    """Return the fingerprint of `model`; the order of the model's parameters has no effect."""
    parameters = dict(sorted(model.named_parameters()))
    described = ";".join(f"{name}:{tuple(value.shape)}" for name, value in parameters.items())
    chosen = sorted(parameters, key=lambda name: zlib.crc32(name.encode()))[:SAMPLES]
    values = tuple(float(sampled(name, parameters[name])) for name in chosen)
    return Fingerprint(hashlib.sha256(described.encode()).hexdigest(), values, configuration_of(model))


# attributes of modules that change no value in evaluation: modes, layouts, names, counters, dropout, Qwen's last call
_INERT = {
    "training", "batch_first", "fused_attn", "output_dict", "output_tokens", "grad_checkpointing", "layer_idx",
    "gradient_checkpointing", "name_or_path", "max_seq_len_cached", "drop_prob", "p", "dropout", "attention_dropout",
    "inplace", "compute_type_is_set", "support_avx512bf16_for_cpu", "loss_type", "all_tied_weights_keys", "name",
    "preprocess_cfg", "image_mean", "image_std", "rope_deltas",
}  # fmt: skip
# attributes that the shapes of the parameters already determine
_SHAPES = {
    "in_features", "out_features", "in_channels", "out_channels", "normalized_shape", "num_embeddings", "embed_dim",
    "embedding_dim", "elementwise_affine", "norm_type", "sparse", "scale_grad_by_freq", "kdim", "vdim", "groups",
    "output_padding", "transposed", "vocab_size", "width", "layers", "output_dim", "hidden_size", "intermediate_size",
    "add_zero_attn", "kernel_size", "grid_size", "num_patches", "num_positions",
}  # fmt: skip
# entries of transformers' configurations that modules read in their forward but do not store
_READ = re.compile(
    r"hidden_act|activation|_eps$|softcapping|rope|rotary|sliding_window|layer_types|max_image_length"
    r"|^num_(attention_heads|key_value_heads|hidden_layers)$"
)
_PROBE = (-3.0, -1.0, -0.25, 0.5, 2.0)
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]
Configuration = dict[str, JSON]


def configuration_of(model: nn.Module) -> Configuration:
    """Return all settings that affect the outputs of `model`, in a dict with module paths and attribute names as keys.

    The settings are the hyper-parameters of modules, activation functions and computed buffers. The blocks of a stack
    share one entry, which is a list if the blocks' values differ. The result does not depend on how the model was
    loaded, nor on the model's precision or device.
    """
    entries: dict[str, list[JSON]] = {}
    for path, module in model.named_modules():
        for name, value in _of_module(module).items():
            entries.setdefault(re.sub(r"(^|\.)\d+(?=\.)", r"\1*", f"{path}.{name}".lstrip(".")), []).append(value)
    entries |= {f"config.{name}": [value] for name, value in _of_library(getattr(model, "config", None)).items()}
    return {
        place: values[0] if all(value == values[0] for value in values) else values
        for place, values in sorted(entries.items())
    }


def _of_module(module: nn.Module) -> Configuration:
    composed = any(True for _ in (*module.children(), *module.parameters()))
    left_out = _INERT | _SHAPES if composed else _INERT
    entries = {
        name: _plain(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in left_out and _is_plain(value)
    }
    computed = module._non_persistent_buffers_set
    entries |= {name: _sampled(buffer) for name, buffer in module._buffers.items() if name in computed}
    function = None if composed else _function(module)
    return entries if function is None else entries | {"function": function}


def _of_library(config: object) -> Configuration:
    """Return the settings in a transformers config, and in its nested configs, that affect a model's outputs."""
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        return {}
    entries = {name: _plain(value) for name, value in values.items() if _READ.search(name) and _is_plain(value)}
    for name, inner in values.items():
        if name.endswith("_config") and name != "quantization_config":
            entries |= {f"{name}.{key}": value for key, value in _of_library(inner).items()}
    return entries


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    return value is None or isinstance(value, bool | int | float | str | FunctionType)


def _plain(value: object) -> JSON:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    assert value is None or isinstance(value, bool | int | float | str | FunctionType)
    return value.__name__ if isinstance(value, FunctionType) else value


def _sampled(buffer: Tensor | None) -> list[JSON] | None:
    """Return a list with the shape of a computed buffer, such as a mask, followed by three values of a float buffer."""
    if buffer is None:
        return None
    if buffer.is_meta or not buffer.is_floating_point() or not buffer.numel():
        return [list(buffer.shape)]
    places = torch.tensor([0, buffer.numel() // 3, buffer.numel() - 1], device=buffer.device)
    values = buffer.detach().flatten()[places].float().cpu().tolist()
    return [list(buffer.shape), *(value if abs(value) < 1e30 else "inf" for value in values)]


def _function(module: nn.Module) -> JSON:
    """Return the name of the function that a parameter-free module computes, such as gelu.

    The function is recognised by its output, because libraries use different class names for the same function. An
    unknown function is described by a list of its values at a few inputs. If the module cannot process a vector, the
    result is the class name of a torch module, and None for other modules.
    """
    probe = torch.tensor(_PROBE, device="cpu")  # also while an outline is built
    try:
        output = copy.deepcopy(module).eval().forward(probe)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError):
        return type(module).__name__ if type(module).__module__.startswith("torch.nn") else None
    if not isinstance(output, Tensor) or output.shape != probe.shape:
        return None
    named = (name for name, known in _FUNCTIONS.items() if torch.allclose(output, known(probe), atol=1e-5))
    return next(named, [round(value, 4) for value in output.tolist()])


def differences(one: Configuration, other: Configuration, tolerance: float) -> list[str]:
    """Return a description of each setting whose value differs between two models' configurations.

    Settings found in only one configuration are ignored, because another release of a library may record more settings.
    """
    shared = sorted(one.keys() & other.keys())
    return [
        f"{place} is {brief(one[place])}, not {brief(other[place])}"
        for place in shared
        if not _same(one[place], other[place], tolerance)
    ]


def _same(one: JSON, other: JSON, tolerance: float) -> bool:
    """Return whether two settings are equal; floats may differ by the relative `tolerance`, to allow for rounding."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b, tolerance) for a, b in zip(one, other))
    if isinstance(one, float) and isinstance(other, int | float):
        return abs(one - other) <= tolerance * max(abs(one), abs(other))
    return bool(one == other)
