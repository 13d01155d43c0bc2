"""The adapter file: a safetensors file of the method's tensors; its header holds what must be checked on loading.

The header is validated metadata, such as method, settings, backbone and class names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator, with_config
from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.shown import brief
from adapt.common.validation import explain
from adapt.common.version import __version__
from adapt.data.bags import BagPooling
from adapt.formats import tensor_file
from adapt.methods.zero_shot import check_templates

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.backbones.base import Backbone
    from adapt.models.base import Adapted
    from adapt.models.sets import Sets


FORMAT = (2, 1)  # another major version is refused, a newer minor one only adds keys
OLDER = (2, 0)  # of a file that has nothing newer, so that equal runs write equal files
# begin the names of tensors that are not the method's: what sets of images answered together need, and the watch
_PREFIXES = {"sets": "calibration.", "watch": "watch."}
_STRICT = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


@with_config(_STRICT | ConfigDict(extra="allow"))
class RecordedFingerprint(TypedDict):
    """The fingerprint of a backbone as stored in a header, possibly with further keys from a newer adapt."""

    structure: str
    values: tuple[float, ...]
    configuration: JsonObject


@with_config(_STRICT | ConfigDict(extra="allow"))
class Reading(TypedDict):
    """The preprocessing of a backbone as stored in a header, with keys in file order and possibly unknown keys."""

    size: NotRequired[Annotated[int, Field(ge=1)]]
    mean: NotRequired[object]
    std: NotRequired[object]
    interpolation: NotRequired[object]
    resize: NotRequired[object]
    edge: NotRequired[object]
    turned: bool
    prompt: NotRequired[str | None]
    patch_block: NotRequired[int | None]
    processor: NotRequired[dict[str, object]]
    chat_template: NotRequired[str]
    question: NotRequired[str]
    reads: NotRequired[str]


@with_config(_STRICT | ConfigDict(extra="forbid"))
class RecordedAnswers(TypedDict):
    """The stored settings of `adapt.models.prediction.Answers`, by which logits become predictions."""

    blend: Annotated[float, Field(ge=0, le=1)]
    template: tuple[str, ...]
    temperature: Annotated[float, Field(gt=0)]
    logit_bias: NotRequired[float | None]
    pooling: NotRequired[BagPooling]


@with_config(_STRICT | ConfigDict(extra="forbid"))
class RecordedSets(TypedDict):
    """The calibrated sets of classes (`adapt.models.sets.Sets`), or intervals of numbers."""

    score: Literal["lac", "aps", "raps", "aps_random", "raps_random", "margin", "top_k", "residual", "every"]
    by_class: bool
    scores: tuple[tuple[float, ...], ...]
    sizes: tuple[tuple[Annotated[int, Field(gt=0)], ...], ...]
    settings: str
    images_id: str
    of_items: bool
    together: bool


class Header(BaseModel):
    """The metadata of an adapter file, such as its method, settings, backbone and class names."""

    model_config = _STRICT

    format: tuple[int, int]
    method: str
    config: dict[str, object]
    class_names: tuple[Annotated[str, Field(min_length=1, max_length=plain.TEXT)], ...]
    fingerprint: RecordedFingerprint
    preprocess: Reading
    logit_scale: float | None = None
    """The scale of a dual encoder's cosines."""
    backbone: str | None = None
    """The backbone's name; a model that the user built has none."""
    quantization: Literal["nf4", "int8"] | None = None
    """The backbone's quantisation during training."""
    versions: dict[str, str]
    answers: RecordedAnswers | None = None
    """How the method's logits become predictions: see `adapt.models.prediction`."""
    sets: RecordedSets | None = None
    """The calibrated sets of classes, if any (since format 2.1)."""
    watch: bool | None = None
    """Whether tensors named `watch.` say what the training images looked like (since format 2.1)."""
    recipe: dict[str, object] | None = None
    seed: int | None = None
    metrics: JsonObject | None = None

    def accuracies(self) -> dict[str, str]:
        """Return the accuracy of the baseline and of the adapter on the test images as text, with its interval."""
        from adapt.evaluation.intervals import between

        names = {"zero_shot": plain.within(self.metrics, "baseline", kind=str) or "zero-shot", "adapted": "adapted"}
        told = {}
        for key, name in names.items():
            accuracy = plain.within(self.metrics, key, "accuracy", kind=float)
            ends = plain.within(self.metrics, key, "intervals", "accuracy", kind=list) or []
            known = len(ends) == 2 and all(isinstance(end, float | int) for end in ends)
            if accuracy is not None:
                told[name] = f"{100 * accuracy:.1f} %{between(ends if known else None)}"
        return told

    @model_validator(mode="after")
    def _check_sets(self) -> Self:
        if self.sets is not None:
            scores, sizes = self.sets["scores"], self.sets["sizes"]
            members = plain.within(self.config, "members", kind=list) or []  # of an average
            parts = {len(self.class_names)} if self.sets["by_class"] else {1, len(members) or 1}
            if [*map(len, scores)] != [*map(len, sizes)] or len(scores) not in parts:
                raise ValueError("sets: expected as many sizes as scores, of all images, each class or each member")
            most = 2.0 + len(self.class_names)  # of raps, whose penalty is a hundredth of a rank
            most = math.inf if self.sets["score"] == "residual" else most
            if any(list(own) != sorted(own) or not all(0 <= score <= most for score in own) for own in scores):
                raise ValueError("sets: expected scores in ascending order, from 0 on")
        return self

    @field_validator("answers")
    @classmethod
    def _check_templates(cls, answers: RecordedAnswers | None) -> RecordedAnswers | None:
        if answers is not None and answers["blend"] < 1:
            check_templates(answers["template"])
        return answers


