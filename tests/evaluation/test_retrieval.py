"""Recall both ways, of pairs where an image has several texts and a text several images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import adapt
from adapt import Backbone, methods
from adapt.data import Item
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.retrieval import RetrievalScores, hits


def test_recall_counts_rows_that_have_one_of_theirs_among_the_nearest() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]).repeat(1, 4)
    logits -= torch.arange(12) / 100
    belongs = torch.zeros(3, 12, dtype=torch.bool)
    belongs[0, 0] = belongs[1, 1] = belongs[2, [1, 2]] = True
    # row 1: the first of the middle values is the fifth largest; row 2 has the largest of all
    assert {at: own.tolist() for at, own in hits(logits, belongs).items()} == {
        "1": [True, False, True], "5": [True, True, True], "10": [True, True, True]
    }  # fmt: skip
    belongs[1] = False
    belongs[1, 11] = True  # the smallest
    assert [own.tolist() for own in hits(logits, belongs).values()] == 3 * [[True, False, True]]


def test_it_ranks_each_image_once_and_each_text_once(open_clip: Backbone, tmp_path: Path) -> None:
    items = []
    for number, (colour, texts) in enumerate(
        {(200, 20, 20): ["red", "a warm sky"], (20, 20, 200): ["blue"], (20, 200, 20): ["green", "blue"]}.items()
    ):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (40, 40), colour).save(path)
        items += [Item.of(path=str(path), text=text) for text in texts]
    model = adapt.wrap(open_clip, methods.ZeroShot(), ()).eval()
    scores = evaluate(model, items, workers=0)
    assert isinstance(scores, RetrievalScores)
    assert scores.images == 3
    transform, texts = model.transform(), ["red", "a warm sky", "blue", "green"]
    with torch.no_grad():
        paths = [f"{tmp_path}/{number}.png" for number in range(3)]
        images = model.image_features(torch.stack([transform(adapt.data.open_image(path)) for path in paths]))
        nearest = (images @ model.text_features(texts).T).argmax(-1)
    assert list(scores.predicted) == [texts[number] for number in nearest]
    own = [{"red", "a warm sky"}, {"blue"}, {"green", "blue"}]
    assert list(scores.right) == [text in each for text, each in zip(scores.predicted, own, strict=True)]
    hits = [text == actual for text, actual in zip(scores.predicted, scores.actual, strict=True)]
    assert hits == list(scores.right)  # as predictions.csv has it
    figures = scores.figures()
    assert figures["recall"]["image_to_text"]["1"] == pytest.approx(scores.accuracy)
    assert figures["recall"]["image_to_text"]["5"] == figures["recall"]["text_to_image"]["5"] == 1
