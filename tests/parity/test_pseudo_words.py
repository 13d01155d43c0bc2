"""Pseudo-words against the published Pic2Word, LinCIR and SEARLE."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt import methods
from adapt.methods.pseudo_word import apart, around_names, distilling, inversion, inverted, matching, rebuilding
from adapt.prompts import around_word
from adapt.retrieval.index import slerp

# where the published names of Pic2Word's layers lie in ours
PLACES = {"layers.0.0": "layers.0", "layers.1.0": "layers.3", "fc_out": "layers.6"}


def built(library: str, weights: dict[str, Tensor], **settings: Any) -> Any:
    """The model with a map that reads features as they are, and has the published weights."""
    chosen = methods.PseudoWord(hidden=len(weights["layers.0.bias"]), unit=False, **settings)
    model: Any = adapt.wrap(published.backbone(library), chosen, ()).eval()
    model.method.load_state_dict(weights)
    return model


def filled(model: Any, texts: list[str], word: str) -> list[Any]:
    return [around_word(model.backbone.tokenizer, text.split(word)) for text in texts]


@pytest.mark.parametrize("library", published.LIBRARIES)
def test_lincir(library: str) -> None:
    settings, expected = published.case("lincir")
    model = built(library, expected.under("param."))
    settings.equal("replaced", [" $ ".join(around_names(text)).strip() for text in settings["captions"]])
    right = expected["caption_features"]
    noisy = right + expected["amount"][:, None] * expected["noise"]
    words = model.method.words(noisy)
    expected.scaled("pseudo_words", words)
    prompts = filled(model, settings["replaced"], "$")
    expected.scaled("replaced_features", model.encode_words(prompts, words))
    loss = rebuilding(model, prompts, words, right)
    expected.scaled("loss", loss)
    loss.backward()
    for name, parameter in model.method.named_parameters():
        expected.relative(f"grad.{name}", parameter.grad)
    torch.testing.assert_close(model.text_features(settings["captions"], unit=False), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("library", published.LIBRARIES)
def test_pic2word(library: str) -> None:
    settings, expected = published.case("pic2word")
    ours = {
        name: name.replace(before, after)
        for name in expected.under("param.")
        for before, after in PLACES.items()
        if name.startswith(before)
    }
    model = built(library, {ours[name]: each for name, each in expected.under("param.").items()}, activation="relu")
    with torch.no_grad():
        features = model.image_features(expected["images"], unit=False)
    expected.scaled("image_features", features)
    words = model.method.words(features)
    expected.scaled("pseudo_words", words)
    [prompt] = filled(model, [settings["training_prompt"] + " *"], "*")
    expected.scaled("text_features", model.encode_words([prompt] * len(words), words))
    loss = matching(model, prompt, words, features)
    expected.scaled("loss", loss)
    loss.backward()
    parameters = dict(model.method.named_parameters())
    for name in ours:
        expected.relative(f"grad.{name}", parameters[ours[name]].grad)
    texts = [settings["star"].replace("{}", text) for text in settings["words"]]
    expected.scaled("composed", model.encode_words(filled(model, texts, "*"), words[: len(texts)]))
    [other] = filled(model, [settings["one_prompt"]], "*")
    expected.scaled("one_prompt", model.encode_words([other] * len(words), words))
    of_words = model.text_features(settings["words"], unit=False)
    expected.scaled("caption_features", of_words)
    both = (F.normalize(each, dim=-1) for each in (features[: len(texts)], of_words))
    expected.scaled("mixture", slerp(*both, 0.5))


@pytest.mark.parametrize("library", published.LIBRARIES)
def test_searle(library: str) -> None:
    settings, expected = published.case("searle")
    model = built(library, expected.under("param."))
    with torch.no_grad():
        phrases = model.text_features(settings["phrases"], unit=False)
    expected.scaled("phrase_features", phrases)
    prompts = filled(model, settings["replaced"], "$")

    words = model.method.words(expected["image_features"])
    expected.scaled("pseudo_words", words)
    expected.scaled("replaced_features", model.encode_words(prompts, words))
    distillation = distilling(words, expected["target_words"], settings["temperature"])
    regularisation = apart(model, prompts, words, phrases)
    expected.scaled("distillation", distillation)
    expected.scaled("regularisation", regularisation)
    loss = settings["lambda_distil"] * distillation + settings["lambda_gpt"] * regularisation
    expected.scaled("loss", loss)
    loss.backward()
    for name, parameter in model.method.named_parameters():
        expected.relative(f"grad.{name}", parameter.grad)

    oti, losses, grads = settings["oti"], list[Tensor](), list[Tensor]()
    templates = iter(oti["templates"])

    def of_words(words: Tensor) -> Tensor:
        shown = [around_word(model.backbone.tokenizer, template.split("{}")) for template in next(templates)]
        of_images = apart(model, shown, words, expected["image_features"])
        losses.append(inversion(of_images, apart(model, prompts, words, phrases)))
        grads.append(torch.autograd.grad(losses[-1], words, retain_graph=True)[0])
        return losses[-1]

    average = inverted(expected["oti.start"], of_words, oti["steps"])
    assert next(templates, None) is None
    expected.scaled("oti.losses", torch.stack(losses))
    expected.relative("oti.grad", grads[0])
    expected.scaled("oti.ema", average)
