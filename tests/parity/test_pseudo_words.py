"""Pseudo-words against the published Pic2Word, LinCIR and SEARLE."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adapt
from adapt import methods
from adapt.methods.pseudo_word import apart, around_names, distilling, inversion, inverted, matching, rebuilding
from adapt.prompts import around_word
from adapt.retrieval.index import slerp


def built(library: str, expected: Any) -> Any:
    """Our own map with the published weights, which is LinCIR's."""
    hidden = len(expected["param.layers.0.bias"])
    model: Any = adapt.wrap(published.backbone(library), methods.PseudoWord(hidden=hidden), ()).eval()
    model.method.load_state_dict(expected.under("param."))
    return model


def filled(model: Any, texts: list[str], word: str) -> list[Any]:
    return [around_word(model.backbone.tokenizer, text.split(word)) for text in texts]


@pytest.mark.parametrize("library", published.LIBRARIES)
def test_lincir(library: str) -> None:
    settings, expected = published.case("lincir")
    model = built(library, expected)
    settings.equal("replaced", [" $ ".join(around_names(text)).strip() for text in settings["captions"]])
    right = expected["caption_features"]
    noisy = right + expected["amount"][:, None] * expected["noise"]
    words = model.method.layers(noisy)  # as published, of another length than one
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
    """With its own map, which ours is not; the losses and queries are the same."""
    settings, expected = published.case("pic2word")
    weights = expected.under("param.")
    linear = [_linear(weights, name) for name in ("layers.0.0", "layers.1.0", "fc_out")]
    phi = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])
    model: Any = adapt.wrap(published.backbone(library), methods.PseudoWord(), ()).eval()
    model.method.layers = phi
    with torch.no_grad():
        features = model.image_features(expected["images"], unit=False)
    expected.scaled("image_features", features)
    words = phi(features)
    expected.scaled("pseudo_words", words)
    [prompt] = filled(model, [settings["training_prompt"] + " *"], "*")
    expected.scaled("text_features", model.encode_words([prompt] * len(words), words))
    loss = matching(model, prompt, words, F.normalize(features, dim=-1))
    expected.scaled("loss", loss)
    loss.backward()
    for name, layer in zip(("layers.0.0", "layers.1.0", "fc_out"), linear, strict=True):
        expected.relative(f"grad.{name}.weight", layer.weight.grad)
        expected.relative(f"grad.{name}.bias", layer.bias.grad)
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
    model = built(library, expected)
    with torch.no_grad():
        phrases = model.text_features(settings["phrases"], unit=False)
    expected.scaled("phrase_features", phrases)
    prompts = filled(model, settings["replaced"], "$")

    words = model.method.layers(expected["image_features"])  # as published, of another length than one
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


def _linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    layer = nn.Linear(*reversed(weights[f"{name}.weight"].shape))
    layer.load_state_dict({kind: weights[f"{name}.{kind}"] for kind in ("weight", "bias")})
    return layer
