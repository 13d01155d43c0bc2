"""What a user's type checker makes of the public names: each has a type, and a misspelt one is an error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adapt

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[1]
_ANY = "AdaptedModel | VisionModel | AnsweringModel | SpeakingModel | ChatModel"
_GIVES = {
    'adapt.load_backbone("mini-clip")': "DualEncoder",
    'adapt.load_backbone("mini-vilt")': "FusionEncoder",
    'adapt.load_backbone("mini-clip+mini-lm")': "VisionLLM",
    'adapt.load_backbone("mini-vlm")': "NativeVLM",
    "adapt.load_backbone(name)": "Backbone",
    "adapt.Backbone.from_transformers(module, processor)": "Backbone",
    "adapt.split_attention(module)": "Module",
    "adapt.wrap(clip, adapt.methods.CoOp(), names)": "AdaptedModel",
    "adapt.wrap(vilt, adapt.methods.LoRA(), names)": "AnsweringModel",
    "adapt.wrap(llm, adapt.methods.VLoRA())": "SpeakingModel",
    "adapt.wrap(vlm, adapt.methods.LoRA())": "ChatModel",
    "adapt.load(name, vlm)": "ChatModel",
    "adapt.wrap(any_one, adapt.methods.LoRA(), names)": _ANY,
    "adapt.load(name)": _ANY,
    "adapt.load(name, clip)": "AdaptedModel",
    "adapt.load(name, llm)": "SpeakingModel",
    "adapt.load_many([name])": f"list[{_ANY}]",
    "adapt.load(name).predict(name)[0].class_name": "str",
    "adapt.predict_many(adapt.load_many([name]), name)": "list[tuple[Prediction, ...]]",
    "adapt.load(name)(image)": "Tensor",
    "adapt.fit(adapt.load(name), adapt.data.load(name).train, epochs=1)": "Result",
    "adapt.recommend(name)": "Recommendation",
    "adapt.data.load(name)": "Split",
    "adapt.methods.find(name)": "type[Method[Any]]",
}
_MISSPELT = (
    "adapt.lode(name)", "adapt.data.lode(name)", "adapt.methods.Cop()", "from adapt import wrapp",
    "from adapt.data import Splitt", "adapt.load(name).predikt(name)",
    'adapt.fit(adapt.load(name), [], epochs="three")', "adapt.fit(adapt.load(name), [], epoch=3)",
)  # fmt: skip
_BEFORE = """from typing import Any

import adapt
from torch import Tensor, nn

processor: Any = None
name, names = "a", ["a", "b"]
clip = adapt.load_backbone("mini-clip")
vilt = adapt.load_backbone("mini-vilt")
llm = adapt.load_backbone("mini-clip+mini-lm")
vlm = adapt.load_backbone("mini-vlm")
any_one = adapt.load_backbone(name)
module, image = nn.Identity(), Tensor()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of each line of a program of a user's."""
    program = tmp_path_factory.mktemp("user") / "program.py"
    revealed = [*_GIVES, *(f"adapt.{name}" for name in adapt.__all__)]
    lines = [*_BEFORE.splitlines(), *(f"reveal_type({each})" for each in revealed), *_MISSPELT]
    program.write_text("\n".join(lines) + "\n")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", program, "--config-file", "setup.cfg", "--no-pretty"],
        cwd=ROOT,  # where the cache of `make lint` is
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert checked.stderr == ""
    said: dict[str, list[str]] = {line: [] for line in lines}
    for number, message in re.findall(r"program\.py:(\d+): (.*)", checked.stdout):
        said[lines[int(number) - 1]].append(message)
    return said


@pytest.mark.parametrize(("call", "kind"), _GIVES.items())
def test_what_is_given_has_its_kind(told: dict[str, list[str]], call: str, kind: str) -> None:
    [message] = told[f"reveal_type({call})"]
    assert re.sub(r"(\w+\.)+", "", message) == f'note: Revealed type is "{kind}"'


@pytest.mark.parametrize("name", adapt.__all__)
def test_every_name_is_known(told: dict[str, list[str]], name: str) -> None:
    """Functions give something that is known."""
    message = told[f"reveal_type(adapt.{name})"][0]
    assert message.startswith("note: Revealed type is ")
    assert '"Any"' not in message
    assert "-> Any" not in message


@pytest.mark.parametrize("line", _MISSPELT)
def test_a_misspelt_name_is_an_error(told: dict[str, list[str]], line: str) -> None:
    message, *notes = told[line]
    assert message.startswith("error: ")
    assert all(note.startswith("note: ") for note in notes)


def test_a_right_line_is_none(told: dict[str, list[str]]) -> None:
    assert [told[line] for line in _BEFORE.splitlines() if told[line]] == []
