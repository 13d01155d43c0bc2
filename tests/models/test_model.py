"""The adapted model: class names, the cache of class features, prediction."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import loss_of, scaled
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

import adapt
from adapt import AdaptedModel, AdaptError, Backbone
from adapt.backbones.tower import Tower
from adapt.data import Split
from adapt.edits import Edit
from adapt.methods.base import Context

NAMES = ("goldfish", "red_panda", "sea cucumber")
CoOp, ZeroShot = adapt.methods.CoOp, adapt.methods.ZeroShot


@pytest.fixture
def model(open_clip: Backbone) -> AdaptedModel:
    return adapt.wrap(open_clip, CoOp(n_ctx=4), NAMES)


def test_class_names_may_be_an_array(open_clip: Backbone) -> None:
    assert adapt.wrap(open_clip, CoOp(n_ctx=4), np.array(NAMES)).class_names == NAMES


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "expected a list of at least one name"),
        ("dog", "expected a list of at least one name"),
        (["dog", " "], "class name ' ' is empty"),
        (["dog", 1], "class name 1 is not a text"),
        (["dog", "cat", "dog"], "class name 'dog' appears"),
    ],
)
def test_class_names_that_are_refused(names: Any, message: str, open_clip: Backbone, model: AdaptedModel) -> None:
    with pytest.raises(AdaptError, match=message):
        adapt.wrap(open_clip, CoOp(n_ctx=4), names)
    with pytest.raises(AdaptError, match=message):
        model.with_classes(names)


def test_a_method_belongs_to_one_model(open_clip: Backbone, model: AdaptedModel) -> None:
    with pytest.raises(AdaptError, match="already belongs to a model"):
        adapt.wrap(open_clip, model.method, NAMES)


@pytest.mark.parametrize(("fast", "path"), [(None, "fast"), (True, "fast"), (False, "plain")])
def test_the_text_path_follows_the_switch(fast: bool | None, path: str, open_clip: Backbone) -> None:
    assert adapt.wrap(open_clip, ZeroShot(), NAMES, fast).text_path == path
    assert adapt.wrap(open_clip, adapt.methods.LinearProbe(), NAMES, fast).text_path == "none"


def test_a_tower_whose_forward_differs_takes_the_plain_path(open_clip: Backbone) -> None:
    encode = open_clip.encode_text
    open_clip.encode_text = lambda ids: encode(ids).sin()
    assert adapt.wrap(open_clip, ZeroShot(), NAMES).text_path == "plain"
    with pytest.raises(AdaptError, match="differ from the library's own forward on two prompts"):
        adapt.wrap(open_clip, ZeroShot(), NAMES, fast=True)


def test_logits_are_scaled_cosines_plus_siglips_bias(hf_siglip: Backbone, images: Tensor) -> None:
    hf_siglip.model.logit_bias.data.fill_(-3.0)
    model = adapt.wrap(hf_siglip, ZeroShot(), NAMES)
    cosines = model.image_features(images) @ model.class_features().T
    assert scaled(model(images), hf_siglip.logit_scale * cosines - 3.0) < 1e-6


def test_class_features_are_computed_once_until_a_parameter_changes(
    model: AdaptedModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.eval()
    computed = []
    encode = model._texts._encoded
    monkeypatch.setattr(model._texts, "_encoded", lambda *args: computed.append(1) or encode(*args))
    with torch.no_grad():
        first = model.class_features()
        model.class_features().zero_()  # a caller's own copy
        assert torch.equal(model.class_features(), first)
        assert len(computed) == 1
    optimizer = torch.optim.AdamW(model.method.parameters(), lr=0.1)
    loss_of(model, images, torch.zeros(6, dtype=torch.long)).backward()
    optimizer.step()
    with torch.no_grad():
        second = model.class_features()
        assert not torch.equal(second, first)
        model.method.load_state_dict({"ctx": torch.zeros(4, 128)})
        assert not torch.equal(model.class_features(), second)


def halve(tensor: Tensor) -> None:
    tensor.data.mul_(0.5)  # which no version counts


CHANGES: dict[str, Callable[[AdaptedModel], object]] = {
    "a vector": lambda model: vector_to_parameters(torch.ones(512), model.method.parameters()),
    "a value in place": lambda model: halve(model.method.ctx),
    "a selection of a part": lambda model: model.method.parts["das"].select(["text.1"]),
    "a buffer": lambda model: model.method.shift.normal_(),
    "an attribute": lambda model: setattr(model.method, "times", 3.0),
    "the owner's weights": lambda model: halve(model.backbone.model.transformer.resblocks[1].mlp.c_fc.weight),
    "the owner's state": lambda model: model.backbone.model.load_state_dict(
        {name: value * 1.1 for name, value in model.backbone.model.state_dict().items()}
    ),
    "the owner's parameter": lambda model: setattr(
        model.backbone.model, "text_projection", nn.Parameter(torch.randn(128, 64))
    ),
}


class Shifted(CoOp):  # type: ignore[misc, valid-type]
    """CoOp whose prompts depend on a buffer and on a plain attribute."""

    name = "shifted"

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        super().build(backbone, class_names)
        self.register_buffer("shift", torch.zeros(4, 128))
        self.times = 1.0

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        return [replace(edit, values=self.times * edit.values + self.shift) for edit in super().edits(tower, context)]


@pytest.mark.parametrize("fast", [None, False])
@pytest.mark.parametrize("change", CHANGES)
def test_class_features_follow_whatever_they_depend_on(change: str, fast: bool | None, open_clip: Backbone) -> None:
    das = adapt.methods.DAS(skip=1, towers=("text",))  # which searches, and so may select
    method = adapt.methods.Compose([das, CoOp(n_ctx=4)]) if "part" in change else Shifted(n_ctx=4)
    model = adapt.wrap(open_clip, method, NAMES, fast).eval()
    with torch.no_grad():
        first = model.class_features()
        assert torch.equal(model.class_features(), first)
        CHANGES[change](model)
        second = model.class_features()
        assert scaled(second, first) > 1e-4
        assert scaled(second, model.with_classes(NAMES).class_features()) < 1e-6


@pytest.mark.parametrize("method", [ZeroShot, CoOp])
def test_class_features_are_of_the_precision_they_are_asked_in(method: Any, open_clip: Backbone) -> None:
    """Under autocast, and after it, as a model computes them that has computed none before."""

    def features(model: AdaptedModel, dtype: torch.dtype | None) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
            return model.class_features()

    torch.manual_seed(0)
    used = adapt.wrap(open_clip, method(), NAMES).eval()
    precisions = (None, torch.bfloat16, torch.float16, None)
    found = [features(used, dtype) for dtype in precisions]
    for each, dtype in zip(found, precisions):
        torch.manual_seed(0)
        assert torch.equal(each, features(adapt.wrap(open_clip, method(), NAMES).eval(), dtype))
    assert scaled(found[1].float(), found[0]) > 1e-4
    assert not torch.equal(found[1].float(), found[2].float())


def test_gradients_flow_in_eval_mode_after_a_cached_call(model: AdaptedModel) -> None:
    model.eval()
    with torch.inference_mode():
        model.class_features()
    assert model.class_features().requires_grad


def test_training_mode_leaves_the_backbone_in_eval_mode(model: AdaptedModel) -> None:
    model.train()
    assert not any(module.training for module in model.backbone.model.modules())


@pytest.mark.parametrize("source", ["paths", "pictures"])
def test_predict(source: str, model: AdaptedModel, tiny_split: Split) -> None:
    paths = [Path(item.path) for item in tiny_split.test]
    pictures = [Image.open(path) for path in paths] if source == "pictures" else paths
    predictions = model.predict(pictures, top_k=2, batch_size=4)
    transform = model.backbone.transform(train=False)
    logits = model(torch.stack([transform(Image.open(path).convert("RGB")) for path in paths]))
    probabilities, order = logits.softmax(-1).topk(2)
    assert [p.class_name for p in predictions] == [NAMES[i] for i in order[:, 0]]
    assert [[name for name, _ in p.top] for p in predictions] == [[NAMES[i] for i in row] for row in order.tolist()]
    found = torch.tensor([[probability for _, probability in p.top] for p in predictions])
    assert scaled(found, probabilities) < 1e-5
    assert model.training


def test_predict_takes_one_image_and_at_most_all_classes(model: AdaptedModel, tiny_split: Split) -> None:
    [prediction] = model.predict(tiny_split.test[0].path, top_k=10)
    assert sorted(name for name, _ in prediction.top) == sorted(NAMES)
    assert sum(probability for _, probability in prediction.top) == pytest.approx(1, abs=1e-5)


def test_predict_names_an_unreadable_image(model: AdaptedModel, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(AdaptError, match=r"broken\.png"):
        model.predict([broken])
    assert model.training


ALIKE = [("Red Panda", "red_panda"), ("Apple", "apple"), ("sea  cucumber", "sea cucumber"), ("cafe\u0301", "caf\u00e9")]


@pytest.mark.parametrize("pair", ALIKE, ids=str)
@pytest.mark.parametrize("method", ["zero_shot", "coop", "cocoop", "lora"])
def test_names_that_read_the_same(method: str, pair: tuple[str, str], open_clip: Backbone) -> None:
    new = adapt.methods.find(method)
    said = f"class names {pair[0]!r} and {pair[1]!r} have the same tokens: rename one of them"
    with pytest.raises(AdaptError, match=re.escape(said)):
        adapt.wrap(open_clip, new(), ["goldfish", *pair])
    model = adapt.wrap(open_clip, new(), ["goldfish", pair[0]])
    with pytest.raises(AdaptError, match=re.escape(said)):
        model.with_classes(["toy", *pair])


@pytest.mark.parametrize("method", ["zero_shot", "coop"])
def test_an_underscore_at_the_end_tells_classes_apart(method: str, open_clip: Backbone) -> None:
    """As of ImageNet, which has two classes "missile"; their features are the same, as published."""
    model = adapt.wrap(open_clip, adapt.methods.find(method)(), ["missile", "goldfish", "missile_"])
    features = model.class_features()
    assert torch.allclose(features[0], features[2], atol=1e-6)
    assert not torch.allclose(features[0], features[1], atol=1e-2)


def test_names_that_a_tokenizer_of_its_own_reads_the_same(hf_siglip: Backbone) -> None:
    with pytest.raises(AdaptError, match=r"'md-80' and 'md80' have the same tokens"):
        adapt.wrap(hf_siglip, ZeroShot(), ["md-80", "md80"])
    assert adapt.wrap(hf_siglip, ZeroShot(), ["md 80", "md80"]).class_names == ("md 80", "md80")


def test_a_head_reads_no_names(open_clip: Backbone) -> None:
    assert adapt.wrap(open_clip, adapt.methods.LinearProbe(), ["Apple", "apple"]).class_names == ("Apple", "apple")


@pytest.mark.parametrize("fast", [None, False])
def test_a_prompt_that_is_too_long_names_its_class(fast: bool | None, open_clip: Backbone) -> None:
    long = "red panda " * 40
    with pytest.raises(AdaptError, match=rf"the prompt of class '{long}' has 8\d tokens but the text tower reads 77"):
        adapt.wrap(open_clip, ZeroShot(), ["goldfish", long], fast=fast)


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "LoRA", "CLIPAdapter", "LDA"])
def test_a_method_is_the_same_whatever_torchs_default_type_is(name: str, open_clip: Backbone) -> None:
    built = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            built.append(adapt.wrap(open_clip, getattr(adapt.methods, name)(), NAMES).method.state_dict())
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(torch.float32)
    one, other = built
    assert all(other[key].dtype == value.dtype and torch.equal(other[key], value) for key, value in one.items())
    assert one


def test_what_a_model_says_of_itself(open_clip: Backbone) -> None:
    names = ["<cat>", "dog", *(f"toy {i}" for i in range(8))]
    model = adapt.wrap(open_clip, adapt.methods.CoOp(n_ctx=2), names)
    numbers = f"{2 * open_clip.tower('text').width} numbers train"
    classes = "classes (10): <cat>, dog, toy 0, toy 1, toy 2 and 5 more"
    assert repr(model) == f"AdaptedModel(coop on {open_clip.describe()}; {classes}; {numbers})"
    assert model._repr_html_() == f"<code>{repr(model).replace('<cat>', '&lt;cat&gt;')}</code>"
    model.unwrap()
    assert repr(model) == f"AdaptedModel(coop unwrapped; {classes}; {numbers})"
    assert "0 numbers train" in repr(adapt.wrap(open_clip, adapt.methods.ZeroShot(), names))
