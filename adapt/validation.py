"""One-line explanations of what pydantic refuses."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from adapt.errors import nearest


def explain(model: type[BaseModel], error: ValidationError, where: str) -> str:
    """The first problem: the path of the key, its value, what was expected, and the nearest valid key."""
    problem = error.errors()[0]
    path = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(path) or "its keys"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}; {nearest(path[-1], _owner(model, path[:-1]).model_fields)}"
    if problem["type"] == "missing":
        return f"{where}: the key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    shown = "" if isinstance(value, dict | BaseModel) else f" is {value!r}"
    return f"{where}: {key}{shown}: {message}"


def _owner(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model whose keys stand under `path`."""
    for part in path:
        annotation: Any = model.model_fields[part].annotation
        choices = [annotation, *get_args(annotation)]
        model = next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel))
    return model
