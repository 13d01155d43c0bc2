"""Visual tokens of LiMBeR, and the losses of VLAP and OLA-VLM, against the published codes."""

from __future__ import annotations

from functools import partial
from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt import methods
from adapt.methods import projector as alignment
from adapt.methods.base import Context
from adapt.methods.ola_vlm import embedding_losses


def projector(weight: Tensor, bias: Tensor, **settings: Any) -> Any:
    method: Any = methods.Projector(kind="linear", **settings)
    method.linear_1 = nn.Linear(*weight.shape[::-1])
    method.linear_1.load_state_dict({"weight": weight, "bias": bias})
    method.linear_2 = None
    return method


def tokens_of(method: Any, features: Tensor) -> Tensor:
    [tokens] = method.edits(None, Context(tokens={"vision": lambda: features}))
    visual: Tensor = tokens.values[:, 0]
    return visual


@pytest.mark.parametrize("name", ["limber_pooled", "limber_grid"])
def test_limber(name: str) -> None:
    """Visual tokens by a checkpoint's own names, and the map's gradients under given weights of the tokens."""
    settings, expected = published.case(name)
    tensors, implied = methods.Projector.published(expected.under("param.proj."), {})
    assert implied == {"kind": "linear"}
    count = settings["image_tokens"]
    method = projector(tensors["linear_1.weight"], tensors["linear_1.bias"], tokens=count)
    tokens = tokens_of(method, expected["features"].flatten(1)[:, None] if count else expected["features"])
    expected.scaled("tokens", tokens)
    (tokens * expected["upstream"]).sum().backward()
    for key in ("weight", "bias"):
        expected.relative(f"grad.proj.{key}", method.linear_1.get_parameter(key).grad)


def test_vlap() -> None:
    """Mapped patches, scores, assignments of the published code, loss and all gradients."""
    settings, expected = published.case("vlap")
    ways = settings["epsilon"], settings["sinkhorn_iterations"]
    method = projector(expected["param.img_projection.weight"], expected["param.img_projection.bias"])
    visual, text = expected["visual"].clone().requires_grad_(), expected["text"].clone().requires_grad_()
    mapped = tokens_of(method, visual)
    expected.scaled("mapped", mapped)
    vocabulary = F.normalize(expected["word_embeddings"], dim=-1)
    of_images, of_texts = (F.normalize(each, dim=-1) @ vocabulary.T for each in (mapped.mean(1), text))
    expected.scaled("scores_v", of_images)
    expected.scaled("scores_t", of_texts)
    log_prior = alignment.prior(expected["word_counts"][:, 0])
    assigned = [alignment.sharpened(each.detach(), log_prior, *ways) for each in (of_images, of_texts)]
    expected.scaled("q_v", assigned[0])
    expected.scaled("q_t", assigned[1])
    loss = alignment.assignment_loss(of_images, of_texts, *assigned, settings["temperature"])
    expected.relative("loss", loss.detach(), within=1e-5)
    loss.backward()
    for key in ("weight", "bias"):
        expected.relative(f"grad.img_projection.{key}", method.linear_1.get_parameter(key).grad)
    expected.relative("grad.visual", visual.grad)
    expected.relative("grad.text", text.grad)


def test_vlap_sinkhorn() -> None:
    """The transport plan of all samples to words, by the branch of the published code that its training never takes."""
    settings, expected = published.case("vlap_sinkhorn3d")
    ways = settings["epsilon"], settings["sinkhorn_iterations"]
    log_prior = alignment.prior(expected["word_counts"][:, 0])
    plan = alignment.sinkhorn(expected["scores"].flatten(0, 1), log_prior, *ways)
    expected.scaled("q", plan)
    torch.testing.assert_close(plan.sum(-1), torch.ones(len(plan)))


def test_ola() -> None:
    """Both losses and their gradients; the published mask is one of rows for the first, and its mean for the second."""
    settings, expected = published.case("ola")
    predicted, scale = expected["predicted"].clone().requires_grad_(), expected["logit_scale"].clone().requires_grad_()
    regression, contrast = embedding_losses(predicted, expected["target"], scale)
    mask = expected["mask"].float()
    first = (regression * mask).mean()
    second = settings["contrastive_loss_weight"] * contrast.mean() * mask.mean()
    expected.scaled("smooth_l1", first)
    expected.scaled("contrastive", second)
    expected.scaled("loss", first + second)
    (first + second).backward()
    expected.relative("grad.predicted", predicted.grad)
    expected.relative("grad.logit_scale", scale.grad)


def _first(stored: Tensor, row: int, count: int) -> Tensor:
    return stored[row, :count]


def test_features_of_two_towers_take_turns() -> None:
    """Rows of text and images as the reference merges them, and the gradients of both projectors."""
    settings, expected = published.case("mof_interleaved")
    tensors = {
        f"{ours}_{part}.{key}": expected[f"param.{theirs}.{place}.{key}"]
        for ours, theirs in (("linear", "mm_projector"), ("second", "dino_mm_projector"))
        for part, place in ((1, 0), (2, 2))
        for key in ("weight", "bias")
    }
    method: Any = methods.Projector(mix="interleave")
    for name in ("linear_1", "linear_2", "second_1", "second_2"):
        method.add_module(name, nn.Linear(*tensors[f"{name}.weight"].shape[::-1]))
    method.act = nn.GELU()
    method.load_state_dict(tensors)
    features = torch.cat([expected["clip_features"], expected["dino_features"]], dim=-1)
    tokens, words = iter(tokens_of(method, features)), expected["param.embed_tokens.weight"]
    loss = torch.zeros(())
    for row, (ids, mask) in enumerate(zip(expected["ids"], expected["attention_mask"], strict=True)):
        places = ids[mask.bool()].tolist()
        merged = torch.cat([next(tokens) if at == settings["image_token"] else words[at][None] for at in places])
        expected.scaled("embeds", merged, partial(_first, row=row, count=len(merged)))
        loss = loss + (merged * expected["upstream"][row, : len(merged)]).sum()
    loss.backward()
    for ours, theirs in (("linear", "mm_projector"), ("second", "dino_mm_projector")):
        for part, place in ((1, 0), (2, 2)):
            for key in ("weight", "bias"):
                parameter = method.get_parameter(f"{ours}_{part}.{key}")
                expected.relative(f"grad.{theirs}.{place}.{key}", parameter.grad)
