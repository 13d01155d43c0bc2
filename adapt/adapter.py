"""The adapter file: one safetensors file with the method's tensors and, in its header, all that loading must check."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt import header, plain, tensor_file
from adapt.errors import AdaptError
from adapt.header import Header, read_header

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.adapted import Adapted
    from adapt.backbones.base import Backbone
    from adapt.methods.base import Method

logger = logging.getLogger("adapt")


def save(model: Adapted[Any], path: str | Path) -> Path:
    """Writes `model`'s adapter to `path`, atomically. Raises AdaptError for values that are not finite."""
    from adapt.files import replacing

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.method.state_dict().items()}
    _check_finite(tensors, "the model")
    metadata = _header(model).metadata()
    with replacing(path) as temporary:
        tensor_file.write(tensors, temporary, metadata)
    return Path(path)


def _header(model: Adapted[Any]) -> Header:
    backbone = model.backbone
    return header.make(
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


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an adapter. Raises AdaptError where the file is damaged, or a value is not finite."""
    tensors = tensor_file.read(Path(path))
    _check_finite(tensors, str(path))
    return tensors


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
    if (Path(path) / "recipe.yaml").is_file():
        path = Path(path) / "adapter.safetensors"  # of a run
    if Path(path).is_dir():
        from adapt import compact

        if backbone is not None:
            raise AdaptError(
                f"{path} is a folder, and an adapter in a folder has its backbone there: leave backbone out"
            )
        return compact.load(Path(path), class_names, fast=fast, device=device)
    return _of_file(Path(path), backbone, class_names, fast, device)


def _of_file(
    path: Path, backbone: Backbone | None, class_names: Sequence[str] | None, fast: bool | None, device: str
) -> Any:
    described = read_header(path)
    tensors = read_tensors(path)
    method = method_of(described, path)
    if backbone is None:
        backbone = _named_backbone(described, path, device)
    if backbone.quantization != described.quantization:
        trained, given = (each or "no quantisation" for each in (described.quantization, backbone.quantization))
        logger.warning(
            "%s was trained on a backbone of %s, this one has %s: results differ a little", path, trained, given
        )
    check_backbone(described, backbone, path)
    model = build_for(method, backbone, described.class_names, tensors, str(path), fast)
    model.metadata = {key: getattr(described, key) for key in ("recipe", "seed", "metrics")}
    if class_names is not None and tuple(class_names) != described.class_names:
        if not hasattr(model, "with_classes"):
            raise AdaptError(f"{path} answers questions about images and takes no class names")
        model = model.with_classes(class_names)
    return model.eval()


def method_of(described: Header, path: Path) -> Method:
    """The method that the header names, not yet built."""
    from adapt import methods

    try:
        kind = methods.find(described.method)
        return kind(**kind.settings_of(described.config, described.format))
    except (TypeError, KeyError) as error:  # of settings that the method's own signature refuses
        raise AdaptError(f"{path}: {described.method} does not take such settings ({error})") from error
    except AdaptError as error:
        raise AdaptError(f"{path}: {error}") from error


def _named_backbone(described: Header, path: Path, device: str) -> Backbone:
    from adapt.backbones.load import load_backbone

    if described.backbone is None:
        raise AdaptError(f"{path} was trained on a backbone without a name: give it as load(path, backbone=...)")
    backbone = load_backbone(described.backbone, device, described.quantization)
    backbone.read_as(described.preprocess)
    return backbone


def build_for(
    method: Method,
    backbone: Backbone,
    class_names: Sequence[str],
    tensors: dict[str, Tensor],
    source: str,
    fast: bool | None = None,
) -> Any:
    """The model of `method` with the tensors of the file `source`.

    Raises AdaptError where they do not fit each other, and before anything larger than the tensors is built.
    """
    import torch

    from adapt import model
    from adapt.allocation import at_most

    held = sum(tensor.numel() for tensor in tensors.values())
    with torch.random.fork_rng(devices=[]):  # building draws initial values that the file replaces
        try:
            with at_most(held):
                names = model.build(backbone, method, class_names)
        except AdaptError as error:
            raise AdaptError(f"{source}: {error}") from error
        _check_shapes(method, tensors, source)
        built = model.assemble(backbone, method, names, fast)
    load_tensors(method, tensors, source)
    return built


def check_backbone(described: Header, backbone: Backbone, path: str | Path) -> None:
    """Raises AdaptError unless `backbone` is the model that the adapter was trained on."""
    from adapt.backbones.fingerprint import Fingerprint

    known = described.fingerprint  # a newer adapt may have written more
    recorded = Fingerprint(known["structure"], tuple(known["values"]), known.get("configuration"))
    if difference := recorded.difference(backbone.fingerprint):
        raise AdaptError(
            f"{path} was trained on {described.backbone or 'another backbone'} ({recorded.short()}), not on "
            f"{backbone.describe()} ({backbone.fingerprint.short()}): {difference}. Give the one it was trained on"
        )
    if described.preprocess != plain.parse(plain.dump(backbone.reading())):
        raise AdaptError(
            f"{path} was trained on inputs prepared by {described.preprocess}, {backbone.describe()} prepares them by "
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
    _check_shapes(method, tensors, source)
    cast = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    _check_finite(cast, source)  # a number may be beyond the largest of the method's own type
    method.check_tensors(cast, source)
    method.load_state_dict(cast)


def _check_shapes(method: Method, tensors: dict[str, Tensor], source: str) -> None:
    """AdaptError for tensors that the method has in another shape, or of another kind of numbers."""
    expected = method.state_dict()
    for name in filter(expected.__contains__, tensors):
        if tensors[name].shape != expected[name].shape:
            raise AdaptError(
                f"tensor {name!r} of {source} has shape {tuple(tensors[name].shape)}; {method.name} on this backbone "
                f"expects {tuple(expected[name].shape)}"
            )
        if tensors[name].is_floating_point() != expected[name].is_floating_point():
            raise AdaptError(f"tensor {name!r} of {source} is {tensors[name].dtype}; expected floating point numbers")
