"""CTP and TFT: classes read the image, for their own contexts and for image features of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import perturb, scaled
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods

NAMES = ("goldfish", "red_panda", "sea cucumber")


def model_on(backbone: Backbone, **options: bool) -> AdaptedModel:
    torch.manual_seed(0)
    return perturb(adapt.wrap(backbone, methods.CTPTFT(), NAMES, **options)).eval()


def read(queries: Tensor, tokens: Tensor, reading: torch.nn.Module) -> Tensor:
    """What classes read of one image, `(n, e)` and `(l, d)` to `(n, d)`."""
    queries, tokens = ((x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
                       for x in (queries, tokens))  # fmt: skip
    scores = queries @ reading.query.weight.T @ reading.key.weight @ tokens.T
    return F.normalize((scores / len(reading.key.weight) ** 0.5).softmax(-1) @ tokens, dim=-1)


def features_of(contexts: Tensor, backbone: Backbone) -> Tensor:
    """Of classes that have these contexts `(n, k, d)`, as CoOp has them."""
    coop = adapt.wrap(backbone, methods.CoOp(n_ctx=contexts.shape[1], class_specific=True), NAMES)
    coop.method.ctx.data = contexts
    return coop.class_features()


@by_turns("library", ["open_clip", "hf_clip"])
def test_at_first_it_is_coop(library: str, images: Tensor, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(library)
    words = "a photo of a"
    ours, coop = (adapt.wrap(backbone, each(ctx_init=words), NAMES) for each in (methods.CTPTFT, methods.CoOp))
    assert scaled(ours(images), coop(images)) < 1e-6


@torch.no_grad()
def test_each_class_of_each_image_has_a_context_and_image_features_of_its_own(
    open_clip: Backbone, images: Tensor
) -> None:
    model = model_on(open_clip)
    method, step = model.method, model.step(images, torch.zeros(len(images), dtype=torch.long))
    seen, known = model.image_tokens(images), model.frozen_class_features(["a photo of a {}."])
    logits = step.logits
    for row in range(2):
        shifts = method.meta_net(read(known, seen[row], method.read))  # (n, d)
        class_features = features_of(method.ctx + shifts[:, None], open_clip)
        assert scaled(step.class_features[row], class_features) < 1e-5
        tuned = step.features[row] + method.tuning(read(class_features, seen[row], method.guided))
        expected = step.scale * (F.normalize(tuned, dim=-1) * class_features).sum(-1)
        assert scaled(logits[row], expected) < 1e-5


def test_both_text_paths_take_a_context_for_each_class_of_each_image(open_clip: Backbone, images: Tensor) -> None:
    fast, plain = (model_on(open_clip, fast=fast) for fast in (True, False))
    assert (fast.text_path, plain.text_path) == ("fast", "plain")
    assert scaled(fast(images), plain(images)) < 1e-5


def test_features_alone_are_refused(open_clip: Backbone, images: Tensor) -> None:
    model = model_on(open_clip)
    with pytest.raises(AdaptError, match="ctp_tft reads images"):
        model.logits(model.image_features(images))
    with pytest.raises(AdaptError, match="reads tokens of the vision tower"):
        model.class_features(model.image_features(images))
