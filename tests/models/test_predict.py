"""`predict` for applications: any picture, a threshold, features, many threads, copies."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llms
import torch
from cases import build
from checks import perturb
from PIL import Image
from selection import by_turns

import adapt
from adapt import AdaptError, Backbone
from adapt.data import Split, open_image
from adapt.models.prediction import Prediction

METHODS = ("coop", "cocoop", "maple", "lora", "tip_adapter", "tda", "tpt")


def close(found: Prediction, expected: Prediction) -> bool:
    return found.class_name == expected.class_name and abs(found.probability - expected.probability) < 1e-5


def test_what_a_prediction_holds(open_clip: Backbone, tiny_split: Split) -> None:
    model = build("coop", open_clip).eval()
    paths = [item.path for item in tiny_split.test]
    every = model.probabilities(paths)
    assert every.shape == (6, 3)
    for path, found, row in zip(paths, model.predict(paths, top_k=2, features=True), every, strict=True):
        assert found.label == row.argmax()
        assert model.class_names[found.label] == found.class_name == found.top[0][0]
        assert found.probability == pytest.approx(float(row.max()), abs=1e-6)
        assert len(found.top) == 2
        pixels = model.transform()(open_image(path))[None]
        torch.testing.assert_close(found.features, model.image_features(pixels).detach()[0], atol=1e-5, rtol=0)
    assert model.predict(paths[0])[0].features is None
    assert model.probabilities([]).shape == (0, 3)
    assert model.predict(iter([])) == []


def test_pictures_of_every_kind_are_told_the_same(open_clip: Backbone, tiny_split: Split) -> None:
    model = build("coop", open_clip).eval()
    paths = [item.path for item in tiny_split.test]
    expected, pictures = model.predict(paths), [open_image(path) for path in paths]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255
    contents = [open(path, "rb").read() for path in paths]  # noqa: SIM115
    for images in (pictures, arrays, tensors, contents, (each for each in [*paths[:3], *pictures[3:]])):
        assert all(map(close, model.predict(images), expected))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (0, 5)), "the image has no pixels, as its size is 0 x 5"),
        (Image.new("RGB", (1, 200)), "the longer side may be at most 100 times"),
        (torch.zeros(3, 4, 4).to_sparse(), "an image is a sparse tensor; expected a dense tensor"),
        (torch.zeros(3, 4, 4, device="meta"), "an image is a meta tensor; expected a dense tensor"),
    ],
    ids=["no pixels", "a strip", "sparse", "meta"],
)
def test_pictures_that_no_model_reads_are_refused(image: Any, message: str, open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=message):
        build("zero_shot", open_clip).eval().predict(image)


def test_a_folder_is_no_image_and_true_no_number(open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    model = build("zero_shot", open_clip).eval()
    with pytest.raises(AdaptError, match="is a folder: give the images in it"):
        model.predict(tmp_path)
    with pytest.raises(AdaptError, match="top_k is True; expected"):
        model.predict(tiny_split.test[0].path, top_k=True)


def test_what_is_not_sure_enough_is_none(open_clip: Backbone, tiny_split: Split) -> None:
    model = build("zero_shot", open_clip).eval()
    paths = [item.path for item in tiny_split.test]
    sure = model.predict(paths)
    middle = sorted(each.probability for each in sure)[3]
    for found, own in zip(model.predict(paths, threshold=middle), sure, strict=True):
        known = own.probability >= middle
        assert (found.class_name, found.label) == ((own.class_name, own.label) if known else ("none", None))
        assert (found.probability, found.top) == (own.probability, own.top)
    assert {found.class_name for (found,) in adapt.predict_many([model], paths, threshold=1.0)} == {"none"}
    for wrong in (-0.1, 1.5, float("nan"), "0.5"):
        with pytest.raises(AdaptError, match=r"threshold is .*; expected the least probability"):
            model.predict(paths, threshold=wrong)


def test_many_models_with_features(open_clip: Backbone, tiny_split: Split) -> None:
    models = [perturb_and_return(build(name, open_clip).eval()) for name in ("coop", "lora", "tip_adapter")]
    paths = [item.path for item in tiny_split.test]
    together = adapt.predict_many(models, paths, features=True)
    for index, model in enumerate(models):
        for found, own in zip(together, model.predict(paths, features=True), strict=True):
            assert close(found[index], own)
            torch.testing.assert_close(found[index].features, own.features, atol=1e-5, rtol=0)


def perturb_and_return(model: Any) -> Any:
    perturb(model)
    return model


@by_turns("method", METHODS, take=2)
def test_a_pool_of_eight_says_what_one_thread_says(method: str, open_clip: Backbone, tiny_split: Split) -> None:
    """Of models on one backbone that another model, in training mode, uses meanwhile; and of pickled copies."""
    model, other = build(method, open_clip).eval(), build("maple", open_clip)
    paths = [item.path for item in tiny_split.train]
    calls: list[Callable[[], list[Prediction]]] = [
        lambda: model.predict(paths),
        lambda: model.predict([open_image(path) for path in paths], batch_size=5),
        lambda: other.predict(paths, features=True),
        lambda: list(model.predict_stream(iter(paths))),
    ]
    expected = [call() for call in calls]
    copied = pickle.loads(pickle.dumps(model))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: calls[number % 4](), range(16)))
    for number, answers in enumerate(found):
        assert all(map(close, answers, expected[number % 4]))
    assert all(map(close, copied.predict(paths), expected[0]))


def test_answers_in_words_have_a_threshold_and_no_features(tiny_split: Split) -> None:
    model = adapt.wrap(tiny_llms.vision_llm("llama"), adapt.methods.Projector()).eval()
    path = tiny_split.test[0].path
    (found,) = model.predict(path, question="what is it ?")
    (none,) = model.predict(path, question="what is it ?", threshold=1.0)
    assert (none.class_name, none.top, found.label) == ("none", found.top, None)
    with pytest.raises(AdaptError, match="do not request features"):
        model.predict(path, question="what is it ?", features=True)
