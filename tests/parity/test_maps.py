"""AnoVL against its published implementation: features of patches, texts of states, maps, and learning at test time."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from checks import relative, scaled
from published import LIBRARIES, TOLERANCE
from torch import Generator, Tensor

import adapt
from adapt.methods.anovl import PatchAdapter, adaptation_loss
from adapt.methods.base import ImageStep

EVERY_LIBRARY = pytest.mark.parametrize("library", LIBRARIES)
NORMAL, ABNORMAL = 0, 1
# Gradients of about 1e-7 are rounded: in fp64 they are 5e-4 from the stored ones, and so are steps of AdamW by them.
ROUNDED = 1e-3


def wrapped(library: str, settings: dict[str, Any], **more: Any) -> adapt.AdaptedModel:
    method = adapt.methods.AnoVL(object=settings["object"], texture=settings["texture"], **more)
    return adapt.wrap(published.backbone(library), method, ["normal", "abnormal"])


def same_texts(model: adapt.AdaptedModel, expected: dict[str, Tensor]) -> Tensor:
    """Which of the published texts each of ours is, in whichever order they come: `(m,)` of the 2 x 462."""
    ours = torch.cat(model.prompt_features())
    theirs = expected["text_features_all"].permute(2, 0, 1).flatten(0, 1)
    nearest: Tensor = (ours @ theirs.T).argmax(-1)
    assert nearest.unique().numel() == len(ours) == len(theirs)
    assert scaled(ours, theirs[nearest]) < TOLERANCE
    return nearest


@EVERY_LIBRARY
def test_maps(library: str) -> None:
    settings, expected = published.case("anovl_map")
    model = wrapped(library, settings)
    same_texts(model, expected)
    assert scaled(F.normalize(model.class_features(), dim=-1), expected["text_features"].T) < TOLERANCE
    step = ImageStep(model, expected["images"])
    maps = model.logits_and_maps(expected["images"])[1]
    scores = (step.logits / step.scale).softmax(-1)[:, ABNORMAL]  # which the published code does not scale
    for image in range(len(expected["images"])):
        tokens = expected[f"tokens.{image}.{settings['layer_index']}"][0]
        assert scaled(step.local_features[image].flatten(0, 1), tokens) < TOLERANCE
        assert scaled(maps[image], expected[f"map.{image}"]) < TOLERANCE
        assert scaled(scores[image], expected[f"image_score.{image}"][0]) < TOLERANCE
    unsmoothed = wrapped(library, settings, smoothing=1).logits_and_maps(expected["images"])[1]
    corners = unsmoothed[0][::31, ::31]  # where bilinear values are those of the patches
    assert scaled(corners, expected["patch_scores.0"][::3, ::3]) < TOLERANCE


@EVERY_LIBRARY
def test_learning_at_test_time(library: str) -> None:
    settings, expected = published.case("anovl_adapt")
    model = wrapped(library, settings, steps=settings["steps"])
    order = same_texts(model, expected)
    classes = F.normalize(model.class_features(), dim=-1).double()
    texts = torch.cat(model.prompt_features()).double()
    for image in range(len(expected["images"])):
        patches = expected[f"tokens.{image}.{settings['layer_index']}"].unflatten(1, (4, 4)).double()
        adapter = PatchAdapter(texts, Generator()).double()
        names = {"weight": f"adapter.{image}.{{}}.ad.weight", "bias": f"adapter.{image}.{{}}.ad.bias"}
        with torch.no_grad():
            for name, key in names.items():
                getattr(adapter.ad, name).copy_(expected[key.format("start")][order])
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=settings["lr"])
        for number, noise in enumerate(expected[f"noise.{image}"]):
            optimizer.zero_grad()
            loss = adaptation_loss(adapter(patches), adapter(patches + noise), classes, NORMAL)
            assert scaled(loss, expected[f"losses.{image}"][number]) < TOLERANCE
            loss.backward()
            for name, key in names.items() if number == 0 else ():
                gradient = getattr(adapter.ad, name).grad
                assert relative(gradient, expected[key.format("grad")][order]) < ROUNDED, name
            optimizer.step()
        for name, key in names.items():
            assert relative(getattr(adapter.ad, name), expected[key.format("end")][order]) < ROUNDED, name
        model.method._adapted = lambda *_, adapter=adapter, patches=patches: adapter(patches)[0].detach().float()
        [found] = model.logits_and_maps(expected["images"][image : image + 1])[1]
        assert scaled(found, expected[f"map.{image}"]) < TOLERANCE
