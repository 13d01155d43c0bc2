"""Learning from texts in the place of images: what enters, what is refused, and that noise is of training alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.data import Item, Split, load, read_csv
from adapt.data.checks import found_in, look
from adapt.methods.close import noisy
from adapt.models.features import item_features

STEPS = {"iterations": 3, "batch_size": 4, "lr": 0.1, "schedule": "constant", "augment": "none", "progress": False}


def texts(split: Split) -> Split:
    """The same with two texts of each class in place of the training and validation images."""
    items = [
        Item.of(text=form.replace("{}", name), label=name)
        for name in split.class_names
        for form in ("a photo of a {}.", "art of a {}.")
    ]
    return replace(split, train=tuple(items), val=tuple(items))


@pytest.fixture
def of_texts(tiny_split: Split) -> Split:
    return texts(tiny_split)


def test_noise_has_its_scale_and_leaves_unit_length() -> None:
    features = F.normalize(torch.randn(2000, 64), dim=-1)
    assert torch.allclose(noisy(features, 0.1).norm(dim=-1), torch.ones(2000))
    cosine = (noisy(features, 0.1) * features).sum(-1).mean()
    assert cosine.item() == pytest.approx((1 + 0.1**2 * 64) ** -0.5, abs=0.01)


def test_noise_is_of_training_alone(open_clip: Backbone, images: Tensor) -> None:
    model = adapt.wrap(open_clip, methods.Close(noise=0.3), ["cat", "dog"])
    features = model.image_features(images)
    assert torch.equal(model.eval().logits(features), model.logits(features))
    assert not torch.allclose(model.train().logits(features), model.eval().logits(features), atol=1e-2)


def test_texts_are_shifted_towards_unlabelled_images(
    open_clip: Backbone, tiny_split: Split, of_texts: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the distance of the means, before noise and unit length, and in training alone."""
    model = adapt.wrap(open_clip, methods.Close(shift=0.5, noise=0.1), of_texts.class_names)
    adapt.fit(model, of_texts.train, unlabelled_set=tiny_split.train, **STEPS)
    prompts = [item.text for item in of_texts.train]
    texts, images = model.text_features(prompts).double(), item_features(model, tiny_split.train, workers=0).double()
    away = images.mean(0) - texts.mean(0)
    assert away.norm() > 0.1
    noise = torch.randn(texts.shape)
    monkeypatch.setattr(torch, "randn_like", lambda given: noise)
    read = F.normalize(texts + 0.5 * away + 0.1 * noise, dim=-1)
    weight, bias = model.method.lin.weight.double(), model.method.lin.bias.double()
    assert scaled(model.train().logits(texts.float()), read @ weight.T + bias) < 1e-5
    assert scaled(model.eval().logits(texts.float()), texts @ weight.T + bias) < 1e-5
    with pytest.raises(AdaptError, match="unlabelled"):
        adapt.fit(adapt.wrap(open_clip, methods.Close(shift=1), of_texts.class_names), of_texts.train, **STEPS)


@pytest.mark.parametrize("name", ["close", "linear_probe", "task_res", "tip_adapter", "coop"])
def test_methods_that_leave_the_vision_tower_alone_learn_from_texts(
    name: str, open_clip: Backbone, of_texts: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"views": 0} if name == "tip_adapter" else {}
    model = adapt.wrap(open_clip, methods.find(name)(**settings), of_texts.class_names)
    steps = STEPS if model.method.takes_steps else {"progress": False}
    monkeypatch.setattr("adapt.data.decoding.cache.read_bytes", lambda path: pytest.fail("an image was read"))
    result = adapt.fit(model, of_texts.train, val_set=of_texts.val, **steps)
    assert result.metrics["val"]["images"] == len(of_texts.val)


