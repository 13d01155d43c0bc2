"""CoCoOp, MaPLe and independent prompts against the published implementations: logits, loss and every gradient."""

from __future__ import annotations

from typing import Any

import published
import pytest
from published import LIBRARIES, TOLERANCE
from selection import by_turns

import adapt
from adapt import methods
from adapt.methods.base import total

CASES: dict[str, tuple[type[methods.Method], tuple[str, ...]]] = {
    "cocoop4": (methods.CoCoOp, ("n_ctx", "ctx_init")),
    "maple2_d3": (methods.MaPLe, ("n_ctx", "depth", "ctx_init")),
    "maple8_d2": (methods.MaPLe, ("n_ctx", "depth", "ctx_init")),
    "ivlp_2_3": (methods.IVLP, ("n_ctx_text", "n_ctx_vision", "depth_text", "depth_vision", "ctx_init")),
}


@pytest.mark.parametrize("name", CASES)
@by_turns("library", LIBRARIES)
@by_turns("options", [{"fast": True}, {"fast": False}, {"fast": False, "checkpointing": True}], ids=str)
def test_logits_loss_and_gradients(name: str, library: str, options: dict[str, Any]) -> None:
    settings, expected = published.case(name)
    cls, keys = CASES[name]
    method = cls(**{key: settings[key] for key in keys})
    model = adapt.wrap(published.backbone(library), method, settings["names"], **options)
    method.load_state_dict(expected.under("param."))

    step = model.step(expected["images"], expected["labels"])
    loss = total(model.losses(step)[0])
    method.backward({"loss": loss})
    expected.scaled("logits", step.logits)
    expected.scaled("logits", model(expected["images"]))
    expected.scaled("loss", loss, within=TOLERANCE * max(1, float(expected["logits"].abs().max())))
    for key, parameter in method.named_parameters():
        expected.relative(f"grad.{key}", parameter.grad)
