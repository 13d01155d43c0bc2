"""Systems that decide by texts beyond class names, against their published implementations."""

from __future__ import annotations

import math

import published
import pytest
import tiny_clip
import torch
import torch.nn.functional as F
from checks import relative, scaled
from published import GRADIENT_TOLERANCE, LIBRARIES, TOLERANCE
from torch import Tensor

import adapt
from adapt.data import Item
from adapt.methods.base import contrast
from adapt.methods.close import noisy
from adapt.methods.descriptions import sentence
from adapt.methods.svlc import in_other_words, wrong_twins
from adapt.retrieval.index import index_texts
from adapt.retrieval.matching import match
from adapt.retrieval.vocabulary_free import VocabularyFree
from adapt.retrieval.words import frequent, plain_words

EVERY_LIBRARY = pytest.mark.parametrize("library", LIBRARIES)


@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["descriptions_prepend", "descriptions_full_stop"])
@pytest.mark.parametrize("fast", [None, False])
def test_descriptions(name: str, library: str, fast: bool | None) -> None:
    settings, expected = published.case(name)
    template = "{name}, {descriptor}" + settings["settings"]["after_text"]
    method = adapt.methods.Descriptions(descriptors=settings["descriptors"], template=template)
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast)
    for class_name, texts in settings["texts"].items():
        ours = [sentence(each) for each in method.descriptors(class_name)]
        readable = class_name.replace("_", " ")
        assert [template.replace("{name}", readable).replace("{descriptor}", each) for each in ours] == texts
    with torch.no_grad():
        for label, own in enumerate(model.prompt_features()):
            assert scaled(own, expected[f"descriptor_features.{label}"]) < TOLERANCE
        step = model.step(expected["images"], expected["predictions"])
        assert scaled(step.features, expected["image_features"]) < TOLERANCE
        scores = model(expected["images"]) / model.backbone.logit_scale
    assert scaled(scores, expected["scores"]) < TOLERANCE
    assert scores.argmax(-1).tolist() == expected["predictions"].tolist()


@pytest.mark.parametrize("name", ["descriptions_prepend", "descriptions_full_stop"])
def test_explanations_name_the_descriptors_in_the_published_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case(name)
    template = "{name}, {descriptor}" + settings["settings"]["after_text"]
    method = adapt.methods.Descriptions(descriptors=settings["descriptors"], template=template)
    model = adapt.wrap(published.backbone("open_clip"), method, settings["names"])
    images = list(expected["images"])
    monkeypatch.setattr(model, "transform", lambda: lambda image: image)
    monkeypatch.setattr("adapt.data.decoding.images.open_image", lambda image, **how: image)
    for found, text in zip(model.explain(images), settings["explanations"], strict=True):
        _, average, *lines, _ = text.splitlines()
        reasons = found.reasons[0]
        assert reasons.class_name in text
        assert 100 * reasons.mean == pytest.approx(float(average.split()[-1]), abs=1e-4)
        assert [each for each, _ in reasons.descriptors] == [line.split("\t")[0] for line in lines]
        told = [float(line.split("\t")[1]) for line in lines]
        assert [100 * cosine for _, cosine in reasons.descriptors] == pytest.approx(told, abs=1e-4)


def _t5() -> torch.nn.Module:
    """The small T5 of the case, its weights drawn from their names."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=128, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    state = {key: _drawn(f"close_t5/{key}", tensor) for key, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    with torch.no_grad():
        model.shared.weight.mul_(0.5)
    return model


def _drawn(name: str, tensor: Tensor) -> Tensor:
    noise = tiny_clip.draw(name, tuple(tensor.shape))
    if tensor.ndim <= 1:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.02 * noise
    return noise * math.prod(tensor.shape[1:]) ** -0.5


@EVERY_LIBRARY
def test_close(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map of the method gives the case's tokens where it has as many outputs as those have values."""
    settings, expected = published.case("close_noise")
    tokens, width = expected["tokens"].shape[1:]
    method = adapt.methods.Close(noise=settings["noise"])
    model = adapt.wrap(published.backbone(library), method, [f"value {i}" for i in range(tokens * width)])
    method.load_state_dict({f"lin.{each}": expected[f"param.adapter.lin.{each}"] for each in ("weight", "bias")})
    features = model.text_features(settings["captions"])
    assert scaled(features, expected["unit_text_features"]) < TOLERANCE
    monkeypatch.setattr(torch, "randn_like", lambda given: expected["noise"])
    assert scaled(noisy(features, settings["noise"]), expected["shifted"]) < TOLERANCE
    found = model.train().logits(features).unflatten(-1, (tokens, width))
    assert scaled(found, expected["tokens"]) < TOLERANCE
    t5, targets = _t5(), expected["target_ids"]
    loss = t5(inputs_embeds=found, labels=targets.masked_fill(targets == 0, -100)).loss
    loss.backward()
    assert scaled(loss, expected["loss"]) < TOLERANCE
    for name, parameter in method.named_parameters():
        assert relative(parameter.grad, expected[f"grad.adapter.{name}"]) < GRADIENT_TOLERANCE, name
    for name in ("decoder.block.1.layer.1.EncDecAttention.v", "encoder.block.0.layer.0.SelfAttention.q"):
        gradient = t5.get_parameter(f"{name}.weight").grad
        assert relative(gradient, expected[f"grad.t5.{name}.weight"]) < GRADIENT_TOLERANCE, name
    with torch.no_grad():
        of_images = model.eval()(expected["images"]).unflatten(-1, (tokens, width))
    assert scaled(of_images, expected["image_tokens"]) < TOLERANCE


