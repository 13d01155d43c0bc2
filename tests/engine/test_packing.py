"""Which rows the fast path computes: the shared prefix once, every suffix, nothing else."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import loss_of, scaled
from torch import Tensor

import adapt
from adapt import AdaptedModel, Backbone
from adapt.edits import Attention
from adapt.engine import text
from adapt.engine.attention import Packing, pack, prefix_suffix_attention
from adapt.prompts import Prompt, shared_prefix

NAMES = ("goldfish", "red_panda", "sea cucumber")
CPU = torch.device("cpu")
# three texts that share two tokens, of lengths 6, 3 and 6; the second has learned tokens at 1 and 2
PROMPTS = (
    Prompt((9, 1, 2, 3, 4, 8), (None, 0, 1, None, None, None)),
    Prompt((9, 1, 8), (None, 0, None)),
    Prompt((9, 1, 5, 6, 7, 8), (None, 0, 1, None, None, None)),
)


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Packing]:
    """All packings that are made from now on."""
    made: list[Packing] = []

    def recorded(*args: Any) -> Packing:
        made.append(pack(*args))
        return made[-1]

    monkeypatch.setattr(text, "pack", recorded)
    return made


def encode(backbone: Backbone, method: Any, packings: list[Packing], **options: Any) -> tuple[AdaptedModel, Packing]:
    model = adapt.wrap(backbone, method, NAMES, True, **options)
    packings.clear()  # the check of two prompts
    model.class_features()
    return model, packings[0]


def test_the_prefix_stands_once_and_every_suffix_follows() -> None:
    packing = pack(PROMPTS, 2, 0, CPU)
    assert packing.rows == 2 + 4 + 1 + 4
    assert packing.ids.tolist() == [9, 1, 8, 2, 3, 4, 8, 5, 6, 7, 8]
    assert packing.positions.tolist() == [0, 1, 2, 2, 3, 4, 5, 2, 3, 4, 5]
    assert [(group.start, group.classes, group.length) for group in packing.groups] == [(0, 1, 1), (1, 2, 4)]
    assert packing.ends[packing.order].tolist() == [6, 2, 10]


def test_learned_tokens_are_placed_by_slot_and_class() -> None:
    packing = pack(PROMPTS, 0, 10, CPU)
    places = zip(packing.slot_class.tolist(), packing.slot_index.tolist(), packing.slot_rows.tolist())
    assert sorted(places) == [(10, 0, 4), (10, 1, 5), (11, 0, 1), (12, 0, 10), (12, 1, 11)]


def test_rows_say_whether_they_are_learned_or_of_the_name() -> None:
    prompts = [replace(prompt, name=range(3, len(prompt.ids) - 1)) for prompt in PROMPTS]
    packing = pack(prompts, 2, 10, CPU)
    assert packing.ids[packing.learned].tolist() == [1, 2, 5]
    assert packing.ids[packing.named].tolist() == [3, 4, 6, 7]
    assert dict(zip(packing.slot_rows.tolist(), packing.slot_class.tolist())) == {1: 10, 3: 10, 7: 12}


def test_one_prompt_may_be_all_prefix_but_its_end() -> None:
    packing = pack(PROMPTS[:1], 5, 0, CPU)
    assert (packing.ids.tolist(), packing.ends.tolist(), packing.order.tolist()) == ([9, 1, 2, 3, 4, 8], [5], [0])
    nothing_learned = pack([Prompt((9, 8), (None, None))], 1, 0, CPU)
    assert nothing_learned.slot_rows.tolist() == nothing_learned.slot_class.tolist() == []


def test_what_all_steps_share_cannot_be_changed() -> None:
    packing = pack(PROMPTS, 2, 0, CPU)
    for each, name in ((packing, "prefix"), (packing.groups[0], "start")):
        with pytest.raises(FrozenInstanceError):
            setattr(each, name, 1)


def test_the_prefix_leaves_an_end_to_every_prompt() -> None:
    assert shared_prefix(PROMPTS, per_class=False) == 2
    assert shared_prefix(PROMPTS, per_class=True) == 1
    assert shared_prefix(PROMPTS[:1] * 2, per_class=False) == 5


def test_equal_tokens_with_other_learned_tokens_are_no_prefix() -> None:
    grades = [Prompt((9, 1, 1, 8), (None, 0, slot, None)) for slot in (1, 2)]
    assert shared_prefix(grades, per_class=False) == 2
    assert shared_prefix([grades[0], replace(grades[0], slots=(None, 0, None, None))], per_class=False) == 2


@pytest.mark.parametrize(("prefix", "ends_only"), [(0, False), (2, False), (2, True), (0, True)])
def test_attention_over_packed_rows_is_causal_attention_of_each_prompt(prefix: int, ends_only: bool) -> None:
    packing = pack(PROMPTS, prefix, 0, CPU)
    q, k, v = torch.randn(3, packing.rows, 8)
    queries = q[packing.ends] if ends_only else q
    mixed = prefix_suffix_attention(queries, k, v, packing, 2, ends_only)
    ends = mixed if ends_only else mixed[packing.ends]
    for i, prompt in enumerate(PROMPTS):
        last = int(packing.ends[packing.order][i])
        rows = [*range(prefix), *range(last - (len(prompt.ids) - prefix) + 1, last + 1)]
        heads = (x[rows].unflatten(-1, (2, -1)).transpose(0, 1) for x in (q, k, v))
        expected = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(0, 1).flatten(1)[-1]
        assert scaled(ends[packing.order][i], expected) < 1e-6


def _between_learned(scores: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Twice the weight between learned tokens."""
    return scores.softmax(-1) * (1 + (queries[..., :, None] & keys[..., None, :]))