def read_header(path: str | Path) -> Header:
    """Return the header of the adapter file at `path`, without reading its tensors.

    Raises AdaptError if the file is missing, truncated, damaged, not an adapter, or of another format.
    """
    path = Path(path)
    described = tensor_file.describe(path)
    metadata = described.metadata
    if "format" not in metadata or "method" not in metadata:
        raise AdaptError(f"{path} is a safetensors file but not an adapter: its header names no method")
    try:
        values = {key: plain.parse(value, most=plain.NAMES) for key, value in metadata.items()}
        own = values["format"]
        numbers = isinstance(own, list) and all(type(each) is int and each >= 0 for each in own)
        if not (numbers and len(own) == 2):
            raise ValueError(f"format is {brief(own)}; expected two numbers such as {list(FORMAT)}")
        major, minor = own
        if major != FORMAT[0]:
            advice = "upgrade adapt" if major > FORMAT[0] else "train the adapter again"
            raise AdaptError(
                f"{path} has adapter format {major}.{minor}, but this adapt reads {FORMAT[0]}.{FORMAT[1]}: {advice}"
            )
        if described.checksum is None:
            raise ValueError(f"the header has no {tensor_file.CHECKSUM}")
        unknown = values.keys() - Header.model_fields.keys()
        if unknown and minor <= FORMAT[1]:
            raise ValueError(f"the header has the unknown key {min(unknown)!r}")
        return Header.model_validate_json(plain.dump(values))
    except ValidationError as error:
        raise AdaptError(explain(Header, error, f"{path} has a damaged header")) from None
    except ValueError as error:
        raise AdaptError(f"{path} has a damaged header ({error}); fetch or train the adapter again") from error


# the libraries that a result depends on, including those that decode and resize images
_LIBRARIES = (
    "torch", "torchvision", "pillow", "open_clip_torch", "transformers", "peft", "timm", "safetensors", "bitsandbytes",
)  # fmt: skip


NAME = "adapter.safetensors"  # in the folder of a run, and in a repository of the hub


def save(model: Adapted, path: str | Path) -> Path:
    """Write the adapter of `model` to `path` atomically, and return the path.

    Raises AdaptError if a value is not finite, or if the method could not be rebuilt from its settings.
    """
    from adapt.common.disk import replacing
    from adapt.formats.rebuild import check_loadable

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.method.state_dict().items()}
    tensor_file.check_finite(tensors, "the model")
    check_loadable(model, tensors)
    kept = None if model.answers.sets is None else model.answers.sets.calibration
    others = {
        "sets": {} if kept is None else kept._asdict(),
        "watch": {} if model.watch is None else model.watch.tensors(),
    }
    for part, own in others.items():
        tensors |= {_PREFIXES[part] + name: tensor.contiguous() for name, tensor in own.items()}
    metadata = {key: plain.dump(value) for key, value in header_of(model).model_dump().items() if value is not None}
    with replacing(path) as temporary:
        tensor_file.write(tensors, temporary, metadata)
    return Path(path)


