"""Both text paths on edits as such, without a method around them: the same features and gradients in any budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from checks import scaled
from torch import Tensor, nn

from adapt import AdaptError, Backbone
from adapt.edits import Attention, Bypass, Edit, Parallel, Replace, Tokens
from adapt.engine import blocks as computing
from adapt.engine import text
from adapt.engine.text import FastText, PlainText, active_dropout, reason_against
from adapt.prompts import Prompt

WIDTH = 128
START, A, PHOTO, CAT, END = 49406, 320, 1125, 2368, 49407
PROMPTS = [
    Prompt((START, A, A, CAT, END), (None, 0, 1, None, None)),
    Prompt((START, A, A, PHOTO, PHOTO, CAT, END), (None, 0, 1, None, None, None, None)),
    Prompt((START, A, A, END), (None, 0, 1, None)),
]
ENOUGH, NOTHING = 2**40, 1  # bytes


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(4)).mul_(0.1).requires_grad_()


def module(seed: int, out: int = WIDTH) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(WIDTH, out)


def norm(seed: int) -> nn.LayerNorm:
    torch.manual_seed(seed)
    other = nn.LayerNorm(WIDTH)
    nn.init.normal_(other.weight, 1, 0.3)
    nn.init.normal_(other.bias)
    return other


EDITS: dict[str, list[Edit]] = {
    "none": [],
    "shared tokens": [Tokens(values(2)), Tokens(values(2).detach() + 0.1, block=1)],
    "tokens of a class": [Tokens(values(3, 2)), Tokens(values(3, 2).detach() + 0.1, block=2)],
    "tokens of an image": [Tokens(values(2, 1, 2)), Tokens(values(2), block=1)],
    "tokens of a block": [Tokens(values(3), 1, enters=True), Tokens(values(3).detach() + 0.1, 2)],
    "blended tokens": [Tokens(values(3), 0, enters=True), Tokens(values(3).detach() + 0.1, 2, share=0.6)],
    "a block's tokens of a class": [Tokens(values(3, 2), 1, enters=True), Tokens(values(2), 2, share=0.6)],
    "a block's tokens of an image": [Tokens(values(2, 1, 2), 1, enters=True), Tokens(values(2), 2, share=0.6)],
    "weights from a block on": [
        Tokens(values(2), 1, enters=True),
        Attention(2, lambda scores, learned, _: (scores * (1 + learned[..., None].float())).softmax(-1), True),
    ],
    "a projection": [Replace(0, "v", module(1)), Replace(2, "out", module(2))],
    "beside a site": [Parallel(0, "attn", module(1)), Parallel(2, "mlp", module(2))],
    "beside a site, behind its norm": [
        Parallel(1, "attn", module(1), normed=True),
        Parallel(2, "mlp", module(2), True),
    ],
    "beside blocks": [Parallel(0, "block", module(1)), Parallel(2, "block", module(2))],
    "beside blocks, behind their norms": [Parallel(0, "block", module(1), True), Parallel(2, "block", module(2), True)],
    "norms": [Replace(0, "norm1", norm(1)), Replace(2, "norm1", norm(2)), Replace(2, "norm2", norm(3))],
    "norms under modules that read them": [Replace(2, "norm1", norm(2)), Parallel(2, "block", module(2), True)],
    "the tower's own parts": [Replace(None, "final_norm", norm(1)), Replace(None, "projection", module(2, 64))],
    "a block skipped": [Bypass(1, module(1))],
    "the last block skipped": [Bypass(2, module(1))],
    "weights": [Tokens(values(2)), Attention(1, lambda scores, *_: (2 * scores).softmax(-1))],
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", EDITS)
def test_both_paths_agree_in_any_budget(name: str, checkpointing: bool, open_clip: Backbone) -> None:
    edits = EDITS[name]
    tensors = [edit.values for edit in edits if isinstance(edit, Tokens) and edit.values.requires_grad]
    tensors += [p for edit in edits if not isinstance(edit, Tokens | Attention) for p in edit.module.parameters()]
    expected: list[Tensor] = []
    for path in (PlainText(open_clip, PROMPTS), FastText(open_clip, PROMPTS, checkpointing)):
        for budget in (ENOUGH, NOTHING):
            features = path(edits, budget)
            assert features.shape == ((2, 3, 64) if "image" in name else (3, 64))
            gradients = torch.autograd.grad(features.sin().sum(), tensors) if tensors else ()
            expected = expected or [features, *gradients]
            assert all(scaled(found, known) < 1e-5 for found, known in zip((features, *gradients), expected))
            with torch.no_grad():
                assert scaled(path(edits, budget), features) < 1e-5
    unedited = PlainText(open_clip, PROMPTS)([], ENOUGH)
    assert name == "none" or scaled(expected[0], unedited) > 1e-4


def test_tokens_enter_behind_the_first_and_are_seen_from_there_on(open_clip: Backbone) -> None:
    """In words of the tower: its blocks on all tokens, a causal mask, and the end of text moved by as many."""
    prompt = Prompt((START, A, PHOTO, CAT, END), (None,) * 5)
    tokens = values(3).detach()
    tower: Any = open_clip.model
    x = tower.token_embedding(torch.tensor([prompt.ids])) + tower.positional_embedding[:5]
    for number, block in enumerate(tower.transformer.resblocks):
        if number == 1:
            x = torch.cat([x[:, :1], tokens[None], x[:, 1:]], dim=1)
        x = block(x, attn_mask=torch.full([x.shape[1]] * 2, -torch.inf).triu(1))
    expected = tower.ln_final(x[:, -1]) @ tower.text_projection
    for path in (PlainText(open_clip, [prompt]), FastText(open_clip, [prompt])):
        assert scaled(path([Tokens(tokens, 1, enters=True)], ENOUGH), expected) < 1e-5


def test_a_share_of_one_overwrites_and_of_zero_leaves(open_clip: Backbone) -> None:
    entering, later = Tokens(values(2).detach(), 0, enters=True), values(2).detach() + 0.1
    for path in (PlainText(open_clip, PROMPTS), FastText(open_clip, PROMPTS)):
        overwritten = path([entering, Tokens(later, 1)], ENOUGH)
        assert torch.equal(path([entering, Tokens(later, 1, share=1.0)], ENOUGH), overwritten)
        assert scaled(path([entering, Tokens(later, 1, share=1 - 1e-7)], ENOUGH), overwritten) < 1e-5
        left = path([entering, Tokens(later, 1, share=0.0)], ENOUGH)
        assert torch.equal(left, path([entering], ENOUGH))
        assert scaled(left, overwritten) > 1e-3


def test_a_prompt_without_room_for_entering_tokens_needs_the_fast_path(open_clip: Backbone) -> None:
    long = [Prompt((START, *[CAT] * 73, END), (None,) * 75), PROMPTS[0]]
    fits, edits = [Prompt(long[0].ids[2:], (None,) * 73)], [Tokens(values(4), 1, enters=True)]
    assert FastText(open_clip, long)(edits, ENOUGH).shape == (2, 64)
    assert scaled(PlainText(open_clip, fits)(edits, ENOUGH), FastText(open_clip, fits)(edits, ENOUGH)) < 1e-5
    with pytest.raises(AdaptError, match=r"a prompt has 75 tokens, but 4 of the 77 tokens .* leave fast out"):
        PlainText(open_clip, long)(edits, ENOUGH)


@pytest.mark.parametrize(("checkpointing", "blocks"), [(True, 3), (False, 0)])
def test_blocks_are_computed_again_where_that_is_asked_for(
    checkpointing: bool, blocks: int, open_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    checkpoint = computing.checkpoint
    monkeypatch.setattr(
        computing, "checkpoint", lambda *args, **options: calls.append(1) or checkpoint(*args, **options)
    )
    path = FastText(open_clip, PROMPTS, checkpointing)
    path([Replace(0, "fc2", nn.Linear(4 * WIDTH, WIDTH))], ENOUGH)
    assert len(calls) == blocks
    with torch.no_grad():
        path([Tokens(values(2))], ENOUGH)
    assert len(calls) == blocks


def test_packings_are_made_for_one_budget_at_a_time(open_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    pack = text.pack
    monkeypatch.setattr(text, "pack", lambda prompts, *args: made.append(len(prompts)) or pack(prompts, *args))
    path = FastText(open_clip, PROMPTS)
    for budget in (ENOUGH, ENOUGH, NOTHING, NOTHING, ENOUGH):
        with torch.inference_mode():
            path([], budget)
    assert made == [3, 1, 1, 1, 3]
    path([Tokens(values(2))], ENOUGH).sum().backward()  # what was packed for predicting serves training


def test_packings_are_made_for_one_number_of_learned_tokens_at_a_time(open_clip: Backbone) -> None:
    """Of each class's own, which no longer prefix tells apart."""
    path = FastText(open_clip, PROMPTS)
    for edit in (Tokens(values(3, 2)), *(Tokens(values(3, count), 1, enters=True) for count in (2, 3))):
        assert scaled(path([edit], ENOUGH), FastText(open_clip, PROMPTS)([edit], ENOUGH)) < 1e-6


