"""The losses of S-VCO and STIC on given log-probabilities, against the published trainers."""

from __future__ import annotations

import published
import pytest
import torch

from adapt.models.dpo import dpo_losses
from adapt.models.svco import svco_losses
from adapt.recipe.settings import DPOSettings

IMAGES, ANSWERS = ("img_chosen", "img_rejected", "no_img"), ("res_chosen", "res_rejected")
NAMES = [f"{image}_{answer}" for image in IMAGES for answer in ANSWERS]
TERMS = {
    "img_win_vs_no_img": "img_win_vs_no_img_loss", "no_img_vs_img_lose": "no_img_vs_img_lose_loss",
    "img_lose_vs_no_img": "img_lose_vs_no_img_loss", "no_img_vs_img_win": "no_img_vs_img_win_loss",
}  # fmt: skip


def test_svco() -> None:
    """Each term by itself, their sum, and the gradients of its mean."""
    settings, expected = published.case("svco")
    policy = torch.stack([expected[f"policy.{name}"] for name in NAMES], dim=-1).requires_grad_()
    gained = policy - torch.stack([expected[f"reference.{name}"] for name in NAMES], dim=-1)
    betas = [settings["betas"][term] for term in TERMS]
    for place, key in enumerate(TERMS.values()):
        only = [beta if number == place else 0.0 for number, beta in enumerate(betas)]
        expected.scaled(key, svco_losses(gained, only))
    losses = svco_losses(gained, betas)
    expected.scaled("losses", losses)
    losses.mean().backward()
    assert policy.grad is not None
    for name, gradient in zip(NAMES, policy.grad.unbind(-1), strict=True):
        expected.relative(f"grad.policy.{name}", gradient)


def test_stic() -> None:
    """DPO with the chosen answer's log-probability beside it; sums of log-probabilities over labelled tokens."""
    settings, expected = published.case("stic")
    policy = torch.stack([expected["policy_chosen"], expected["policy_rejected"]], dim=-1).requires_grad_()
    reference = torch.stack([expected["reference_chosen"], expected["reference_rejected"]], dim=-1)
    chosen = DPOSettings(beta=settings["beta"], chosen=1 / 1024)
    rewards = chosen.beta * (policy - reference)
    expected.scaled("chosen_rewards", rewards[:, 0])
    expected.scaled("rejected_rewards", rewards[:, 1])
    losses = dpo_losses(rewards, policy, chosen)
    expected.scaled("losses", losses)
    losses.mean().backward()
    assert policy.grad is not None
    for name, gradient in zip(("chosen", "rejected"), policy.grad.unbind(-1), strict=True):
        expected.relative(f"grad.policy_{name}", gradient)
    labels = expected["labels"][:, 1:]
    scores = expected["logits"][:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected.scaled("logps_chosen", scores.masked_fill(labels < 0, 0).sum(-1))
    # the released code scores other tokens for the rejected answer, which the paper does not say
    with pytest.raises(AssertionError, match="logps_noisy is off"):
        expected.scaled("logps_noisy", scores.masked_fill(labels < 0, 0).sum(-1))
