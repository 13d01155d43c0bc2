"""Two encoders as one backbone, and CaFo, whose tables of their features the zero-shot answers weigh."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.data import Item, Split, load, open_image
from adapt.methods.cafo import fused

JOINED = "mini-clip&vision:mini-clip-half"


@cache
def backbone(name: str = JOINED) -> Any:
    return adapt.load_backbone(name)


@pytest.fixture(scope="module")
def split() -> Split:
    """Two training and two validation images of each of four classes."""
    return load("emoji").few_shot(2, 1).only("1/6")


def model_of(split: Split, method: Any, name: str = JOINED) -> Any:
    return adapt.wrap(backbone(name), method, split.class_names).eval()


def fitted(split: Split, *, train: bool = False, **settings: Any) -> Any:
    model = model_of(split, methods.CaFo(**{"views": 0, "train": train, "alpha": 1.0, "beta": 2.0} | settings))
    steps: dict[str, Any] = {"epochs": 1, "lr": 1e-3, "batch_size": 4, "warmup_epochs": 0, "workers": 0}
    result = adapt.fit(model, split.train, val_set=split.val, calibrate=False, **steps if train else {})
    assert len(result.history) == 2 * train
    return model.eval()


def pixels(items: tuple[Item, ...]) -> Tensor:
    transform = backbone().transform(train=False)
    return torch.stack([transform(open_image(item)) for item in items])


def answers(model: Any, items: tuple[Item, ...]) -> Tensor:
    with torch.no_grad():
        return model(pixels(items))


def test_zero_shot_answers_of_two_models_are_those_of_the_first(split: Split) -> None:
    both, first = (answers(model_of(split, methods.ZeroShot(), name), split.test[:6]) for name in (JOINED, "mini-clip"))
    assert both.shape == (6, 4)
    assert (both - first).abs().max() < 1e-4


def test_features_are_those_of_both_models_side_by_side(split: Split) -> None:
    images = pixels(split.test[:6])
    with torch.no_grad():
        own = [F.normalize(backbone("mini-clip").encode_image(images), dim=-1)]
        small = backbone("mini-clip-half")
        shown = torch.stack([small.transform(train=False)(open_image(item)) for item in split.test[:6]])
        own.append(F.normalize(small.encode_image(shown), dim=-1))
        features = backbone().encode_image(images)
    assert features.shape == (6, 256 + 128)
    assert backbone().embed_dim == 384
    assert scaled(features, torch.cat(own, dim=-1)) < 1e-5


def test_a_table_of_each_model_holds_the_training_images(split: Split) -> None:
    method = fitted(split).method
    features = backbone().encode_image(pixels(split.train)).detach()
    assert method.config.keys == 8
    assert method.labels.tolist() == [split.class_names.index(item.answer) for item in split.train]
    assert scaled(torch.cat([method.first, method.second], dim=-1), features) < 1e-5
    assert method.state_dict().keys() == {"labels", "first", "second"}
    assert [*method.parameters()] == []


@pytest.mark.parametrize("train", [False, True])
def test_an_adapter_holds_both_tables(split: Split, train: bool, tmp_path: Path) -> None:
    model = fitted(split, train=train, alpha=None, beta=None)
    loaded = adapt.load(model.save(tmp_path / "adapter.safetensors"), backbone())
    assert loaded.method.config == model.method.config
    assert None not in (model.method.config.alpha, model.method.config.beta)
    assert torch.equal(answers(loaded.eval(), split.test[:5]), answers(model, split.test[:5]))


def test_without_weight_the_answers_are_zero_shot(split: Split) -> None:
    plain = answers(model_of(split, methods.ZeroShot()), split.test[:6])
    found = [answers(fitted(split, alpha=alpha), split.test[:6]) for alpha in (0.0, 1.0)]
    assert scaled(found[0], plain) < 1e-6
    assert scaled(found[1], plain) > 1e-3


def test_keys_of_both_models_are_trained(split: Split) -> None:
    before, after = (dict(fitted(split, train=train).method.state_dict()) for train in (False, True))
    trained = model_of(split, methods.CaFo(train=True, keys=8)).method
    assert [name for name, _ in trained.named_parameters()] == ["first", "second"]
    assert torch.equal(before["labels"], after["labels"])
    for name in ("first", "second"):
        moved = (after[name] - before[name]).abs().max()
        assert 1e-5 < float(moved) < 0.1, f"{name} moved by {float(moved):.1e}"


def test_views_are_averaged_into_one_key_an_image(split: Split) -> None:
    method, features = model_of(split, methods.CaFo(views=3)).method, torch.randn(8, 3, 256 + 128)
    labels = torch.arange(8) % 4
    method.prepare(SimpleNamespace(features=lambda part, views, unit: features[:, :views], labels=lambda part: labels))
    assert scaled(method.first, F.normalize(features.mean(1)[:, :256], dim=-1)) < 1e-6
    assert scaled(method.second, F.normalize(features.mean(1)[:, 256:], dim=-1)) < 1e-6
    trained = fitted(split, views=3).method
    assert (trained.config.keys, tuple(trained.first.shape), tuple(trained.second.shape)) == (8, (8, 256), (8, 128))
    assert scaled(trained.first, fitted(split).method.first) > 1e-3


def test_the_cache_that_agrees_with_zero_shot_counts() -> None:
    zero_shot = torch.tensor([[4.0, 1.0, 0.0, 0.0]]).repeat(1, 10)
    like, unlike = 3 * zero_shot + 1, -zero_shot
    rows = (zero_shot - zero_shot.mean(-1, keepdim=True)) / zero_shot.std(-1, keepdim=True)
    assert scaled(fused(zero_shot, [like, unlike]), rows) < 1e-5
    assert scaled(fused(zero_shot, [unlike, like]), rows) < 1e-5
    assert scaled(fused(zero_shot, [unlike, unlike]), -rows) < 1e-5


def test_a_cache_that_says_the_same_of_all_classes_is_passed_over() -> None:
    """Logits stay finite, whichever of them has equal rows."""
    zero_shot, cache = torch.randn(3, 4), torch.rand(3, 4)
    constant = torch.full((3, 4), 0.25)
    for given in ([constant, cache], [cache, constant], [constant, constant]):
        assert fused(zero_shot, given).isfinite().all()
        assert fused(constant, given).isfinite().all()
    assert torch.equal(fused(zero_shot, [constant, constant]), torch.zeros(3, 4))


def test_equal_keys_give_finite_answers(split: Split) -> None:
    model = fitted(split)
    for name in ("first", "second"):
        setattr(model.method, name, torch.ones_like(getattr(model.method, name)))
    assert answers(model, split.test[:5]).isfinite().all()


@pytest.mark.parametrize("name", ["mini-clip", "mini-clip-half"])
def test_one_model_alone_is_refused(name: str, split: Split) -> None:
    with pytest.raises(AdaptError) as error:
        model_of(split, methods.CaFo(), name)
    assert str(error.value) == (
        f"cafo needs a CLIP joined with a second encoder, but {name} is one model: name both, as in "
        "'mini-clip&hf:facebook/dinov2-small'"
    )


def test_two_vision_encoders_have_no_class_names(split: Split) -> None:
    name = "vision:mini-clip&vision:mini-clip-half"
    assert backbone(name).kind == "vision encoder"
    with pytest.raises(AdaptError, match=f"cafo .*{name}.* vision encoder"):
        model_of(split, methods.CaFo(), name)


@pytest.mark.parametrize("name", ["mini-clip&mini-lm", "mini-lm&mini-clip", "mini-clip&mini-vilt", "mini-clip&"])
def test_what_is_no_pair_of_image_encoders_is_refused(name: str) -> None:
    with pytest.raises(AdaptError, match=r"mini-lm is a language model|mini-vilt is a fusion encoder|'mini-clip&'"):
        adapt.load_backbone(name)