@pytest.mark.parametrize("names_seen", [False, True])
@pytest.mark.parametrize(("prefix", "ends_only"), [(0, False), (1, True), (1, False), (2, True), (2, False)])
def test_other_weights_over_packed_rows_are_those_of_each_prompt(
    prefix: int, ends_only: bool, names_seen: bool
) -> None:
    prefix = min(prefix, 1) if names_seen else prefix  # a prompt that reads its name is shared up to there
    prompts = [replace(prompt, name=range(3, len(prompt.ids) - 1)) for prompt in PROMPTS]
    packing, edit = pack(prompts, prefix, 0, CPU), Attention(0, _between_learned, names_seen)
    q, k, v = torch.randn(3, 2, packing.rows, 8)  # of two images
    mixed = prefix_suffix_attention(q[:, packing.ends] if ends_only else q, k, v, packing, 2, ends_only, edit)
    for i, prompt in enumerate(prompts):
        length, last = len(prompt.ids), int(packing.ends[packing.order][i])
        rows = [*range(prefix), *range(last - (length - prefix) + 1, last + 1)]
        learned = torch.tensor([slot is not None for slot in prompt.slots])
        named = torch.tensor([at in prompt.name for at in range(length)])
        hidden = torch.ones(length, length).triu(1).bool() & ~(names_seen & learned[:, None] & named)
        queries, keys, values = (x[:, rows].unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v))
        scores = (queries @ keys.transpose(-1, -2) / 2).masked_fill(hidden, float("-inf"))
        expected = (_between_learned(scores, learned, learned) @ values).transpose(1, 2).flatten(2)
        found = mixed[:, [int(packing.order[i])]] if ends_only else mixed[:, rows]
        assert scaled(found, expected[:, -1:] if ends_only else expected) < 1e-6


@pytest.mark.parametrize(
    ("config", "prefix"),
    [
        ({"n_ctx": 8}, 9),
        ({"n_ctx": 8, "class_position": "middle"}, 5),
        ({"n_ctx": 8, "class_position": "front"}, 1),
        ({"n_ctx": 8, "class_specific": True}, 1),
        ({"ctx_init": "a photo of a"}, 5),
    ],
    ids=str,
)
def test_coop_shares_the_start_and_the_context_before_the_name(
    config: dict[str, Any], prefix: int, open_clip: Backbone, packings: list[Packing]
) -> None:
    model, packing = encode(open_clip, adapt.methods.CoOp(**config), packings)
    prompts = [model.method.prompts(open_clip.tokenizer, name)[0] for name in NAMES]
    assert packing.prefix == prefix
    assert packing.rows == prefix + sum(len(prompt.ids) - prefix for prompt in prompts)


@pytest.mark.parametrize("method", [adapt.methods.MaPLe(depth=3), adapt.methods.IVLP(depth_text=3, depth_vision=3)])
def test_prompts_that_are_overwritten_stand_in_the_shared_prefix(
    method: Any, open_clip: Backbone, packings: list[Packing]
) -> None:
    _, packing = encode(open_clip, method, packings)
    assert (packing.prefix, packing.slot_rows.tolist()) == (5, [1, 2])


def test_cocoop_shares_the_rows_of_the_prefix_among_the_classes_of_an_image(
    open_clip: Backbone, images: Tensor, packings: list[Packing]
) -> None:
    model = adapt.wrap(open_clip, adapt.methods.CoCoOp(), NAMES, True)
    packings.clear()
    model(images)
    assert [(packing.prefix, packing.slot_rows.tolist()) for packing in packings] == [(5, [1, 2, 3, 4])]


def test_active_dropout_switches_sharing_off(open_clip: Backbone, packings: list[Packing]) -> None:
    model, noisy = encode(open_clip, adapt.methods.LoRA(dropout=0.5), packings)
    model.eval().class_features()
    assert (noisy.prefix, packings[-1].prefix) == (0, 5)


def test_dropout_on_vision_only_keeps_sharing(open_clip: Backbone, packings: list[Packing]) -> None:
    _, packing = encode(open_clip, adapt.methods.LoRA(dropout=0.5, towers=("vision",)), packings)
    assert packing.prefix == 5


def test_packings_are_made_once(open_clip: Backbone, images: Tensor, packings: list[Packing]) -> None:
    model, _ = encode(open_clip, adapt.methods.CoOp(n_ctx=4), packings)
    for _ in range(3):
        loss_of(model, images, torch.zeros(len(images), dtype=torch.long)).backward()
    assert len(packings) == 1


@pytest.mark.parametrize("ends_only", [False, True])
@pytest.mark.parametrize("images", [(), (2,)])
def test_attention_to_all_rows_is_torchs_to_the_bit(ends_only: bool, images: tuple[int, ...]) -> None:
    packing = pack(PROMPTS, 2, 0, CPU)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*images, packing.rows, 8, generator=draw) for _ in "qkv")
    assert packing.hidden is not None
    q, hidden = (q[..., packing.ends, :], packing.hidden[packing.ends]) if ends_only else (q, packing.hidden)
    own = prefix_suffix_attention(q, k, v, packing, 2, ends_only)
    q, k, v = (x.unflatten(-1, (2, -1)).transpose(-3, -2) for x in (q, k, v))
    assert torch.equal(own, F.scaled_dot_product_attention(q, k, v, hidden).transpose(-3, -2).flatten(-2))
