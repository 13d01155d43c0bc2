"""Items of several images: what methods learn of them, how they are answered, and which methods refuse them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from selection import by_turns
from small_trainings import SETTINGS

import adapt
from adapt import AdaptedModel, AdaptError, methods
from adapt.data import Split
from adapt.data.bags import Bags, bag_mean, bag_softmax, singles
from adapt.data.item import Item
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.inference import Inference
from adapt.methods.base import Encoded
from adapt.models.features import item_features
from adapt.tasks.classes import Class
from adapt.training.start import start_from

_OTHERS = ("anovl", "cafo", "descriptions", "locality", "vladva", "zero_shot")  # of other models, data or settings
CLASSIFIERS = [
    name
    for name in methods.names()
    if name not in _OTHERS and "dual encoder" in methods.find(name).serves and "classes" in methods.find(name).tasks
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bags(tiny_split: Split) -> Split:
    """Two items of two images of each class for training, and one of two and one of one for the test."""

    def pairs(items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(replace(a, paths=(*a.paths, *b.paths)) for a, b in zip(items[::2], items[1::2], strict=True))

    test = pairs(tiny_split.test)
    return replace(
        tiny_split, train=pairs(tiny_split.train), val=pairs(tiny_split.val), test=(*test, tiny_split.test[0])
    )


def wrapped(name: str, split: Split, **settings: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(tiny_backbones.backbone("open_clip"), methods.find(name)(**settings), split.class_names)


def test_sums_and_softmax_of_bags() -> None:
    values, counts = torch.tensor([1.0, 3.0, 5.0, -200.0, 200.0]), torch.tensor([2, 1, 2])
    assert bag_mean(values, counts).tolist() == [2.0, 5.0, 0.0]
    expected = torch.cat([part.softmax(0) for part in values.split(counts.tolist())])
    assert torch.allclose(bag_softmax(values, counts), expected)
    assert torch.allclose(bag_softmax(values * 1e4, counts), torch.tensor([0.0, 1, 1, 0, 1]))


def test_features_of_a_bag_are_the_unit_mean_on_every_path(bags: Split) -> None:
    model = wrapped("zero_shot", bags)
    each = item_features(model, singles(bags.test), workers=0)
    expected = F.normalize(torch.stack([each[:2].mean(0), each[2:4].mean(0), each[4:6].mean(0), each[6]]), dim=-1)
    assert torch.allclose(item_features(model, bags.test, workers=0), expected, atol=1e-6)
    [decoded] = Inference(0, cache=False).steps(model, bags.test)
    assert isinstance(decoded.inputs, Bags)
    assert torch.allclose(decoded.features, expected, atol=1e-5)
    assert torch.allclose(decoded.frozen_features, expected, atol=1e-5)
    assert torch.allclose(decoded.logits, model.logits(expected), atol=1e-3)
    step = model.step(Encoded(each, counts=torch.tensor([2, 2, 2, 1])))
    assert torch.allclose(step.features, expected, atol=1e-6)
    views = item_features(model, bags.train, workers=0, views=2)
    own = item_features(model, singles(bags.train), workers=0, views=2)
    assert torch.allclose(views, F.normalize(own.unflatten(0, (-1, 2)).mean(1), dim=-1), atol=1e-6)


def test_a_tower_learns_from_the_features_of_items(bags: Split) -> None:
    model = wrapped("lora", bags, dropout=0.0)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    [step] = Inference(0, cache=False).steps(model, bags.train)
    model.losses(step)[0]["cross_entropy"].backward()
    ours = [parameter.grad.clone() for parameter in model.method.parameters()]
    model.method.zero_grad()
    features = model.image_features(step.inputs.images).unflatten(0, (-1, 2)).mean(1)
    logits = step.scale * F.normalize(features, dim=-1) @ model.class_features().T
    F.cross_entropy(logits, step.labels).backward()
    for own, parameter in zip(ours, model.method.parameters(), strict=True):
        assert torch.allclose(own, parameter.grad, atol=1e-5 * float(own.abs().max()) + 1e-8)


@by_turns("name", CLASSIFIERS, take=12)
def test_every_method_learns_items_or_says_that_it_reads_one_image(name: str, bags: Split) -> None:
    method = methods.find(name)
    normal = {"normal": bags.class_names[0]} if name == "patch_memory" else {}
    model = wrapped(name, bags, **method.example | normal)
    train: dict[str, Any] = SETTINGS if model.method.takes_steps else {}
    arguments: dict[str, Any] = {"val_set": bags.val, "progress": False, **train}
    if name == "gpt4image":
        described = tuple(replace(item, label=Class(item.answer, caption="a drawing")) for item in bags.train)
        bags = replace(bags, train=described)
    if model.method.reads or model.method.views:
        with pytest.raises(AdaptError, match=f"{name} reads one image of each item: train with pooling=logits"):
            adapt.fit(model, bags.train, bags.test, **arguments)
        arguments["pooling"] = "logits"
    result = adapt.fit(model, bags.train, bags.test, **arguments)
    assert result.metrics["adapted"]["images"] == len(bags.test)
    assert result.metrics["by_image"]["images"] == 7


def test_logits_of_an_item_are_the_mean_of_its_images(bags: Split, tmp_path: Path) -> None:
    model = wrapped("coop", bags, n_ctx=2)
    trained = {"progress": False, **SETTINGS}
    adapt.fit(model, bags.train, bags.test, pooling="logits", out=tmp_path / "run", **trained)
    inference = Inference(0)
    each = inference.all_logits(model, singles(bags.test))
    whole = inference.all_logits(model, bags.test)
    assert torch.allclose(whole[:3], each[:6].unflatten(0, (3, 2)).mean(1), atol=1e-5)
    assert torch.allclose(whole[3], each[6], atol=1e-5)
    same = wrapped("coop", bags, n_ctx=2)
    adapt.fit(same, singles(bags.train), **trained)  # each image is learned by itself
    for one, other in zip(same.method.parameters(), model.method.parameters(), strict=True):
        assert torch.equal(one, other)
    loaded = adapt.load(tmp_path / "run", backbone=model.backbone)
    assert loaded.answers.pooling == "logits"
    assert torch.equal(inference.all_logits(loaded, bags.test), whole)


@pytest.mark.parametrize("name", ["coop", "cocoop", "tda", "tip_adapter"])
@pytest.mark.parametrize("pooling", ["features", "logits"])
def test_every_kind_of_method_predicts_items_as_it_is_evaluated(name: str, pooling: Any, bags: Split) -> None:
    model = wrapped(name, bags, **({"keys": 6} if name == "tip_adapter" else {})).eval()
    model.answers = replace(model.answers, pooling=pooling)
    scores = evaluate(model, bags.test, workers=0)
    predictions = model.predict_items([item.paths for item in bags.test], batch_size=3)
    assert [each.probability for each in predictions] == pytest.approx(scores.confidence, abs=1e-3)


def test_an_unknown_pooling_is_refused(bags: Split) -> None:
    with pytest.raises(AdaptError, match=r"pooling is 'feature'.*features"):
        adapt.fit(wrapped("gda", bags), bags.train, progress=False, pooling="feature")  # type: ignore[arg-type]


@pytest.mark.full
@pytest.mark.parametrize("pooling", ["features", "logits"])
def test_predict_items_agrees_with_evaluation(pooling: Any, bags: Split) -> None:
    model = wrapped("lora", bags, dropout=0.0).eval()
    model.answers = replace(model.answers, pooling=pooling)
    scores = evaluate(model, bags.test, workers=0)
    predictions = model.predict_items([item.paths for item in bags.test], batch_size=3, features=True)
    assert [each.class_name for each in predictions] == list(scores.predicted)
    assert [each.probability for each in predictions] == pytest.approx(scores.confidence, abs=1e-4)
    paths = [path for item in bags.test for path in item.paths]
    alone = model.predict(paths, top_k=3)
    for prediction, first in zip(predictions, (0, 2, 4, 6), strict=True):
        own = [dict(each.top)[prediction.top[0][0]] for each in alone[first : first + 2]]
        assert [each.probability for each in prediction.images] == pytest.approx(
            own[: len(prediction.images)], abs=1e-4
        )
        assert sum(each.weight for each in prediction.images) == pytest.approx(1)


def test_attention_learns_which_images_count() -> None:
    """In each item, two of three images are noise that one direction of the features tells."""
    draw = torch.Generator().manual_seed(0)
    labels, counts = torch.arange(60) % 3, torch.full((60,), 3)
    tell = F.one_hot(torch.tensor(63), 64).float()
    centres = F.normalize(torch.randn(3, 64, generator=draw), dim=-1)
    noise = torch.randn(60, 3, 64, generator=draw)
    images = 0.5 * noise + 6 * tell
    place = torch.randint(0, 3, (60,), generator=draw)
    images[torch.arange(60), place] = 0.2 * noise[:, 0] + 2 * centres[labels]
    features = F.normalize(images.flatten(0, 1), dim=-1)
    backbone: Any = SimpleNamespace(embed_dim=64, device=torch.device("cpu"))
    for gated in (False, True):
        torch.manual_seed(0)
        method = methods.ABMIL(gated=gated, hidden=8)
        method.build(backbone, ())
        assert torch.allclose(method.pool_bags(features, counts), bag_mean(features, counts))  # begins as the mean
        optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
        for _ in range(60):
            pooled = F.normalize(method.pool_bags(features, counts), dim=-1)
            loss = F.cross_entropy(10 * pooled @ centres.T, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weights = method.weights(features, counts).unflatten(0, (60, 3))
        assert float(weights[torch.arange(60), place].detach().mean()) > 0.85


@pytest.mark.parametrize("gated", [False, True])
def test_abmil_trains_on_items_and_weighs_images(gated: bool, bags: Split, tmp_path: Path) -> None:
    model = wrapped("abmil", bags, gated=gated, hidden=4)
    start = {name: value.clone() for name, value in model.method.state_dict().items()}
    adapt.fit(model, bags.train, bags.test, out=tmp_path / "run", progress=False, **SETTINGS | {"lr": 0.1})
    for name, value in model.method.state_dict().items():
        assert not torch.equal(value, start[name]), name
    loaded = adapt.load(tmp_path / "run", backbone=model.backbone)
    [prediction] = loaded.predict_items([bags.test[0].paths])
    pictures = [adapt.data.open_image(path) for path in bags.test[0].paths]
    features = loaded.image_features(torch.stack([loaded.transform()(picture) for picture in pictures]))
    weights = loaded.method.weights(features, torch.tensor([2]))
    assert [each.weight for each in prediction.images] == pytest.approx(weights.tolist(), abs=1e-5)
    assert prediction.probability == pytest.approx(evaluate(loaded, bags.test, workers=0).confidence[0], abs=1e-4)
    decoded = evaluate(loaded, bags.test, workers=0, cache=False)
    assert decoded.confidence == pytest.approx(evaluate(loaded, bags.test, workers=0).confidence, abs=1e-4)


def seen_from(items: tuple[Item, ...], *names: str) -> tuple[Item, ...]:
    """Return items whose first image shows a thing from the first of the named views, and so on."""
    return tuple(replace(item, view_names=names[: len(item.paths)]) for item in items)


def test_images_of_a_view_share_its_weight() -> None:
    method = methods.ABMIL(by="view", view_names=("front", "side"), unknown_view="mean")
    method.build(SimpleNamespace(embed_dim=4, device=torch.device("cpu")), ())  # type: ignore[arg-type]
    features, counts = torch.randn(7, 4), torch.tensor([3, 2, 2])
    names = ("front", "front", "side", "side", "top", "top", "back")
    at_the_start = method.weights(features, counts, names).tolist()
    assert at_the_start == pytest.approx([1 / 4, 1 / 4, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2])
    with torch.no_grad():
        method.view_scores.copy_(torch.tensor([3.0, 1.0]).log())
    learned = method.weights(features, counts, names).tolist()
    assert learned == pytest.approx([3 / 8, 3 / 8, 1 / 4, 1 / 3, 2 / 3, 1 / 2, 1 / 2])  # unknown ones weigh 2


def test_weights_by_view_are_learned_kept_and_asked_for_by_name(bags: Split, tmp_path: Path) -> None:
    train, test = seen_from(bags.train, "front", "side"), seen_from(bags.test, "side", "front")
    model, settings = wrapped("abmil", bags, by="view"), SETTINGS | {"lr": 0.1, "optimizer": "adam"}
    with pytest.raises(AdaptError, match=r"abmil has no views to weigh by: train it, or set method.view_names"):
        model.predict_items([[("front", test[0].path)]])
    with pytest.raises(AdaptError, match=r"has the view 'sid', which no training image has; .*did you mean 'side'"):
        adapt.fit(model, train, seen_from(bags.test, "side", "sid"), progress=False, **settings)
    with pytest.raises(AdaptError, match=r"has no view, by which it is weighed: fill in the column view"):
        adapt.fit(model, bags.train, bags.test, progress=False, **settings)
    adapt.fit(model, train, test, out=tmp_path / "run", progress=False, **settings)
    loaded = adapt.load(tmp_path / "run", backbone=model.backbone)
    assert loaded.method.config.view_names == ("front", "side")
    assert float(loaded.method.view_scores.diff().abs()) > 0.01
    scores = evaluate(loaded, test, workers=0)
    assert evaluate(loaded, test, workers=0, cache=False).confidence == pytest.approx(scores.confidence, abs=1e-4)
    pairs = [[*zip(item.view_names, item.paths)] for item in test]
    predictions = loaded.predict_items(pairs)
    assert [each.probability for each in predictions] == pytest.approx(scores.confidence, abs=1e-4)
    side, front = (each.weight for each in predictions[0].images)
    assert torch.log(torch.tensor(side / front)) == pytest.approx(float(loaded.method.view_scores.diff()), abs=1e-4)
    for items in ([test[0].paths], [[("top", path) for path in test[0].paths]]):
        with pytest.raises(AdaptError, match=r"an image has (no view|the view 'top')"):
            loaded.predict_items(items)
    assert len(loaded.predict(test[0].paths)) == 2  # each by itself, whatever it shows
    again = wrapped("abmil", bags, by="view", view_names=("front", "side"))
    start_from(again, tmp_path / "run")
    adapt.fit(again, train, test, progress=False, **settings | {"lr": 1e-9})
    assert torch.allclose(again.method.view_scores, loaded.method.view_scores, atol=1e-6)
    for each in [("front", bags.test[0].path, "sharp"), (1, bags.test[0].path)]:
        with pytest.raises(AdaptError, match=r"item 0 has .* expected an image, or its view's name and an image"):
            loaded.predict_items([[each]])


def test_a_gate_reads_features_not_views(bags: Split) -> None:
    with pytest.raises(AdaptError, match="gated attention reads features, not views"):
        wrapped("abmil", bags, by="view", gated=True)
