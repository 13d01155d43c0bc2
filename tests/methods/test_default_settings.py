"""What each method has where settings are left out, and their bounds: papers' numbers, changed on purpose alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapt import methods

STORED: dict[str, Any] = json.loads((Path(__file__).parent / "default_settings.json").read_text(encoding="utf-8"))
PLAIN = ("svlc", "modx", "clippings", "vl2v_sd")
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
    assert sorted(STORED) == methods.names()


@pytest.mark.parametrize("name", sorted(STORED))
def test_settings_that_are_left_out(name: str) -> None:
    assert settings_of(name) == STORED[name]


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