def test_a_step_sees_the_text_towers_features(open_clip: Backbone, of_texts: Split) -> None:
    model = adapt.wrap(open_clip, methods.Close(noise=0), of_texts.class_names)
    seen = []
    logits = model.method.logits
    model.method.logits = lambda step: seen.append((step.features, step.labels)) or logits(step)
    adapt.fit(model, of_texts.train, seed=3, **STEPS)
    expected = open_clip.encode_text(open_clip.tokenize([item.text for item in of_texts.train]))
    expected = F.normalize(expected, dim=-1)
    for features, labels in seen:
        nearest = (features @ expected.T).max(-1)
        assert torch.allclose(nearest.values, torch.ones(len(labels)), atol=1e-5)
        assert [of_texts.train[place].answer for place in nearest.indices] == [
            of_texts.class_names[label] for label in labels
        ]


@pytest.mark.parametrize("name", ["lora", "maple"])
def test_methods_that_need_images_say_so(name: str, open_clip: Backbone, of_texts: Split) -> None:
    method = methods.find(name)(**methods.find(name).example)
    model = adapt.wrap(open_clip, method, of_texts.class_names)
    with pytest.raises(AdaptError, match=f"texts instead of training images, but {name}"):
        adapt.fit(model, of_texts.train, **STEPS)


def test_views_are_of_images(open_clip: Backbone, of_texts: Split) -> None:
    model = adapt.wrap(open_clip, methods.GDA(views=2), of_texts.class_names)
    with pytest.raises(AdaptError, match="gda needs random views of images"):
        adapt.fit(model, of_texts.train, progress=False)


def test_a_text_beyond_the_context_is_named(open_clip: Backbone, of_texts: Split) -> None:
    long = tuple(replace(item, text="very " * 200 + "long") for item in of_texts.train)
    model = adapt.wrap(open_clip, methods.Close(), of_texts.class_names)
    with pytest.raises(
        AdaptError, match=r"the text 'very very .* has 203 tokens but the text tower reads 77: shorten the text"
    ):
        adapt.fit(model, long, **STEPS)


def test_a_csv_of_texts_and_images(tmp_path: Path, five_classes: Path) -> None:
    image = next(five_classes.rglob("*.png"))
    file = tmp_path / "texts.csv"
    file.write_text(f"text,path,label\na poodle,,dog\na tabby,,cat\n,{image.name},cat\n")
    split = read_csv(file, root=image.parent)
    assert [(item.text, item.answer) for item in split.train] == [("a poodle", "dog"), ("a tabby", "cat")]
    assert [item.path for item in split.test] == [str(image)]
    file.write_text("text,label\na poodle,dog\na tabby,cat\n")
    assert len(read_csv(file).train) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,label\n,dog\n", "expected either a path or a text, not both"),
        ("text,path,label\na,b.png,dog\n", "expected either a path or a text, not both"),
        ("text,label,split\na,dog,train\nb,dog,test\n", "the test data has the text 'b'; expected images"),
        ("text,path,label,split\na,,dog,train\n,b.png,dog,train\n", "the train data has both images .* and texts"),
    ],
)
def test_a_csv_that_mixes_both_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "texts.csv").write_text(content)
    with pytest.raises(AdaptError, match=expected):
        read_csv(tmp_path / "texts.csv")


def test_texts_have_identities_of_their_own(of_texts: Split) -> None:
    other = replace(of_texts, train=tuple(replace(item, text=item.text + "!") for item in of_texts.train))
    assert other.fingerprint != of_texts.fingerprint
    assert found_in(look("texts", replace(of_texts, val=()))) == []
    few = of_texts.few_shot(1, seed=2)
    assert len(few.train) == len(of_texts.class_names)
    held = replace(of_texts, val=()).with_validation(1)
    assert len(held.val) == len(of_texts.class_names)


def test_the_bundled_texts_name_nothing_that_is_tested() -> None:
    split, images = load("emoji-texts"), load("emoji")
    assert split.test == images.test
    names = {item.group for item in split.train}
    assert len(split.train) == 4 * len(names)
    assert not names & {item.group for item in split.test}
    assert {item.group for item in images.train} == names