def header_of(model: Adapted) -> Header:
    """Return the header for the adapter file of `model`. Raises AdaptError if `read_header` would refuse it."""
    from adapt.models.prediction import PLAIN

    backbone, sets = model.backbone, model.answers.sets
    answers = {name: value for name, value in asdict(replace(model.answers, sets=None)).items() if name != "sets"}
    values = {
        "method": model.method.name,
        "config": model.method.config.model_dump(mode="json"),
        "class_names": model.class_names,
        "backbone": backbone.name,
        "quantization": backbone.quantization,
        "fingerprint": asdict(backbone.fingerprint),
        "preprocess": backbone.reading(),
        "logit_scale": _scale_of(model),
        "versions": versions(),
        "answers": None if replace(model.answers, sets=None) == PLAIN else answers,
        "sets": None if sets is None else {key: getattr(sets, key) for key in RecordedSets.__annotations__},
        "watch": None if model.watch is None else True,
        **model.metadata,
    }
    try:
        plain.check(values, longest=None, most=plain.NAMES)
        return Header.model_validate({"format": OLDER if sets is None and model.watch is None else FORMAT} | values)
    except ValidationError as error:
        raise AdaptError(explain(Header, error, "this model cannot be saved")) from None
    except ValueError as error:
        raise AdaptError(f"this model cannot be saved: its header would be too large ({error})") from error


def _scale_of(model: Adapted) -> float | None:
    """Return the logit scale of the method or else of the backbone; None if the logits are not cosine similarities."""
    scale: float | None = model.method.logit_scale or getattr(model.backbone, "logit_scale", None)
    return scale


def check_scale(described: Header, model: Adapted, path: str | Path) -> None:
    """Raise AdaptError if the logit scale recorded in a header differs from the logit scale of `model`."""
    own, recorded = _scale_of(model), described.logit_scale
    if recorded is not None and (own is None or not math.isclose(recorded, own, rel_tol=1e-3)):
        raise AdaptError(
            f"{path} records the logit scale {recorded:g}, but {model.method.name} here has "
            f"{'none' if own is None else f'{own:g}'}. The file was changed by hand: fetch or train the adapter again"
        )


def versions() -> dict[str, str]:
    """Return a dict with the installed versions of adapt and of the libraries on which results depend."""
    installed = {"adapt": __version__}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):  # bitsandbytes is an extra
            installed[name] = version(name)
    return installed


def read_parts(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of an adapter file: the `method`'s, and those of its `sets` and of its `watch`, if any.

    Raises AdaptError if the file is damaged or a value is not finite.
    """
    tensors = tensor_file.read(Path(path))
    parts: dict[str, dict[str, Tensor]] = {"method": {}, "sets": {}, "watch": {}}
    tensor_file.check_finite(tensors, str(path))
    for name, tensor in tensors.items():
        part, prefix = next((own for own in _PREFIXES.items() if name.startswith(own[1])), ("method", ""))
        parts[part][name.removeprefix(prefix)] = tensor
    return parts


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the method's tensors of an adapter file. Raises AdaptError as `read_parts` does."""
    return read_parts(path)["method"]


def sets_of(described: Header, tensors: Mapping[str, Tensor], path: Path) -> Sets | None:
    """Return the sets of the adapter file at `path`. Raises AdaptError if their `tensors` do not fit its header."""
    from adapt.models.sets import Calibration, Sets

    if described.sets is None:
        return None
    values: dict[str, Any] = dict(described.sets)
    if not values.pop("together"):
        return Sets(**values)
    images, classes = sum(map(len, values["scores"])), len(described.class_names)
    kept = [tensors[name] for name in Calibration._fields if name in tensors]
    shapes = [tuple(tensor.shape) for tensor in kept]
    if shapes != [(images, classes), (images,), (images,)] or not {*kept[1].tolist()} <= {*range(classes)}:
        raise AdaptError(
            f"{path} lacks logits or labels of the {images:,} images that its sets were calibrated on: "
            "fetch it again, or calibrate the sets again with `adapt sets`"
        )
    return Sets(**values, calibration=Calibration(*kept))


def check_backbone(described: Header, backbone: Backbone, path: str | Path) -> None:
    """Raise AdaptError if `backbone` has other weights or preprocessing than the backbone used in training."""
    from adapt.backbones.fingerprint import Fingerprint

    known = described.fingerprint  # a newer adapt may have written more
    recorded = Fingerprint(known["structure"], known["values"], known["configuration"])
    if difference := recorded.difference(backbone.fingerprint):
        raise AdaptError(
            f"{path} was trained on {described.backbone or 'another backbone'} ({recorded.short()}), not on "
            f"{backbone.describe()} ({backbone.fingerprint.short()}): {difference}. Give the backbone used in training"
        )
    check_reading(described.preprocess, backbone, path)


def check_reading(recorded: Reading, backbone: Backbone, path: str | Path) -> None:
    """Raise AdaptError if the preprocessing of `backbone` differs from `recorded`, except in rotation by EXIF."""
    own = plain.parse(plain.dump(backbone.turning(recorded["turned"]).reading()))
    if recorded != own:
        raise AdaptError(
            f"{path} was trained with the preprocessing {recorded}, but {backbone.describe()} has the preprocessing "
            f"{backbone.reading()}: give the backbone with the preprocessing (and prompt) used in training"
        )
