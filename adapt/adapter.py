"""The adapter file: one safetensors file with the method's tensors and, in its header, all that loading must check."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.errors import AdaptError

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.adapted import Adapted
    from adapt.backbones.base import Backbone
    from adapt.methods.base import Method

logger = logging.getLogger("adapt")

FORMAT = (1, 0)  # a newer major is refused, a newer minor only adds keys
_MAX_HEADER = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class Header:
    """What an adapter file says of itself."""

    format: tuple[int, int]
    method: str
    config: dict[str, Any]
    class_names: tuple[str, ...]
    fingerprint: dict[str, Any]
    preprocess: dict[str, Any]
    logit_scale: float | None = None  # of a dual encoder
    backbone: str | None = None  # one that the user held has no name
    quantization: str | None = None  # of the backbone while it was trained
    versions: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] | None = None
    seed: int | None = None
    metrics: dict[str, Any] | None = None


def save(model: Adapted[Any], path: str | Path) -> Path:
    """Writes `model`'s adapter to `path`, atomically. Raises AdaptError for values that are not finite."""
    from adapt.files import replacing

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.method.state_dict().items()}
    _check_finite(tensors, "the model")
    metadata = {key: json.dumps(value) for key, value in asdict(_header(model)).items() if value is not None}
    with replacing(path) as temporary:
        write_tensors(tensors, temporary, metadata)
    return Path(path)


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file. Raises OSError where the disk does not take it, as Python's own writers do."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _header(model: Adapted[Any]) -> Header:
    backbone = model.backbone
    return Header(
        format=FORMAT,
        method=model.method.name,
        config=model.method.config.model_dump(mode="json"),
        class_names=model.class_names,
        backbone=backbone.name,
        quantization=backbone.quantization,
        fingerprint=asdict(backbone.fingerprint),
        preprocess=backbone.reading(),
        logit_scale=model.method.logit_scale or getattr(backbone, "logit_scale", None),
        versions=versions(),
        **model.metadata,
    )


def versions() -> dict[str, str]:
    """The versions of adapt and of the libraries whose arithmetic it uses."""
    from importlib.metadata import version

    import adapt

    libraries = ("torch", "open_clip_torch", "transformers", "peft", "timm", "safetensors", "bitsandbytes")
    return {"adapt": adapt.__version__, **{name: version(name) for name in libraries}}


def read_header(path: str | Path) -> Header:
    """The header of the adapter at `path`, without its tensors.

    Raises AdaptError for a file that is missing, truncated, damaged, no adapter, or of a newer format.
    """
    path = Path(path)
    metadata = _raw_metadata(path)
    if "format" not in metadata or "method" not in metadata:
        raise AdaptError(f"{path} is a safetensors file but no adapter: its header names no method")
    try:
        values = {key: json.loads(value) for key, value in metadata.items()}
        major, minor = values["format"]
        if major > FORMAT[0]:
            raise AdaptError(
                f"{path} has adapter format {major}.{minor}, this adapt reads up to {FORMAT[0]}: upgrade adapt"
            )
        known = {key: value for key, value in values.items() if key in Header.__dataclass_fields__}
        header = Header(**known | {"format": (major, minor), "class_names": tuple(values["class_names"])})
        _check_kinds(header)
    except (json.JSONDecodeError, TypeError, ValueError, KeyError) as error:
        raise AdaptError(f"{path} has a damaged header ({error}); fetch or train the adapter again") from error
    return header


def _check_kinds(header: Header) -> None:
    """ValueError where what loading reads as keys and values is something else."""
    if not isinstance(header.config, dict):
        raise ValueError(f"config is {header.config!r}; expected keys and values")
    if not isinstance(header.fingerprint, dict) or not {"structure", "values"} <= header.fingerprint.keys():
        raise ValueError("the backbone's fingerprint is incomplete")


