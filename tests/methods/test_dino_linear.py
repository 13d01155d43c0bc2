"""DINOv2's linear evaluation: what its classifiers read, and which of them is left."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny_vision
import torch
import torch.nn.functional as F
from checks import numbers, perturb, scaled
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.data import Item, Split, load, open_image
from adapt.methods.base.class_loss import ClassLoss
from adapt.training.result import Result

BLOCKS, RATES = (1, 2), (1e-3, 0.1)


@cache
def backbone() -> Any:
    return adapt.load_backbone("vision:mini-clip")


@pytest.fixture(scope="module")
def split() -> Split:
    """Two training and two validation images of each of four classes."""
    return load("emoji").few_shot(2, 1).only("1/6")


def fitted(split: Split, *, lr: float = 1.0, **settings: Any) -> tuple[Any, Result]:
    own, method = backbone(), methods.DINOLinear(**{"blocks": BLOCKS, "rates": RATES} | settings)
    torch.manual_seed(0)
    model = adapt.wrap(own, method, split.class_names)
    rest: dict[str, Any] = {"batch_size": 4, "augment": "none", "warmup_epochs": 0, "weight_decay": 0.0, "workers": 0}
    return model, adapt.fit(model, split.train, val_set=split.val, epochs=2, lr=lr, **rest)


def pixels(items: tuple[Item, ...]) -> Tensor:
    transform = backbone().transform(train=False)
    return torch.stack([transform(open_image(item)) for item in items])


def accuracies(model: Any, split: Split) -> list[float]:
    """Those of all classifiers on the validation images, one by one."""
    labels = torch.tensor(numbers(split.val, split.class_names))
    with torch.no_grad():
        every = model.method.every(model.method.inputs(model.step(pixels(split.val))))
    return [int((logits.argmax(-1) == labels).sum()) / len(labels) for logits in every]


def test_the_classifier_that_is_best_on_validation_images_is_left(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(methods.DINOLinear, "finish", lambda method, training: None)
        every, _ = fitted(split)
    model, result = fitted(split)
    found = accuracies(every, split)
    best = found.index(max(found))
    assert (len(found), best > 0, min(found) < max(found)) == (8, True, True)
    blocks, patches, rate = list(product(BLOCKS, (False, True), RATES))[best]
    config = model.method.config
    assert (config.blocks, config.patches, config.rates) == ((blocks,), (patches,), (rate,))
    settings = {"blocks": [blocks], "patches": [patches], "rates": [rate]}
    assert result.metrics["chosen"] == {"settings": settings, "accuracy": max(found), "classifiers": 8}
    assert result.metrics["val"]["accuracy"] == max(found)
    place, row = divmod(best, len(RATES))
    kept, whole = model.method.state_dict(), every.method.state_dict()
    assert kept.keys() == {"heads.0.weight", "heads.0.bias"}
    for name in ("weight", "bias"):
        assert torch.equal(kept[f"heads.0.{name}"][0], whole[f"heads.{place}.{name}"][row])


def test_an_adapter_holds_the_classifier_that_is_left(split: Split, tmp_path: Path) -> None:
    model, _ = fitted(split)
    loaded = adapt.load(model.save(tmp_path / "adapter.safetensors"), backbone())
    assert loaded.method.config == model.method.config
    images = pixels(split.test[:5])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), model.eval()(images))


def test_the_choice_needs_validation_images(split: Split) -> None:
    alone = Split(split.name, split.class_names, split.train, (), split.test)
    with pytest.raises(AdaptError, match="dino_linear chooses rates on validation images, but there are no validation"):
        fitted(alone)
    one, result = fitted(alone, blocks=(1,), patches=(False,), rates=(0.1,))  # between which there is no choice
    assert "chosen" not in result.metrics
    assert one.method.state_dict()["heads.0.weight"].shape == (1, 4, 192)


def test_a_rate_is_a_factor_of_the_training_rate(split: Split) -> None:
    one: dict[str, Any] = {"blocks": (1,), "patches": (False,)}
    [slow], [same], [fast] = (
        fitted(split, lr=lr, rates=(rate,), **one)[0].method.heads for lr, rate in ((0.5, 0.2), (0.1, 1.0), (0.5, 1.0))
    )
    assert scaled(slow.weight, same.weight) < 1e-6
    assert scaled(fast.weight, same.weight) > 1e-2


def test_each_classifier_weighs_the_classes(split: Split) -> None:
    model: Any = perturb(adapt.wrap(backbone(), methods.DINOLinear(blocks=BLOCKS, rates=RATES), split.class_names))
    step = model.step(pixels(split.train), torch.tensor(numbers(split.train, split.class_names)))
    model.class_loss = ClassLoss(weights=torch.tensor([9.0, 1.0, 0.5, 0.1]))
    assert model.class_loss.weights is not None
    weights = model.class_loss.weights[step.labels]
    with torch.no_grad():
        expected = 0.0
        for logits in model.method.every(model.method.inputs(step)):
            expected += float((F.cross_entropy(logits, step.labels, reduction="none") * weights).sum() / weights.sum())
        assert float(model.method.loss(step)["cross_entropy"]) == pytest.approx(expected, rel=1e-5)


def test_classifiers_read_last_blocks_behind_the_last_norm_and_patches_without_registers() -> None:
    library, own = tiny_vision.model("dinov2_with_registers"), tiny_vision.backbone("dinov2_with_registers")
    images = torch.randn(3, 3, tiny_vision.SIZE, tiny_vision.SIZE)
    with torch.no_grad():
        hidden = library(pixel_values=images, output_hidden_states=True).hidden_states
        first, last = (library.layernorm(each) for each in hidden[-2:])
    mean = last[:, 1 + 2 :].mean(1)
    expected = [
        last[:, 0],
        torch.cat([last[:, 0], mean], -1),
        torch.cat([first[:, 0], last[:, 0]], -1),
        torch.cat([first[:, 0], last[:, 0], mean], -1),
    ]
    model: Any = adapt.wrap(own, methods.DINOLinear(blocks=(1, 2)), ["one", "another"])
    inputs = model.method.inputs(model.step(images))
    assert [tuple(each.shape) for each in inputs] == [(3, 32), (3, 64), (3, 64), (3, 96)]
    for each, right in zip(inputs, expected, strict=True):
        assert scaled(each, right) < 1e-5


def test_classifiers_start_small_and_different() -> None:
    model: Any = adapt.wrap(backbone(), methods.DINOLinear(blocks=(1, 4), rates=RATES), ["one", "another", "third"])
    weights = [heads.weight for heads in model.method.heads]
    assert [tuple(each.shape) for each in weights] == [(2, 3, 192 * times) for times in (1, 2, 4, 5)]
    for weight in weights:
        assert 0.009 < float(weight.detach().std()) < 0.011
        assert not torch.equal(weight[0], weight[1])
    assert not any(heads.bias.any() for heads in model.method.heads)


@pytest.mark.parametrize(
    ("where", "settings", "message"),
    [
        (backbone, {"blocks": (1, 7)}, "dino_linear: blocks has 7, but the vision tower has 6 blocks"),
        (
            lambda: tiny_vision.backbone("ijepa"),
            {"blocks": (1,)},
            "dino_linear reads a class token behind a last norm, and IJepaModel has none: use linear_probe",
        ),
    ],
)
def test_what_a_backbone_lacks_is_named(where: Any, settings: dict[str, Any], message: str) -> None:
    own: Backbone = where()
    with pytest.raises(AdaptError) as error:
        adapt.wrap(own, methods.DINOLinear(**settings), ["one", "another"])
    assert str(error.value) == message


@pytest.mark.parametrize("settings", [{"blocks": (0,)}, {"rates": (0.1, 0.0)}, {"rates": ()}, {"patches": ()}])
def test_settings_that_mean_no_classifier_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(AdaptError, match=r"^dino_linear: .*(greater than 0|at least 1 item)"):
        methods.DINOLinear(**settings)


def test_an_optimiser_that_undoes_the_rates_is_refused(split: Split) -> None:
    model = adapt.wrap(backbone(), methods.DINOLinear(rates=RATES), split.class_names)
    with pytest.raises(AdaptError, match=r"by scaling gradients, which adamw undoes: set train\.optimizer to sgd"):
        adapt.fit(model, split.train, val_set=split.val, epochs=1, lr=0.1, optimizer="adamw", progress=False)
