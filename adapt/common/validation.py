"""Settings that pydantic checks, with one-line explanations of its errors."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import is_typeddict

from adapt.common import plain
from adapt.common.errors import AdaptError, nearest
from adapt.common.shown import brief

S = TypeVar("S", bound=BaseModel)


class StrictModel(BaseModel):
    """The base class of settings: unknown keys, NaN and infinities are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def explain(model: type[BaseModel], error: ValidationError, where: str, listed_by: str = "") -> str:
    """Return a message of one line about the first problem in `error`, with the key, its value and what was expected.

    For an unknown key, the message suggests the nearest valid key, or else `listed_by`, such as a command. Of the kinds
    that a value may be, such as a number or a list, the one is explained that comes furthest.
    """
    problems = error.errors(include_url=False)  # once, as there may be one for each value of a long list
    alike = [each for each in problems if each["loc"][:1] == problems[0]["loc"][:1]]
    problem = max(alike, key=lambda each: len(each["loc"]))
    path, owner = _locate(model, problem["loc"])
    key = ".".join(path) or "its settings"
    if problem["type"] == "extra_forbidden":
        fields = owner.model_fields if issubclass(owner, BaseModel) else {}
        described = {(field.description or name).lower(): name for name, field in fields.items()}
        meant = get_close_matches(f"the {path[-1].replace('_', ' ')}.", described, n=1, cutoff=0.8)  # as learning_rate
        word = described[meant[0]] if meant else path[-1]
        return f"{where}: unknown key {key!r}; {nearest(word, _keys(owner), listed_by)}"
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], int):  # of a fixed number of values
        count = 1 + max(int(each["loc"][-1]) for each in problems if each["loc"][:-1] == problem["loc"][:-1])
        field = owner.model_fields.get(path[-1]) if issubclass(owner, BaseModel) else None
        about = f" ({field.description})" if field and field.description else ""
        return f"{where}: {key} is {brief(problem['input'])}: expected {count} values{about}"
    if problem["type"] == "missing":
        return f"{where}: the key {key!r} is missing"
    value = problem["input"]
    given = "" if isinstance(value, dict | BaseModel) else f" is {brief(value)}"
    return f"{where}: {key}{given}: {problem['msg'].removeprefix('Value error, ')}"


def _locate(model: type, location: tuple[int | str, ...]) -> tuple[list[str], type]:
    """Return the keys that lead to the value at pydantic's `location`, and the model or TypedDict of the last key."""
    path: list[str] = []
    for part in location:
        path.append(str(part))
        if isinstance(part, int) and len(path) < len(location):  # one of a list, whose kind is that of all
            continue
        annotation = _keys(model).get(str(part))
        inner = [choice for choice in (annotation, *get_args(annotation)) if _keys(choice)]
        if not inner or len(path) == len(location):
            break
        model = inner[0]
    rest = location[len(path) :]
    if len(rest) > 1 and isinstance(rest[0], int):  # a key of something in a list of several kinds
        return [*map(str, location)], object
    return path, model


def _keys(kind: object) -> dict[str, object]:
    """Return a dictionary from the keys of a pydantic model or TypedDict to their types, empty for any other type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return get_type_hints(kind) if is_typeddict(kind) else {}


def parsed(model: type[S], source: Path | str, where: str, most: int | None = None) -> S:
    """Return `model` with the values in the strict JSON of a file or text, with at most `most` values in a list.

    Raises AdaptError, which begins with `where`, if it cannot be read or has other values.
    """
    try:
        content = plain.parse(source.read_bytes() if isinstance(source, Path) else source, most)
        return model.model_validate_json(plain.dump(content))
    except ValidationError as error:
        raise AdaptError(explain(model, error, where)) from None
    except (OSError, ValueError) as error:
        raise AdaptError(f"{where}: {error}") from error


def with_changes(settings: S, changes: Mapping[str, object]) -> S:
    """Return settings at use with some `changes` by name. Raises AdaptError for an unknown name and a wrong value."""
    kind = type(settings)
    try:
        return kind.model_validate(settings.model_dump() | dict(changes))
    except ValidationError as error:
        raise AdaptError(explain(kind, error, "the settings at use")) from None
