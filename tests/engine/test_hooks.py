"""Edits on the plain path: every projection is addressed rightly on every backbone, and only inside a call."""

from __future__ import annotations

import pytest
import tiny_backbones
import torch
from checks import assert_untouched, scaled, snapshot
from torch import Tensor, nn

from adapt import Backbone
from adapt.backbones.split import linear_over
from adapt.edits import Replace, Tokens
from adapt.engine.frozen import frozen
from adapt.engine.hooks import run
from adapt.prompts import Prompt

LETTERS = ("q", "k", "v", "out", "fc1", "fc2")


def features(backbone: Backbone, tower: str, images: Tensor) -> Tensor:
    return backbone.encode_image(images) if tower == "vision" else backbone.encode_text(backbone.tokenize(["a photo"]))


@pytest.mark.parametrize("backbone", tiny_backbones.WITH_VISION_BLOCKS, indirect=True)
@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("letter", LETTERS)
def test_a_projection_can_be_replaced(backbone: Backbone, tower: str, letter: str, images: Tensor) -> None:
    expected = features(backbone, tower, images)
    projection = backbone.tower(tower).blocks[1].projections[letter]
    same = linear_over(projection.weight, projection.bias)
    other = nn.Linear(same.in_features, same.out_features)
    results = []
    for module in (same, other):
        changes = [(backbone.tower(tower), [Replace(1, letter, module)])]
        results.append(run(backbone.model, changes, lambda: features(backbone, tower, images)))
    assert scaled(results[0], expected) < 1e-5
    assert scaled(results[1], expected) > 1e-4
    assert torch.equal(features(backbone, tower, images), expected)


@pytest.mark.parametrize("backbone", tiny_backbones.KINDS, indirect=True)
def test_learned_tokens_stand_where_the_prompt_keeps_their_place(backbone: Backbone) -> None:
    ids = backbone.tokenize(["photo x x", "x photo"])
    embedding = backbone.tower("text").text.embedding
    start = len(backbone.tokenizer.row("")) - 1
    prompts = [
        Prompt(tuple(ids[0].tolist()), tuple({start + 1: 0, start + 2: 1}.get(i) for i in range(ids.shape[1]))),
        Prompt(tuple(ids[1].tolist()), tuple({start: 1}.get(i) for i in range(ids.shape[1]))),
    ]
    values = torch.randn(2, embedding.weight.shape[1])
    changes = [(backbone.tower("text"), [Tokens(values)])]
    seen = run(backbone.model, changes, lambda: embedding(ids), prompts=prompts)
    assert torch.equal(seen[0, start + 1 : start + 3], values)
    assert torch.equal(seen[1, start], values[1])
    assert torch.equal(seen[1, start + 1 :], embedding(ids)[1, start + 1 :])


def test_frozen_restores_flags_after_an_error(open_clip: Backbone) -> None:
    model = open_clip.model
    model.visual.train()
    model.set_grad_checkpointing()
    before = snapshot(model)
    seen = []

    def fails() -> None:
        with frozen(model):
            seen.append(
                any(module.training or getattr(module, "grad_checkpointing", False) for module in model.modules())
            )
            seen.append(any(parameter.requires_grad for parameter in model.parameters()))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert seen == [False, False]
    assert_untouched(model, before)
    assert model.transformer.grad_checkpointing
