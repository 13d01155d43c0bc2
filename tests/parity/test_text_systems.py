"""Systems that decide by texts beyond class names, against their published implementations."""

from __future__ import annotations

import math
from typing import Any

import published
import pytest
import tiny_clip
import torch
import torch.nn.functional as F
from checks import scaled
from published import LIBRARIES, TOLERANCE
from selection import by_turns
from torch import Tensor

import adapt
from adapt.data import Item
from adapt.methods.base import Encoded, PairStep, total
from adapt.methods.close import noisy
from adapt.methods.descriptions import sentence
from adapt.retrieval.index import index_texts
from adapt.retrieval.matching import match
from adapt.retrieval.vocabulary_free import VocabularyFree
from adapt.retrieval.words import frequent, plain_words

EVERY_LIBRARY = by_turns("library", LIBRARIES)


def described(name: str, library: str, fast: bool | None = None, **config: Any) -> adapt.AdaptedModel:
    settings, _ = published.case(name)
    template = "{name}, {descriptor}" + settings["settings"]["after_text"]
    method = adapt.methods.Descriptions(descriptors=settings["descriptors"], template=template, **config)
    return adapt.wrap(published.backbone(library), method, settings["names"], fast)


@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["descriptions_prepend", "descriptions_full_stop"])
@by_turns("fast", [None, False])
def test_descriptions(name: str, library: str, fast: bool | None) -> None:
    settings, expected = published.case(name)
    model = described(name, library, fast, score=settings["aggregation"])
    method: Any = model.method
    template = method.config.template
    ours = {
        class_name: [
            template.replace("{name}", class_name.replace("_", " ")).replace("{descriptor}", sentence(each))
            for each in method.descriptors(class_name)
        ]
        for class_name in settings["names"]
    }
    settings.equal("texts", ours)
    with torch.no_grad():
        step = model.step(expected["images"], expected["predictions"])
        expected.scaled("image_features", step.features)
        for label, own in enumerate(model.prompt_features()):
            expected.scaled(f"descriptor_features.{label}", own)
            expected.scaled(f"descriptor_similarity.{label}", step.cosine_logits(own) / step.scale)
        scores = model(expected["images"]) / model.backbone.logit_scale
    expected.scaled("scores", scores)
    expected.equal("predictions", scores.argmax(-1))


@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["descriptions_prepend", "descriptions_full_stop"])
def test_descriptions_by_the_best_of_them(name: str, library: str) -> None:
    """The published option `max`: of the published similarities."""
    settings, expected = published.case(name)
    model = described(name, library, score="max")
    best = [expected[f"descriptor_similarity.{label}"].max(-1).values for label in range(len(settings["names"]))]
    with torch.no_grad():
        found = model(expected["images"]) / model.backbone.logit_scale
    assert scaled(found, torch.stack(best, dim=-1)) < TOLERANCE


@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["descriptions_prepend", "descriptions_full_stop"])
def test_what_descriptions_are_compared_with(name: str, library: str) -> None:
    settings, expected = published.case(name)
    template = "{}" + settings["settings"]["label_after_text"]
    model = adapt.wrap(published.backbone(library), adapt.methods.ZeroShot(template), settings["names"])
    settings.equal("label_texts", [template.replace("{}", each.replace("_", " ")) for each in settings["names"]])
    with torch.no_grad():
        found = model(expected["images"]) / model.backbone.logit_scale
    expected.scaled("label_similarity", found)
    expected.equal("label_predictions", found.argmax(-1))


@pytest.mark.parametrize("name", ["descriptions_prepend", "descriptions_full_stop"])
def test_explanations_name_the_descriptors_in_the_published_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case(name)
    model = described(name, "open_clip")
    images = list(expected["images"])
    monkeypatch.setattr(model, "transform", lambda: lambda image: image)
    monkeypatch.setattr("adapt.data.decoding.images.open_image", lambda image, **how: image)
    told: list[Any] = []
    for found in model.explain(images):
        reasons = found.reasons[0]
        cosines = [reasons.mean, *(cosine for _, cosine in reasons.descriptors)]
        words = [f"Total similarity to {reasons.class_name} (descriptor label) descriptors:", "Average:"]
        words += [each for each, _ in reasons.descriptors]
        told.append((words, pytest.approx([100 * cosine for cosine in cosines], abs=1e-4)))
    settings.equal("explanations", told, of=lambda texts: [*map(_said, texts)])


def _said(text: str) -> tuple[list[str], list[float]]:
    """The words of an explanation, and its figures. The line that says it again in one sentence is left out."""
    title, *lines = text.splitlines()[:-1]
    return [title, *(line.split("\t")[0] for line in lines)], [float(line.split("\t")[-1]) for line in lines]


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
    expected.scaled("unit_text_features", features)
    monkeypatch.setattr(torch, "randn_like", lambda given: expected["noise"])
    expected.scaled("shifted", noisy(features, settings["noise"]))
    found = model.train().logits(features).unflatten(-1, (tokens, width))
    expected.scaled("tokens", found)
    t5, targets = _t5(), expected["target_ids"]
    loss = t5(inputs_embeds=found, labels=targets.masked_fill(targets == 0, -100)).loss
    loss.backward()
    expected.scaled("loss", loss)
    for name, parameter in method.named_parameters():
        expected.relative(f"grad.adapter.{name}", parameter.grad)
    for name in ("decoder.block.1.layer.1.EncDecAttention.v", "encoder.block.0.layer.0.SelfAttention.q"):
        gradient = t5.get_parameter(f"{name}.weight").grad
        expected.relative(f"grad.t5.{name}.weight", gradient)
    with torch.no_grad():
        of_images = model.eval()(expected["images"]).unflatten(-1, (tokens, width))
    expected.scaled("image_tokens", of_images)