@pytest.mark.parametrize("path", [PlainText, FastText])
def test_what_the_images_of_a_batch_keep_adds_up(
    path: Any, open_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget for all classes of one image is not enough for two; without gradients nothing is kept."""
    seen: list[int] = []
    in_parts = text.in_parts
    monkeypatch.setattr(
        text,
        "in_parts",
        lambda chosen, *args, **options: seen.append(len(chosen)) or in_parts(chosen, *args, **options),
    )
    small = 1
    while path(open_clip, PROMPTS)([Tokens(values(2))], small) is not None and seen.pop() > 1:
        small *= 2  # the least that is enough for the classes of one
    path(open_clip, PROMPTS)([Tokens(values(2, 1, 2))], small)
    assert max(seen) > 1


def test_a_tower_that_the_fast_path_does_not_serve(open_clip: Backbone) -> None:
    tower = open_clip.tower("text")
    assert reason_against(tower) is None
    assert reason_against(None) == reason_against(replace(tower, text=None)) == "its blocks are not mapped"
    assert "not causal" in reason_against(replace(tower, form=replace(tower.form, causal=False)))
    assert "pools by 'cls'" in reason_against(replace(tower, form=replace(tower.form, pooling="cls")))


@pytest.mark.parametrize(
    ("make", "draws"),
    [
        (lambda: nn.Dropout(0.5), True),
        (lambda: nn.Dropout(0.0), False),
        (lambda: nn.Dropout(0.5).eval(), False),
        (lambda: nn.Linear(1, 1), False),
        (lambda: nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.1)), True),
    ],
)
def test_dropout_that_draws(make: Callable[[], nn.Module], draws: bool) -> None:
    assert active_dropout(make()) is draws
