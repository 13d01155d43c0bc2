"""What an adapter file says of itself: its metadata, checked as a recipe is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adapt import plain
from adapt.errors import AdaptError
from adapt.formats import tensor_file
from adapt.methods.zero_shot import check_templates
from adapt.shown import brief
from adapt.validation import explain

FORMAT = (2, 0)  # another major is refused, a newer minor only adds keys
_STRICT = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class _Fingerprint(BaseModel):
    model_config = _STRICT

    structure: str
    values: tuple[float, ...]
    configuration: dict[str, Any]


class _Reading(BaseModel):
    model_config = _STRICT

    size: int = Field(ge=1)
    prompt: str | None = None
    patch_block: int | None = None
    turned: bool


class _Answers(BaseModel):
    model_config = _STRICT | ConfigDict(extra="forbid")

    blend: float = Field(ge=0, le=1)
    template: tuple[str, ...]
    temperature: float = Field(gt=0)
    logit_bias: float | None = None

    @model_validator(mode="after")
    def _answerable(self) -> _Answers:
        if self.blend < 1:
            check_templates(self.template)
        return self


class Header(BaseModel):
    """What an adapter file says of itself."""

    model_config = _STRICT

    format: tuple[int, int]
    method: str
    config: dict[str, Any]
    class_names: tuple[Annotated[str, Field(min_length=1, max_length=plain.TEXT)], ...]
    fingerprint: dict[str, Any]
    preprocess: dict[str, Any]
    logit_scale: float | None = None
    """Of a dual encoder."""
    backbone: str | None = None
    """One that the user held has no name."""
    quantization: Literal["nf4", "int8"] | None = None
    """Of the backbone while it was trained."""
    versions: dict[str, str]
    answers: dict[str, Any] | None = None
    """What becomes of the method's logits: see `adapt.models.answers`."""
    recipe: dict[str, Any] | None = None
    seed: int | None = None
    metrics: dict[str, Any] | None = None

    @field_validator("fingerprint")
    @classmethod
    def _whole(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _checked(_Fingerprint, value)

    @field_validator("answers")
    @classmethod
    def _answering(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else _checked(_Answers, value)

    @field_validator("preprocess")
    @classmethod
    def _readable(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_reading(value)

    def metadata(self) -> dict[str, str]:
        """As the file keeps it: JSON under each key that has a value."""
        return {key: plain.dump(value) for key, value in self.model_dump().items() if value is not None}


def checked_reading(value: dict[str, Any]) -> dict[str, Any]:
    """How inputs are prepared, as it is recorded. ValueError where that is not what a backbone can read."""
    return _checked(_Reading, value)


def _checked(model: type[BaseModel], value: dict[str, Any]) -> dict[str, Any]:
    """`value` as it is, where the keys of `model` in it are what they should be; others are of newer backbones."""
    try:
        model.model_validate_json(plain.dump(value))
    except ValidationError as error:
        raise ValueError(explain(model, error, "it is incomplete")) from None
    return value


def make(**values: Any) -> Header:
    """The header of a model. Raises AdaptError for what could not be read again."""
    try:
        plain.check(values, longest=None, most=plain.NAMES)
        return Header(format=FORMAT, **values)
    except ValidationError as error:
        raise AdaptError(explain(Header, error, "this model cannot be saved")) from None
    except ValueError as error:
        raise AdaptError(f"this model cannot be saved: what its header would hold is too much ({error})") from error


def read_header(path: str | Path) -> Header:
    """The header of the adapter at `path`, without its tensors.

    Raises AdaptError for a file that is missing, truncated, damaged, no adapter, or of another format.
    """
    path = Path(path)
    described = tensor_file.describe(path)
    metadata = described.metadata
    if "format" not in metadata or "method" not in metadata:
        raise AdaptError(f"{path} is a safetensors file but no adapter: its header names no method")
    try:
        values = {key: plain.parse(value, most=plain.NAMES) for key, value in metadata.items()}
        major, minor = _version(values["format"])
        if major != FORMAT[0]:
            advice = "upgrade adapt" if major > FORMAT[0] else "train the adapter again"
            raise AdaptError(
                f"{path} has adapter format {major}.{minor}, this adapt reads {FORMAT[0]}.{FORMAT[1]}: {advice}"
            )
        if described.checksum is None:
            raise ValueError(f"it has no {tensor_file.CHECKSUM}")
        unknown = values.keys() - Header.model_fields.keys()
        if unknown and minor <= FORMAT[1]:
            raise ValueError(f"it has the unknown key {min(unknown)!r}")
        return Header.model_validate_json(plain.dump(values))
    except ValidationError as error:
        raise AdaptError(explain(Header, error, f"{path} has a damaged header")) from None
    except ValueError as error:
        raise AdaptError(f"{path} has a damaged header ({error}); fetch or train the adapter again") from error


def _version(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(each) is int and each >= 0 for each in value):
        raise ValueError(f"format is {brief(value)}; expected two numbers such as {list(FORMAT)}")
    return value[0], value[1]
