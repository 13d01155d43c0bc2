"""AnoVL against its published implementation: features of patches, texts of states, maps, and learning at test time."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from published import LIBRARIES
from selection import by_turns
from torch import Generator, Tensor
from trainings import watched

import adapt
from adapt.methods import anovl
from adapt.methods.base import ImageStep

EVERY_LIBRARY = by_turns("library", LIBRARIES)
NORMAL, ABNORMAL = 0, 1
# Gradients of about 1e-7 are rounded: in fp64 they are 5e-4 from the stored ones, and so are steps of AdamW by them.
ROUNDED = 1e-3


def wrapped(library: str, settings: published.Stored, **more: Any) -> adapt.AdaptedModel:
    method = adapt.methods.AnoVL(object=settings["object"], texture=settings["texture"], **more)
    return adapt.wrap(published.backbone(library), method, ["normal", "abnormal"])


def same_texts(model: adapt.AdaptedModel, expected: published.Stored) -> Tensor:
    """Which of the published texts each of ours is, in whichever order they come: `(m,)` of the 2 x 462."""
    ours = torch.cat(model.prompt_features())
    nearest: Tensor = (ours @ _by_state(expected["text_features_all"]).T).argmax(-1)
    assert nearest.unique().numel() == len(ours)
    states = len(ours) // 2
    assert (nearest < states).tolist() == [True] * states + [False] * states
    expected.scaled("text_features_all", ours, of=lambda stored: _by_state(stored)[nearest])
    expected.scaled("text_features", F.normalize(model.class_features(), dim=-1).T)
    return nearest


def _by_state(texts: Tensor) -> Tensor:
    return texts.permute(2, 0, 1).flatten(0, 1)


def patch_scores(model: adapt.AdaptedModel, patches: Tensor) -> Tensor:
    """What the method says of patches `(b, rows, columns, e)` before any map is drawn of it: `(b, rows, columns)`."""
    step = ImageStep(model, torch.zeros(len(patches), 3, *patches.shape[1:3]))  # as many pixels as patches
    step.local_features = patches
    config = model.method.config
    model.method.config = config.model_copy(update={"smoothing": 1})
    try:
        return model.method.anomalies(step)
    finally:
        model.method.config = config


@EVERY_LIBRARY
def test_maps(library: str) -> None:
    settings, expected = published.case("anovl_map")
    model = wrapped(library, settings)
    same_texts(model, expected)
    step = ImageStep(model, expected["images"])
    maps = model.logits_and_maps(expected["images"])[1]
    scores = (step.logits / step.scale).softmax(-1)[:, ABNORMAL]  # which the published code does not scale
    found = patch_scores(model, step.local_features)
    for image, own in enumerate(step.local_features.flatten(1, 2)):
        for block in range(len(settings["features_list"])):  # whose value-wise tokens are all those of the last one
            expected.scaled(f"tokens.{image}.{2 * block}", own[None])
        whole = expected[f"pooled.{image}"][0, 0]
        expected.scaled(f"pooled.{image}", torch.cat([step.frozen_features[image, None] * whole.norm(), own])[None])
        expected.scaled(f"patch_scores.{image}", found[image])
        expected.scaled(f"map.{image}", maps[image])
        expected.scaled(f"image_score.{image}", scores[image, None])


@EVERY_LIBRARY
def test_learning_at_test_time(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method's own steps, from the published start and under the published noise."""
    settings, expected = published.case("anovl_adapt")
    config = {"steps": settings["steps"], "lr": settings["lr"], "noise": settings["noise_std"]}
    model = wrapped(library, settings, **config)
    order = same_texts(model, expected)
    step = ImageStep(model, expected["images"])
    scores = (step.logits / step.scale).softmax(-1)[:, ABNORMAL]
    for image in range(len(expected["images"])):
        drawn = _draws(expected, image, order, settings["noise_std"])
        with monkeypatch.context() as patch:
            for kind in ("rand", "randn"):
                patch.setattr(torch, kind, lambda shape, drawn=drawn, **how: next(drawn))
            with (
                watched(monkeypatch, anovl, "adaptation_loss") as losses,
                watched(monkeypatch, anovl, "PatchAdapter") as adapters,
                watched(monkeypatch, model.method, "_adapted") as adapted,
            ):
                [found] = model.logits_and_maps(expected["images"][image : image + 1])[1]
        assert next(drawn, None) is None  # all that was drawn
        patches = adapted[0][0][0]
        for block in range(len(settings["features_list"])):
            expected.scaled(f"tokens.{image}.{2 * block}", patches.flatten(0, 1)[None])
        whole = expected[f"pooled.{image}"][0, 0]
        pooled = torch.cat([step.frozen_features[image, None] * whole.norm(), patches.flatten(0, 1)])
        expected.scaled(f"pooled.{image}", pooled[None])
        expected.scaled(f"losses.{image}", torch.stack([loss for _, loss in losses]).detach())
        [(_, adapter)] = adapters
        for name, value in adapter.ad.named_parameters():
            key = f"adapter.{image}.{{}}.ad.{name}"
            start = expected[key.format("start")][order]
            expected.relative(
                key.format("end"), value - start, of=lambda end, start=start: end[order] - start, within=20 * ROUNDED
            )
        expected.scaled(f"map.{image}", found)
        plain = wrapped(library, settings)
        expected.scaled(f"patch_scores.{image}", patch_scores(plain, adapted[0][1][None])[0])
        expected.scaled(f"image_score.{image}", scores[image, None])


def _draws(expected: published.Stored, image: int, order: Tensor, noise: float) -> Any:
    """What torch would have to draw for the published start and noise of an image."""
    size = expected["text_features"].shape[0]
    for name in ("weight", "bias"):
        yield (expected[f"adapter.{image}.start.ad.{name}"][order] * size**0.5 + 1) / 2
    yield from expected[f"noise.{image}"].flatten(0, 1) / noise


@EVERY_LIBRARY
def test_the_first_gradient_at_test_time(library: str) -> None:
    """In fp64: in fp32 gradients of about 1e-7 are rounded too far to be told from wrong ones."""
    settings, expected = published.case("anovl_adapt")
    model = wrapped(library, settings)
    order = same_texts(model, expected)
    classes = F.normalize(model.class_features(), dim=-1).double()
    texts = torch.cat(model.prompt_features()).double()
    for image in range(len(expected["images"])):
        patches = expected[f"tokens.{image}.{settings['layer_index']}"].unflatten(1, (4, 4)).double()
        adapter = anovl.PatchAdapter(texts, Generator()).double()
        with torch.no_grad():
            for name, value in adapter.ad.named_parameters():
                value.copy_(expected[f"adapter.{image}.start.ad.{name}"][order])
        noise = expected[f"noise.{image}"][0]
        anovl.adaptation_loss(adapter(patches), adapter(patches + noise), classes, NORMAL).backward()
        for name, value in adapter.ad.named_parameters():
            key = f"adapter.{image}.grad.ad.{name}"
            expected.relative(key, value.grad, of=lambda stored: stored[order], within=ROUNDED)
