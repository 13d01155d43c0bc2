"""CoCoOp, MaPLe and independent prompts against the published implementations: logits, loss and every gradient."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch.nn.functional as F
from checks import relative, scaled
from published import GRADIENT_TOLERANCE, LIBRARIES, TOLERANCE

import adapt
from adapt import methods

CASES: dict[str, tuple[type[methods.Method], tuple[str, ...]]] = {
    "cocoop4": (methods.CoCoOp, ("n_ctx", "ctx_init")),
    "maple2_d3": (methods.MaPLe, ("n_ctx", "depth", "ctx_init")),
    "maple8_d2": (methods.MaPLe, ("n_ctx", "depth", "ctx_init")),
    "ivlp_2_3": (methods.IVLP, ("n_ctx_text", "n_ctx_vision", "depth_text", "depth_vision", "ctx_init")),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("options", [{"fast": True}, {"fast": False}, {"fast": False, "checkpointing": True}], ids=str)
def test_logits_loss_and_gradients(name: str, library: str, options: dict[str, Any]) -> None:
    settings, expected = published.case(name)
    cls, keys = CASES[name]
    method = cls(**{key: settings[key] for key in keys})
    model = adapt.wrap(published.backbone(library), method, settings["names"], **options)
    method.load_state_dict({key.removeprefix("param."): x for key, x in expected.items() if key.startswith("param.")})

    logits = model(expected["images"])
    loss = F.cross_entropy(logits, expected["labels"])
    loss.backward()
    assert scaled(logits, expected["logits"]) < TOLERANCE
    assert abs(loss.item() - expected["loss"].item()) < TOLERANCE * max(1, float(expected["logits"].abs().max()))
    gradients = {key: parameter.grad for key, parameter in method.named_parameters()}
    assert {f"grad.{key}" for key in gradients} == {key for key in expected if key.startswith("grad.")}
    assert max(relative(grad, expected[f"grad.{key}"]) for key, grad in gradients.items()) < GRADIENT_TOLERANCE
