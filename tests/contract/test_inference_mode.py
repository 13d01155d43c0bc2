"""What is built, loaded or moved under inference mode trains afterwards as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_backbones
import torch
from cases import NAMES, TRAINED_BY_STEPS, new
from checks import gradient, loss_of, relative
from selection import by_turns
from torch import Tensor, nn
from transformers import CLIPModel

import adapt
from adapt import AdaptError, Backbone


@by_turns("kind", ["open_clip", "hf_clip"])
@by_turns("method", TRAINED_BY_STEPS, take=10)
def test_wrapped_and_moved(method: str, kind: str, images: Tensor, labels: Tensor) -> None:
    backbone = tiny_backbones.backbone(kind)
    with torch.inference_mode():
        model = adapt.wrap(backbone, new(method), NAMES).eval()
        model(images)
        model.to(torch.float64)
    loss_of(model, images.double(), labels).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.method.parameters() if parameter.requires_grad)
    assert not any(tensor.is_inference() for tensor in [*model.parameters(), *backbone.model.parameters()])
    assert all(tensor.dtype == torch.float64 for tensor in model.parameters())


def test_loaded(model_folder: Path, tmp_path: Path, images: Tensor, labels: Tensor) -> None:
    path = adapt.wrap(adapt.load_backbone(str(model_folder)), new("coop"), NAMES).save(tmp_path / "a.safetensors")
    with torch.inference_mode():
        model = adapt.load(path)
        other = model.with_classes(NAMES)
    expected = gradient(adapt.load(path), images, labels)
    assert relative(gradient(model, images, labels), expected) < 1e-6
    assert relative(gradient(other, images, labels), expected) < 1e-6


def test_gradients_stay_off_where_they_are() -> None:
    with torch.no_grad():
        model = adapt.wrap(tiny_backbones.backbone("open_clip"), new("coop"), NAMES)
        assert not torch.is_grad_enabled()
    assert all(parameter.requires_grad for parameter in model.method.parameters())


def test_what_to_call_for_a_model_of_a_library() -> None:
    model = tiny_backbones.hf_clip_model()
    assert isinstance(model, CLIPModel)
    with pytest.raises(AdaptError, match=r"wrap got a CLIPModel; expected a backbone: call .*from_transformers"):
        adapt.wrap(model, new("coop"), NAMES)
    with pytest.raises(AdaptError, match="wrap got the name 'mini-clip'; expected a backbone"):
        adapt.wrap("mini-clip", new("coop"), NAMES)
    with pytest.raises(AdaptError, match=r"wrap got the class CoOp as method; expected an object"):
        adapt.wrap(tiny_backbones.backbone("open_clip"), adapt.methods.CoOp, NAMES)
    with pytest.raises(AdaptError, match="no processor for the CLIPModel, but needs tokenizer and image"):
        Backbone.from_transformers(model, None)
    with pytest.raises(AdaptError, match=r"got a CLIPTokenizer.* but needs tokenizer and image_processor"):
        Backbone.from_transformers(model, tiny_backbones.hf_clip_tokenizer())
    with pytest.raises(AdaptError, match=r"the tokenizer is None; expected the result of open_clip.get_tokenizer"):
        Backbone.from_open_clip(tiny_backbones.native_clip(), None)
    with pytest.raises(AdaptError, match="got a Linear; expected a model of type"):
        Backbone.from_transformers(nn.Linear(1, 1), None)