def _raw_metadata(path: Path) -> dict[str, str]:
    """safetensors accepts a header with the same key twice, so the JSON is read here first."""
    if not path.is_file():
        raise AdaptError(f"there is no adapter at {path}")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, path.stat().st_size - 8):
            raise AdaptError(f"{path} is truncated or no safetensors file; fetch or train the adapter again")
        text = file.read(length)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise AdaptError(f"{path} names a tensor or key twice in its header; fetch or train the adapter again")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique).get("__metadata__", {})
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise AdaptError(f"{path} has no readable header ({error}); fetch or train the adapter again") from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an adapter. Raises AdaptError where the file is damaged, or a value is not finite."""
    tensors = read_safetensors(path)
    _check_finite(tensors, str(path))
    return tensors


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises AdaptError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise AdaptError(f"{path} is truncated or damaged ({error}); fetch or train the adapter again") from error


def _check_finite(tensors: dict[str, Tensor], source: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise AdaptError(
                f"tensor {name!r} of {source} has values that are not finite; train again, at a lower rate"
            )


def load(
    path: str | Path,
    backbone: Backbone | None = None,
    class_names: Sequence[str] | None = None,
    *,
    fast: bool | None = None,
    device: str = "cpu",
) -> Any:
    """The adapted model that was saved at `path`, in evaluation mode.

    The backbone is built by its recorded name unless given; `class_names` classifies among other classes. A run
    directory stands for its adapter, and a compact folder (see `adapt.compact`) brings its own backbone.
    Raises AdaptError where file and backbone do not fit each other, and as `read_header` and `read_tensors` do.
    """
    import torch

    from adapt import methods
    from adapt.backbones.load import load_backbone
    from adapt.model import wrap

    if (Path(path) / "recipe.yaml").is_file():
        path = Path(path) / "adapter.safetensors"  # of a run
    if Path(path).is_dir():
        from adapt import compact

        if backbone is not None:
            raise AdaptError(
                f"{path} is a folder, and an adapter in a folder has its backbone there: leave backbone out"
            )
        return compact.load(Path(path), class_names, fast=fast, device=device)
    header = read_header(path)
    tensors = read_tensors(path)
    method = methods.find(header.method)(**header.config)
    if backbone is None:
        if header.backbone is None:
            raise AdaptError(f"{path} was trained on a backbone without a name: give it as load(path, backbone=...)")
        backbone = load_backbone(header.backbone, device, header.quantization)
        backbone.read_as(header.preprocess)
    if backbone.quantization != header.quantization:
        trained, given = (each or "no quantisation" for each in (header.quantization, backbone.quantization))
        logger.warning(
            "%s was trained on a backbone of %s, this one has %s: results differ a little", path, trained, given
        )
    check_backbone(header, backbone, path)
    with torch.random.fork_rng(devices=[]):  # building draws initial values that the file replaces
        model = wrap(backbone, method, header.class_names, fast=fast)
    load_tensors(method, tensors, str(path))
    model.metadata = {key: getattr(header, key) for key in ("recipe", "seed", "metrics")}
    if class_names is not None and tuple(class_names) != header.class_names:
        if not hasattr(model, "with_classes"):
            raise AdaptError(f"{path} answers questions about images and takes no class names")
        model = model.with_classes(class_names)
    return model.eval()


def check_backbone(header: Header, backbone: Backbone, path: str | Path) -> None:
    """Raises AdaptError unless `backbone` is the model that the adapter was trained on."""
    from adapt.backbones.fingerprint import Fingerprint

    recorded = Fingerprint(**header.fingerprint | {"values": tuple(header.fingerprint["values"])})
    if difference := recorded.difference(backbone.fingerprint):
        raise AdaptError(
            f"{path} was trained on {header.backbone or 'another backbone'} ({recorded.short()}), not on "
            f"{backbone.describe()} ({backbone.fingerprint.short()}): "
            f"{difference}. Give the one it was trained on"
        )
    if header.preprocess != json.loads(json.dumps(backbone.reading())):
        raise AdaptError(
            f"{path} was trained on inputs prepared by {header.preprocess}, {backbone.describe()} prepares them by "
            f"{backbone.reading()}: give the backbone with the preprocessing (and prompt) it was trained with"
        )


def load_tensors(method: Method, tensors: dict[str, Tensor], source: str) -> None:
    """Copies `tensors` into `method`. AdaptError for missing, unknown or misshapen ones: none is copied then."""
    expected = method.state_dict()
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unknown:
        lacks = f"lacks {', '.join(sorted(missing))}" if missing else ""
        extra = f"has the unknown {', '.join(sorted(unknown))}" if unknown else ""
        raise AdaptError(
            f"{source} {' and '.join(filter(None, (lacks, extra)))}: it does not fit its method {method.name}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise AdaptError(
                f"tensor {name!r} of {source} has shape {tuple(tensor.shape)}; {method.name} on this backbone "
                f"expects {tuple(expected[name].shape)}"
            )
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise AdaptError(f"tensor {name!r} of {source} is {tensor.dtype}; expected floating point numbers")
    method.load_state_dict(tensors)