def test_the_captions_that_close_reads() -> None:
    settings, expected = published.case("close_noise")
    expected.equal("clip_ids", published.backbone("open_clip").tokenize(settings["captions"]))


@EVERY_LIBRARY
def test_cased(library: str) -> None:
    settings, expected = published.case("cased_open")
    backbone = published.backbone(library)
    model = adapt.wrap(backbone, adapt.methods.ZeroShot(), ("object",))
    index = index_texts(model, settings["captions"])
    expected.scaled("caption_features", index.features)
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
    expected.scaled("image_features", backbone.encode_image(expected["images"]))
    results = []
    for number, (found, result) in enumerate(zip(named, settings["results"], strict=True)):
        words = list(found.words)
        own = {"captions": list(found.captions), "candidates": words, "best": words[int(found.logits.argmax())]}
        results.append(result | own)
        expected.scaled(f"scores.{number}", found.logits.exp())
    settings.equal("results", results)


def test_the_words_of_captions_pass_the_published_stages() -> None:
    settings, _ = published.case("cased_open")
    for result in settings["results"]:
        stages = dict(result["stages"])
        words = plain_words(" ".join(result["captions"]))
        assert words == stages["DropWords"].split()
        assert frequent(words, settings["min_count"]) == stages["FrequencyMinWordCount"].split()


def svlc_step(name: str, library: str, method: adapt.methods.SVLC) -> tuple[PairStep, dict[str, Tensor]]:
    """A batch of a case, and its features, as what was encoded for the loss: images, and texts by themselves."""
    settings, expected = published.case(name)
    model = adapt.wrap(published.backbone(library), method, ())
    captions, leaves = settings["captions"], {"images": expected["image_features"].clone().requires_grad_()}
    expected.scaled("image_features", model.image_features(expected["images"]))
    encode = model.encode_texts

    def leaf(texts: list[str]) -> Tensor:
        leaves["texts"] = encode(texts).detach().requires_grad_()
        return leaves["texts"]

    model.encode_texts = leaf  # type: ignore[method-assign]
    settings.equal("logit_scale", pytest.approx(model.backbone.logit_scale, rel=1e-6))
    given = [Encoded(leaves["images"]), captions, settings["positives"] or [""] * len(captions)]
    return PairStep(model, given, torch.arange(len(captions))), leaves


def svlc(settings: published.Stored) -> adapt.methods.SVLC:
    """The method with a case's settings."""
    return adapt.methods.SVLC(
        negative_weight=settings["neg_w"],
        negatives=max(1, settings["num_negs"]),
        twins_for_all=not settings["no_neg_in_contrastive"],
        symmetric=settings["symmetric"],
        even_weight=0.1 * settings["kl_pos"],
        logit_scale=None,
    )


@EVERY_LIBRARY
def test_svlc_negatives(library: str) -> None:
    """The method's loss with the published twins; texts are in the order captions, wrong twins, there too."""
    settings, expected = published.case("svlc_negatives")
    method = svlc(settings)
    twins = {text: own[0] if own else None for text, own in zip(settings["captions"], settings["negatives"])}
    settings.equal("with_negatives", [place for place, twin in enumerate(twins.values()) if twin])
    method.twin = twins.get
    step, leaves = svlc_step("svlc_negatives", library, method)
    terms = method.loss(step)
    expected.scaled("text_features", leaves["texts"])
    expected.scaled("loss_neg", terms["twins"] / settings["neg_w"])
    expected.scaled("loss", total(terms))
    total(terms).backward()
    expected.relative("grad.image_features", leaves["images"].grad)
    expected.relative("grad.text_features", leaves["texts"].grad)


@EVERY_LIBRARY
def test_svlc_positives(library: str) -> None:
    """The method's loss; the published texts are in the order captions in other words, captions."""
    settings, expected = published.case("svlc_positives")
    method = svlc(settings)
    method.twin = lambda text: None
    step, leaves = svlc_step("svlc_positives", library, method)
    terms, count = method.loss(step), len(settings["captions"])

    def swapped(texts: Tensor) -> Tensor:
        return torch.cat([texts[count:], texts[:count]])

    expected.scaled("text_features", leaves["texts"], of=swapped)
    expected.scaled("loss_neg", torch.zeros(()))
    assert "twins" not in terms
    expected.scaled("loss", total(terms))
    total(terms).backward()
    expected.relative("grad.image_features", leaves["images"].grad)
    expected.relative("grad.text_features", leaves["texts"].grad, of=swapped)


@EVERY_LIBRARY
def test_gist_matches_texts_to_images(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("gist_open")
    names = settings["names"]
    model = adapt.wrap(published.backbone(library), adapt.methods.ZeroShot(), names)
    features = model.image_features(expected["images"]).detach()
    monkeypatch.setattr("adapt.retrieval.matching.item_features", lambda *given, **options: features)
    items = [Item.of(path="a.png", label=names[number]) for number in expected["labels"].tolist()]
    found = match(model, items, settings["captions"], settings["top"])
    settings.equal("matched", [list(each) for each in found])
