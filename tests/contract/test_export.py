"""Every method of dual encoders as a graph by itself: the same logits in torch and in onnxruntime, or refused."""

from __future__ import annotations

from pathlib import Path

import cases
import onnx
import onnxruntime
import pytest
import tiny_backbones
import torch
from checks import assert_untouched, perturb, scaled, snapshot
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone
from adapt.formats.export import forms, tracing
from adapt.methods.base import ImageStep
from adapt.methods.base.traits import EncodesImages, OwnWeights, has_trait

REFUSED = {
    "cocoop": "this cocoop cannot be exported: its class features depend on the image",
    "ctp_tft": "this ctp_tft cannot be exported: its class features depend on the image",
    "tda": "this tda cannot be exported: its predictions depend on earlier images",
}
EXPORTED = tuple(name for name in cases.ALL if name not in REFUSED)


def check_forms(model: AdaptedModel, images: Tensor, folder: Path) -> None:
    """What the written files compute, each by its own library, is what `model` does."""
    before, state = snapshot(model.backbone.model), {**model.method.state_dict()}
    program = tracing.traced(model)
    assert_untouched(model.backbone.model, before)
    assert all(
        tensor is state[name] or torch.equal(tensor, state[name]) for name, tensor in model.method.state_dict().items()
    )
    read = [name for name in program.state_dict if name.startswith("backbone.")]
    assert read or any(has_trait(model.method, kind) for kind in (EncodesImages, OwnWeights))  # whose tower is its own
    assert [name for name in read if "text" in name or "token_embedding" in name] == []
    with torch.no_grad():
        outputs = tracing.outputs(ImageStep(model, images))
    forms.write_torch(program, folder, [*outputs])
    forms.write_onnx(program, folder, [*outputs])
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    whole = torch.export.load(folder / "model.pt2").module()
    with torch.no_grad():
        for count in (1, 2, 5):
            logits, by_torch = model(images[:count]), whole(images[:count])
            numbers = model.grades(logits)  # of regression, a second output
            expected = [logits] if numbers is None else [logits, numbers]
            expected += [model.logits_and_maps(images[:count])[1]] if model.draws_maps else []
            by_onnx = map(torch.from_numpy, session.run(None, {"images": images[:count].numpy()}))
            by_torch = [by_torch] if isinstance(by_torch, Tensor) else by_torch
            for own, one, other in zip(expected, by_onnx, by_torch, strict=True):
                assert scaled(one, own) < 1e-4
                assert scaled(other, own) < 1e-4


@by_turns("method", EXPORTED, one_in=12)
def test_the_graph_gives_the_models_own_logits(method: str, images: Tensor, tmp_path: Path) -> None:
    check_forms(cases.build(method, tiny_backbones.small()).eval(), images, tmp_path)


@pytest.mark.full
@by_turns("kind", cases.KINDS, one_in=6)
def test_on_every_kind_of_backbone(kind: str, images: Tensor, tmp_path: Path) -> None:
    method = "lora" if kind in tiny_backbones.WITH_VISION_BLOCKS else "tip_adapter"
    check_forms(cases.build(method, tiny_backbones.backbone(kind)).eval(), images, tmp_path)


@pytest.mark.full
def test_two_stages(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    model = perturb(adapt.wrap(open_clip, adapt.methods.find("two_stage")(), cases.NAMES)).eval()
    check_forms(model, images, tmp_path)


@pytest.mark.parametrize("method", REFUSED)
def test_what_no_graph_gives_is_refused(method: str, open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=REFUSED[method]):
        tracing.traced(cases.build(method, open_clip))
