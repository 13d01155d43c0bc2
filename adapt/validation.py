"""One-line explanations of what pydantic refuses."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from adapt.errors import nearest
from adapt.shown import brief


def explain(model: type[BaseModel], error: ValidationError, where: str, listed_by: str = "") -> str:
    """The first problem: the path of the key, its value, what was expected, and the nearest valid key.

    `listed_by` is named as what lists the keys, where none is near.
    """
    problem = error.errors()[0]
    path, owner = _locate(model, problem["loc"])
    key = ".".join(path) or "its settings"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}; {nearest(path[-1], owner.model_fields, listed_by)}"
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], int):  # of a fixed number of values
        count = 1 + max(int(each["loc"][-1]) for each in error.errors() if each["loc"][:-1] == problem["loc"][:-1])
        about = owner.model_fields[path[-1]].description if path[-1] in owner.model_fields else None
        told = f" ({about})" if about else ""
        return f"{where}: {key} is {brief(problem['input'])}: expected {count} values{told}"
    if problem["type"] == "missing":
        return f"{where}: the key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    found = "" if isinstance(value, dict | BaseModel) else f" is {brief(value)}"
    return f"{where}: {key}{found}: {message}"


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel]]:
    """The keys down to a value, without the positions and types inside it, and the model that owns the last key."""
    path: list[str] = []
    for part in map(str, location):
        path.append(part)
        annotation: Any = model.model_fields[part].annotation if part in model.model_fields else None
        choices = [annotation, *get_args(annotation)]
        inner = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]
        if not inner or len(path) == len(location):
            break
        model = inner[0]
    return path, model