@EVERY_LIBRARY
def test_cased(library: str) -> None:
    settings, expected = published.case("cased_open")
    backbone = published.backbone(library)
    model = adapt.wrap(backbone, adapt.methods.ZeroShot(), ("object",))
    index = index_texts(model, settings["captions"])
    assert scaled(index.features, expected["caption_features"]) < TOLERANCE
    tags = settings["pos_tags"]
    named = VocabularyFree(
        backbone,
        index,
        alpha=settings["alpha"],
        captions=settings["num_samples"],
        least=settings["min_count"],
        template=settings["vocab_prompt"],
        tag=lambda words: [tags.get(word, "NN") for word in words],
    ).named(F.normalize(expected["image_features"], dim=-1))
    for number, (found, result) in enumerate(zip(named, settings["results"], strict=True)):
        assert list(found.captions) == result["captions"]
        assert list(found.words) == result["candidates"]
        assert found.words[int(found.logits.argmax())] == result["best"]
        assert scaled(found.logits.exp(), expected[f"scores.{number}"]) < TOLERANCE


def test_the_words_of_captions_pass_the_published_stages() -> None:
    settings, _ = published.case("cased_open")
    for result in settings["results"]:
        stages = dict(result["stages"])
        words = plain_words(" ".join(result["captions"]))
        assert words == stages["DropWords"].split()
        assert frequent(words, settings["min_count"]) == stages["FrequencyMinWordCount"].split()


def test_svlc_negatives() -> None:
    """The losses on given features, which the case has in the order captions, wrong twins."""
    settings, expected = published.case("svlc_negatives")
    images = expected["image_features"].clone().requires_grad_()
    texts = expected["text_features"].clone().requires_grad_()
    pairs, having = len(settings["captions"]), settings["with_negatives"]
    logits = settings["logit_scale"] * images @ texts.T
    apart = wrong_twins(logits.diagonal()[having], logits[having, range(pairs, len(texts))])
    loss = contrast(logits[:, :pairs], logits[:, pairs:]) + settings["neg_w"] * apart
    assert scaled(apart, expected["loss_neg"]) < TOLERANCE
    assert scaled(loss, expected["loss"]) < TOLERANCE
    loss.backward()
    assert relative(images.grad, expected["grad.image_features"]) < GRADIENT_TOLERANCE
    assert relative(texts.grad, expected["grad.text_features"]) < GRADIENT_TOLERANCE


def test_svlc_positives() -> None:
    """The loss on given features, which the case has in the order captions in other words, captions."""
    settings, expected = published.case("svlc_positives")
    images = expected["image_features"].clone().requires_grad_()
    every = expected["text_features"].clone().requires_grad_()
    rephrased, texts = every.split(len(settings["captions"]))
    scale = settings["logit_scale"]
    again = in_other_words(scale * images @ rephrased.T, scale * texts @ rephrased.T)
    loss = contrast(scale * images @ texts.T) + again
    assert scaled(loss, expected["loss"]) < TOLERANCE
    loss.backward()
    assert relative(images.grad, expected["grad.image_features"]) < GRADIENT_TOLERANCE
    assert relative(every.grad, expected["grad.text_features"]) < GRADIENT_TOLERANCE


@EVERY_LIBRARY
def test_gist_matches_texts_to_images(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("gist_open")
    names = settings["names"]
    model = adapt.wrap(published.backbone(library), adapt.methods.ZeroShot(), names)
    features = model.image_features(expected["images"]).detach()
    monkeypatch.setattr("adapt.retrieval.matching.item_features", lambda *given, **options: features)
    items = [Item("a.png", label, names[label]) for label in expected["labels"].tolist()]
    found = match(model, items, settings["captions"], settings["top"])
    assert [list(each) for each in found] == settings["matched"]
