"""What each method has where settings are left out, and their bounds: papers' numbers, changed on purpose alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapt import methods
from adapt.methods.base import Method
from adapt.methods.base.traits import Trait

STORED: dict[str, Any] = json.loads((Path(__file__).parent / "default_settings.json").read_text(encoding="utf-8"))
PLAIN = ("svlc", "modx", "clippings", "gpt4image", "vl2v_sd")
FLAGS = (
    "needs_every_class",
    "begins_anew",
    "tasks",
    "learns_any_step",
    "weighs_classes",
    "reads",
)
TRAIT_FLAGS = ("prompt_average", "at_answer")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "enum")


def settings_of(name: str) -> dict[str, Any]:
    """The default of each setting, and what is said of its values."""
    found = {}
    for key, said in methods.find(name).Config.model_json_schema()["properties"].items():
        kinds = [said, *said.get("anyOf", ())]
        bounds = {bound: kind[bound] for kind in kinds for bound in BOUNDS if bound in kind}
        found[key] = {"default": said.get("default", "none")} | bounds
    return found


def test_each_method_is_there() -> None:
    assert sorted(STORED) == sorted(methods._listing.files())  # others may have been registered


def flags_of(name: str) -> dict[str, Any]:
    """What a method's class says of it, where that is other than of most."""
    found = {flag: _plain(getattr(methods.find(name), flag)) for flag in FLAGS}
    flags = {flag: value for flag, value in found.items() if value != _plain(getattr(Method, flag))}
    of_traits = {flag: _plain(value) for flag in TRAIT_FLAGS if (value := getattr(methods.find(name), flag, None))}
    traits = sorted(kind.__name__ for kind in methods.find(name).__mro__ if _is_trait(kind))
    return flags | of_traits | ({"traits": traits} if traits else {})


def _is_trait(kind: type) -> bool:
    return issubclass(kind, Trait) and kind is not Trait and not issubclass(kind, Method)


def _plain(value: Any) -> Any:
    if isinstance(value, property):
        return "by its settings"
    return sorted(value) if isinstance(value, frozenset) else value


@pytest.mark.parametrize("name", sorted(STORED))
def test_what_the_class_says(name: str) -> None:
    assert flags_of(name) == STORED[name]["class"]


@pytest.mark.parametrize("name", sorted(STORED))
def test_settings_that_are_left_out(name: str) -> None:
    assert settings_of(name) == {key: value for key, value in STORED[name].items() if key != "class"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora", (2, 1.0, 0.25, None)),
        *((name, (4, 1.0, 0.0, True)) for name in PLAIN),
    ],
)
def test_what_lora_has_where_it_is_left_out(name: str, expected: tuple[Any, ...]) -> None:
    config = methods.find(name)().config
    assert (config.rank, config.alpha, config.dropout, config.input_gradient) == expected
