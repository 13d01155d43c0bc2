"""Edits on the plain path: every projection is addressed rightly on every backbone, and only inside a call."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import tiny_backbones
import tiny_llms
import torch
from checks import assert_untouched, scaled, snapshot
from selection import by_turns
from torch import Tensor, nn

from adapt import Backbone
from adapt.backbones.locks import frozen
from adapt.backbones.split_attention import linear_over
from adapt.backbones.tower import NORMS
from adapt.edits import Attention, Bypass, LowRank, Parallel, Replace, Tokens
from adapt.engine.hooks import _bypass, run
from adapt.prompts import Prompt

LETTERS = ("q", "k", "v", "out", "fc1", "fc2")


def features(backbone: Backbone, tower: str, images: Tensor) -> Tensor:
    return backbone.encode_image(images) if tower == "vision" else backbone.encode_text(backbone.tokenize(["a photo"]))


@by_turns("backbone", tiny_backbones.WITH_VISION_BLOCKS, indirect=True)
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


@by_turns("backbone", tiny_backbones.WITH_VISION_BLOCKS, indirect=True)
@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("part", ["norm1", "norm2", "pre_norm", "final_norm", "projection"])
def test_a_norm_and_the_last_projection_can_be_replaced(
    backbone: Backbone, tower: str, part: str, images: Tensor
) -> None:
    there = backbone.tower(tower)
    block, frozen = (1, getattr(there.blocks[1], part)) if part in NORMS else (None, there.parts.get(part))
    if frozen is None or isinstance(frozen, nn.Identity):
        assert (tower, part) in {("text", "pre_norm"), ("vision", "pre_norm"), ("vision", "projection")}
        return
    expected = features(backbone, tower, images)
    if part == "projection":
        bias = getattr(getattr(frozen.owner, frozen.name), "bias", None)
        same: nn.Module = linear_over(frozen.weight, bias)
        other: nn.Module = nn.Linear(same.in_features, same.out_features)
    else:
        same, other = copy.deepcopy(frozen), nn.LayerNorm(there.width)
        nn.init.normal_(other.weight)
    before = dict(backbone.model.named_parameters())
    found = [
        run(backbone.model, [(there, [Replace(block, part, each)])], lambda: features(backbone, tower, images))
        for each in (same, other)
    ]
    assert scaled(found[0], expected) < 1e-5
    assert scaled(found[1], expected) > 1e-4
    assert torch.equal(features(backbone, tower, images), expected)
    after = dict(backbone.model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@by_turns("backbone", tiny_backbones.WITH_VISION_BLOCKS, indirect=True)
@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_module_beside_a_block_reads_its_input(
    backbone: Backbone, tower: str, normed: bool, checkpointing: bool, images: Tensor
) -> None:
    """A block whose module takes off what it added, and adds what the block beside it does, is another block."""
    there = backbone.tower(tower)
    block = there.blocks[1]
    seen: list[Tensor] = []

    class Keeping(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    beside = Keeping(there.width, there.width)
    entered: list[Tensor] = []
    handle = block.module.register_forward_hook(lambda module, inputs, output: entered.append(inputs[0]))
    edits = [Parallel(1, "block", beside, normed)]
    options = {"checkpointing": checkpointing}
    expected = features(backbone, tower, images)
    entered.clear()
    found = run(backbone.model, [(there, edits)], lambda: features(backbone, tower, images), **options)
    handle.remove()
    torch.testing.assert_close(seen[0], block.norm1(entered[0]) if normed else entered[0])
    assert scaled(found, expected) > 1e-4
    found.sum().backward()
    assert beside.weight.grad is not None
    nn.init.zeros_(beside.weight)
    nn.init.zeros_(beside.bias)
    nothing = run(backbone.model, [(there, edits)], lambda: features(backbone, tower, images))
    assert scaled(nothing, expected) < 1e-6
    assert torch.equal(features(backbone, tower, images), expected)


@pytest.mark.parametrize("kind", ["gpt_neox", "phi3", "llama"])  # rows in turn, one after the other, apart
@pytest.mark.parametrize("letters", ["q", "k", "qv"])
def test_projections_of_a_decoder_can_be_replaced(kind: str, letters: str) -> None:
    backbone = tiny_llms.vision_llm(kind)
    tower, ids = backbone.tower("decoder"), torch.tensor([[2, 5, 7, 9], [2, 8, 6, 4]])
    language: nn.Module = backbone.model["llm"]
    linears = [linear_over(p.weight, p.bias) for p in (tower.blocks[1].projections[letter] for letter in letters)]
    others = [nn.Linear(linear.in_features, linear.out_features) for linear in linears]
    expected = language(ids).logits
    same, changed = (
        run(backbone.model, [(tower, [*map(Replace, [1] * len(letters), letters, modules)])], lambda: language(ids))
        for modules in (linears, others)
    )
    assert scaled(same.logits, expected) < 1e-5
    assert scaled(changed.logits, expected) > 1e-4
    assert torch.equal(language(ids).logits, expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_are_computed_again_only_where_that_is_asked_for(checkpointing: bool, open_clip: Backbone) -> None:
    tower, ids, width = open_clip.tower("text"), open_clip.tokenize(["a photo"]), 128
    bypass, beside, linear = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4 * width)
    edits = [Replace(0, "fc1", linear), Bypass(1, bypass), Parallel(2, "mlp", beside)]
    calls: list[int] = []
    for index, block in enumerate(tower.blocks):
        block.norm2.register_forward_hook(lambda *_, index=index: calls.append(index))
    options = {"checkpointing": True} if checkpointing else {}
    features = run(open_clip.model, [(tower, edits)], lambda: open_clip.encode_text(ids), **options)
    assert calls == [0, 2]
    features.sum().backward()
    assert sorted(calls) == ([0, 0, 2, 2] if checkpointing else [0, 2])
    assert all(module.weight.grad is not None for module in (bypass, beside, linear))


@pytest.mark.parametrize(("returns", "expected"), [(0, 5), (1, (5,)), (3, (5, None, None))])
def test_a_skipped_block_returns_as_many_values_as_it_did(returns: int, expected: object) -> None:
    assert _bypass(nn.Identity(), returns, 5, "a mask") == expected


@pytest.mark.parametrize("merge", [False, True])
def test_updates_are_folded_into_weights_only_where_that_is_asked_for(merge: bool) -> None:
    backbone = tiny_llms.vision_llm("llama")
    tower, projection = backbone.tower("decoder"), backbone.tower("decoder").blocks[0].projections["q"]
    update = LowRank(0, "q", torch.randn(1, 32, 2), torch.randn(1, 32, 2), 0.5)
    x, options = torch.randn(1, 3, 32), {"merge": True} if merge else {}
    seen = []

    def compute() -> Tensor:
        seen.append("forward" in vars(projection.module))
        return projection.module(x)

    found = run(backbone.model, [(tower, [update])], compute, **options)
    assert seen == [merge]
    assert scaled(found, projection.module(x) + 0.5 * x @ update.down[0] @ update.up[0].T) < 1e-5


def test_other_weights_serve_a_block_that_takes_the_length_first(open_clip: Backbone) -> None:
    tower, x = open_clip.tower("text"), torch.randn(2, 5, 128)
    length_first = replace(tower, blocks=tuple(replace(block, batch_first=False) for block in tower.blocks))
    prompts = [Prompt((1, 2, 3, 4, 5), (None, 0, None, None, None))] * 2
    edits = [Tokens(torch.zeros(1, 128)), Attention(1, lambda scores, learned, _: (2 * scores).softmax(-1))]
    attn = tower.blocks[1].attn
    expected = run(open_clip.model, [(tower, edits)], lambda: attn(x, x, x)[0], prompts=prompts)
    turned = x.transpose(0, 1)
    found = run(open_clip.model, [(length_first, edits)], lambda: attn(turned, turned, turned)[0], prompts=prompts)
    assert scaled(found.transpose(0, 1), expected) < 1e-6
    assert scaled(attn(x, x, x)[0], expected) > 1e-3


@by_turns("backbone", tiny_backbones.KINDS, indirect=True)
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
