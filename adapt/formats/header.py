"""The header of an adapter file: validated metadata such as method, settings, backbone and class names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, with_config
from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.shown import brief
from adapt.common.validation import explain
from adapt.data.bags import BagPooling
from adapt.formats import tensor_file
from adapt.methods.zero_shot import check_templates

FORMAT = (2, 0)  # another major version is refused, a newer minor one only adds keys
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


@with_config(_STRICT | ConfigDict(extra="forbid"))
class RecordedAnswers(TypedDict):
    """The stored settings of `adapt.models.answers.Answers`, by which logits become predictions."""

    blend: Annotated[float, Field(ge=0, le=1)]
    template: tuple[str, ...]
    temperature: Annotated[float, Field(gt=0)]
    logit_bias: NotRequired[float | None]
    pooling: NotRequired[BagPooling]


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
    """How the method's logits become predictions: see `adapt.models.answers`."""
    recipe: dict[str, object] | None = None
    seed: int | None = None
    metrics: JsonObject | None = None

    @field_validator("answers")
    @classmethod
    def _check_templates(cls, answers: RecordedAnswers | None) -> RecordedAnswers | None:
        if answers is not None and answers["blend"] < 1:
            check_templates(answers["template"])
        return answers

    def metadata(self) -> dict[str, str]:
        """Return the header as safetensors metadata, a dict with a JSON text for each key that is not None."""
        return {key: plain.dump(value) for key, value in self.model_dump().items() if value is not None}


def checked_reading(value: object) -> Reading:
    """Return `value` as a `Reading`. Raises ValueError if `value` does not describe the preprocessing of inputs."""
    return TypeAdapter(Reading).validate_python(value)


def make(**values: object) -> Header:
    """Return a header with `values`. Raises AdaptError for values that `read_header` would reject."""
    try:
        plain.check(values, longest=None, most=plain.NAMES)
        return Header.model_validate({"format": FORMAT} | values)
    except ValidationError as error:
        raise AdaptError(explain(Header, error, "this model cannot be saved")) from None
    except ValueError as error:
        raise AdaptError(f"this model cannot be saved: its header would be too large ({error})") from error


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
        major, minor = _version(values["format"])
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


def _version(value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(each) is int and each >= 0 for each in value):
        raise ValueError(f"format is {brief(value)}; expected two numbers such as {list(FORMAT)}")
    return value[0], value[1]
