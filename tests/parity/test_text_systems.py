"""Systems that decide by texts beyond class names, against their published implementations."""

from __future__ import annotations

import published
import pytest
import torch
from checks import scaled
from published import LIBRARIES, TOLERANCE

import adapt
from adapt.methods.descriptions import sentence

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
    monkeypatch.setattr("adapt.models.explanation.open_image", lambda image: image)
    for found, text in zip(model.explain(images), settings["explanations"], strict=True):
        _, average, *lines, _ = text.splitlines()
        reasons = found.reasons[0]
        assert reasons.class_name in text
        assert 100 * reasons.mean == pytest.approx(float(average.split()[-1]), abs=1e-4)
        assert [each for each, _ in reasons.descriptors] == [line.split("\t")[0] for line in lines]
        told = [float(line.split("\t")[1]) for line in lines]
        assert [100 * cosine for _, cosine in reasons.descriptors] == pytest.approx(told, abs=1e-4)
