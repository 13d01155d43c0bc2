"""Names without a list of classes: candidates out of captions, captions that say the same, and scores."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.retrieval import words
from adapt.retrieval.index import Index, index_images, index_texts
from adapt.retrieval.vocabulary_free import VocabularyFree, different
from adapt.retrieval.words import NOTHING, candidates

CAPTIONS = ("a red panda", "red pandas sleeping", "the panda eats", "a school bus", "yellow school buses")


@pytest.fixture
def index(open_clip: Backbone) -> Index:
    return index_texts(adapt.wrap(open_clip, methods.ZeroShot(), ("object",)), CAPTIONS)


def test_candidates_are_words_that_name_seen_more_than_once() -> None:
    assert candidates(CAPTIONS) == ["bus", "panda", "red", "school"]
    assert candidates(["painting of the dogs", "running"]) == ["dog", "running"]  # none is seen twice
    assert candidates(["the and with", "a <b> http://x.org .jpg"]) == [NOTHING]
    assert candidates([]) == [NOTHING]
    assert candidates(["king penguins", "king penguin"], tag=lambda each: ["XX"] * len(each)) == [NOTHING]


def test_captions_that_are_alike_by_way_of_others_are_one() -> None:
    angles = torch.tensor([0.0, 1.5, 0.3, 0.6, 1.6])  # neighbours 0.3 apart have a cosine of 0.955
    features = torch.stack([angles.cos(), angles.sin()], dim=-1)
    assert different(features) == [0, 1]
    assert different(features[[0, 1, 3]]) == [0, 1, 2]


def test_names_are_scored_against_the_image_and_the_captions(open_clip: Backbone, index: Index) -> None:
    image = F.normalize(torch.randn(1, open_clip.embed_dim), dim=-1)
    [both], [of_image], [of_captions] = (
        VocabularyFree(open_clip, index, alpha=alpha).named(image) for alpha in (0.7, 1.0, 0.0)
    )
    assert both.words == of_image.words
    shares = 0.7 * of_image.logits.exp() + 0.3 * of_captions.logits.exp()
    assert torch.allclose(both.logits.exp(), shares, atol=1e-6)
    encoded = open_clip.encode_text(open_clip.tokenize(list(both.words)))
    expected = (open_clip.logit_scale * F.normalize(encoded, dim=-1) @ image[0]).softmax(-1)
    assert torch.allclose(of_image.logits.exp(), expected, atol=1e-4)


def test_it_predicts_as_a_model_does(open_clip: Backbone, index: Index) -> None:
    model = VocabularyFree(open_clip, index)
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ((200, 30, 60), (10, 90, 220))]
    found = model.predict(pictures, top_k=2, batch_size=1)
    assert [len(each.top) for each in found] == [2, 2]
    assert model.predict(pictures[0])[0].class_name == found[0].class_name


def test_what_it_cannot_use_is_refused(open_clip: Backbone, hf_siglip: Backbone, index: Index, tiny_split: Any) -> None:
    model = adapt.wrap(open_clip, methods.ZeroShot(), ("object",))
    with pytest.raises(AdaptError, match="the index contains images"):
        VocabularyFree(open_clip, index_images(model, [tiny_split.test[0].path]))
    with pytest.raises(AdaptError, match="is a different backbone"):
        VocabularyFree(hf_siglip, index)
    with pytest.raises(AdaptError, match=r"alpha is 1\.5"):
        VocabularyFree(open_clip, index, alpha=1.5)
    for wrong in ({"captions": 0}, {"template": "a photo"}):
        with pytest.raises(AdaptError, match="expected 1 or more"):
            VocabularyFree(open_clip, index, **wrong)


@pytest.mark.parametrize("library", ["inflect", "textblob"])
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == library:
            raise ImportError(name)
        return known(name, *arguments, **options)

    words._inflection.cache_clear()
    words._singular.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AdaptError, match=rf'the library {library}: pip install "adapt-vlm\[words\]"$'):
        candidates(CAPTIONS)
