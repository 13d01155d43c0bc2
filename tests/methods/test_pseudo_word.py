"""Pseudo-words: what the map learns from captions and from images, how a query is made, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F

import adapt
from adapt import AdaptError, methods
from adapt.data import Item, Split
from adapt.methods.pseudo_word import apart, around_names, matching, rebuilding
from adapt.prompts import around_word
from adapt.retrieval.index import changed, index_images, slerp
from adapt.tasks.images import Unlabelled

CAPTIONS = [f"a {colour} {noun} on the {place}" for colour in ("red", "old") for noun in (
    "goldfish", "tree", "car", "panda") for place in ("grass", "table")]  # fmt: skip
TEXTS = tuple(Item.of(text=text) for text in CAPTIONS)


def new(**settings: Any) -> Any:
    torch.manual_seed(0)
    chosen = {"hidden": 32, "dropout": 0.0, "epochs": 40, "batch_size": 8, "lr": 0.01} | settings
    return adapt.wrap(tiny_backbones.backbone("open_clip"), methods.PseudoWord(**chosen), ())


def test_runs_of_names_are_left_out() -> None:
    assert around_names("a brown dog runs on green grass.") == ["a", "runs on", "."]
    assert around_names("two red cars") == ["", ""]
    assert around_names("running") == ["running"]


def test_a_word_stands_where_the_text_has_it(model_folder: Path) -> None:
    tokenizer = adapt.load_backbone(str(model_folder)).tokenizer
    prompt = around_word(tokenizer, ["a photo of ", " that is red"])
    assert [slot for slot in prompt.slots if slot is not None] == [0]
    assert prompt.slots.index(0) == 1 + len(tokenizer.pieces("a photo of"))
    twice = around_word(tokenizer, ["", "and", ""])
    assert [place for place, slot in enumerate(twice.slots) if slot == 0] == [1, len(twice.ids) - 2]
    with pytest.raises(AdaptError, match="tokens but the text tower reads 77: shorten the text"):
        around_word(tokenizer, ["a", "very " * 100])


def test_the_word_of_a_token_is_the_text_with_the_token() -> None:
    """With a token's own embedding in the slot, the tower reads the text that has the token."""
    model = new()
    backbone = model.backbone
    tokenizer = backbone.tokenizer
    [piece] = tokenizer.pieces("car")
    embedding: Any = backbone.tower("text").embedding
    word = embedding(torch.tensor([piece]))
    for parts, text in ((["a red", "at night"], "a red car at night"), (["", "at", ""], "car at car")):
        found = model.encode_words([around_word(tokenizer, parts)], word)
        torch.testing.assert_close(found, model.text_features([text], unit=False), rtol=0, atol=1e-5)


def test_captions_are_rebuilt_better_than_at_the_start() -> None:
    model = new()
    with torch.no_grad():
        before = rebuilt(model)
        adapt.fit(model, TEXTS, progress=False)
        assert rebuilt(model.eval()) < 0.5 * before
    again = new()
    adapt.fit(again, TEXTS, progress=False)
    assert torch.equal(again.method.layers[0].weight, model.method.layers[0].weight)  # by the seed


def rebuilt(model: Any) -> float:
    right = model.text_features(CAPTIONS, unit=False)
    prompts = [around_word(model.backbone.tokenizer, around_names(text)) for text in CAPTIONS]
    return float(rebuilding(model, prompts, model.method.words(right), right))


def test_images_are_told_apart_by_their_words(tiny_split: Split) -> None:
    model = new(learns="images")
    paths = [item.path for item in tiny_split.train]
    features = index_images(model.eval(), paths).features
    prompt = around_word(model.backbone.tokenizer, ["a photo of", ""])
    with torch.no_grad():
        before = float(matching(model, prompt, model.method.words(features), features))
        adapt.fit(model, [Item((path,), Unlabelled()) for path in paths], progress=False)
        assert float(matching(model.eval(), prompt, model.method.words(features), features)) < before - 0.1


def test_words_that_are_found_for_images_are_learned(tiny_split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    compared, usual = list[int](), torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, k: compared.append(len(x)) or usual(x, k))
    model = new(learns="inversions", inversion_steps=60, batch_size=4)
    paths = [item.path for item in tiny_split.train]
    items = [Item.of(path=path, text=CAPTIONS[place % len(CAPTIONS)]) for place, path in enumerate(paths)]
    features = index_images(model.eval(), paths).features
    prompt = around_word(model.backbone.tokenizer, ["a photo of", ""])
    with torch.no_grad():
        before = apart(model, [prompt] * len(paths), model.method.words(features), features)
        adapt.fit(model, items, progress=False)
        after = apart(model.eval(), [prompt] * len(paths), model.method.words(features), features)
    assert after < before - 0.1
    assert len(compared) > 1  # with captions, of which there may be millions
    assert max(compared) <= 4
    with pytest.raises(AdaptError, match="the data has 0 different captions to learn from; expected two or more"):
        adapt.fit(model, [Item((path,), Unlabelled()) for path in paths], progress=False)


def test_without_a_map_the_query_lies_on_the_arc() -> None:
    model: Any = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.ZeroShot(), ("object",)).eval()
    images = torch.randn(3, 3, 32, 32)
    old, new = model.image_features(images), model.text_features(["red"])
    assert torch.allclose(changed(model, images, "red", 0.2), slerp(old, new, 0.2), atol=1e-6)


def test_a_query_knows_no_dropout() -> None:
    model = new(dropout=0.5).train()
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(changed(model, images, "is red"), changed(model, images, "is red"))
    assert model.training


def test_the_map_reads_features_as_they_are_or_of_unit_length() -> None:
    features = torch.randn(4, new().backbone.embed_dim)
    as_is, unit = new(unit=False).eval(), new().eval()  # with the same weights
    assert torch.equal(as_is.method.words(features), as_is.method.layers(features))
    assert torch.allclose(unit.method.words(3 * features), as_is.method.words(F.normalize(features, dim=-1)), atol=1e-6)
    pixels = torch.randn(2, 3, 32, 32)
    prompt = around_word(as_is.backbone.tokenizer, ["a photo of ", " that is red"])
    words = as_is.method.layers(as_is.image_features(pixels, unit=False))
    query = F.normalize(as_is.encode_words([prompt] * 2, words), dim=-1)
    assert torch.allclose(changed(as_is, pixels, "is red"), query, atol=1e-6)


def test_what_is_refused() -> None:
    for query, what in {"a photo that {}": "the image", "a photo of *": "the words"}.items():
        with pytest.raises(AdaptError, match=f"has no place for {what}; expected a text with"):
            methods.PseudoWord(query=query)
    with pytest.raises(AdaptError, match="the data has 0 different captions to learn from; expected two or more"):
        adapt.fit(new(), [Item.of(text=text) for text in ("running", "to be")], progress=False)
    with pytest.raises(AdaptError, match="the data has 0 different images to learn from"):
        adapt.fit(new(learns="images"), TEXTS, progress=False)
    step = new().step(torch.randn(1, 3, 32, 32))
    with pytest.raises(AdaptError, match="tokens but the text tower reads 77: shorten the text"):
        step.model.method.composed(step, "very " * 100)
