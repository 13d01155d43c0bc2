"""Edits sorted by where they act; two that claim one place are refused."""

from __future__ import annotations

import copy

import pytest
import tiny_backbones
import tiny_fusion
import tiny_llms
import tiny_natives
import torch
from checks import assert_untouched, snapshot
from torch import nn

import adapt
from adapt import AdaptError, Backbone
from adapt.edits import After, Attention, Bypass, Edit, LowRank, Outputs, Parallel, Replace, Tokens
from adapt.engine.plan import plan
from adapt.engine.text import FastText, PlainText
from adapt.prompts import Prompt

SHARED, PER_CLASS, PER_IMAGE = (Tokens(torch.zeros(shape)) for shape in ((2, 4), (3, 2, 4), (5, 1, 2, 4)))
DEEP = Tokens(torch.zeros(2, 4), block=1)
ENTERING = Tokens(torch.zeros(2, 4), block=1, enters=True)
LINEAR = nn.Linear(4, 4)
TOWER = tiny_backbones.backbone("open_clip").tower("text")


def attention(names_seen: bool = False) -> Attention:
    return Attention(0, lambda scores, queries, keys: scores.softmax(-1), names_seen)


def test_edits_are_found_by_their_place() -> None:
    asked = plan(TOWER, [SHARED, DEEP, Replace(1, "q", LINEAR), attention()])
    assert asked.entering is SHARED
    assert asked.overwriting == {1: DEEP}
    assert asked.replaced == {1: {"q": LINEAR}}
    assert list(asked.attention) == [0]


def test_parts_of_the_tower_itself_are_claimed_once() -> None:
    edits = [Replace(None, "projection", LINEAR), Replace(None, "final_norm", LINEAR)]
    assert plan(TOWER, edits).outer == {"projection": LINEAR, "final_norm": LINEAR}
    with pytest.raises(AdaptError, match="the same kind change projection of the text tower"):
        plan(TOWER, [edits[0], edits[0]])


def test_one_module_comes_after_the_blocks_of_a_tower_that_pools() -> None:
    vision = tiny_backbones.backbone("open_clip").tower("vision")
    asked = plan(vision, [After(LINEAR)])
    assert asked.after is LINEAR
    assert list(asked.modules) == [LINEAR]
    with pytest.raises(AdaptError, match="two edits add a module after the blocks of the vision tower: keep one"):
        plan(vision, [After(LINEAR), After(LINEAR)])
    with pytest.raises(AdaptError, match="After requires a vision tower that pools its tokens"):
        plan(tiny_natives.dual_encoder().tower("vision"), [After(LINEAR)])


def test_a_norm_that_stands_behind_its_site_cannot_be_read() -> None:
    tower = tiny_fusion.bridgetower().tower("text_fusion")
    with pytest.raises(AdaptError, match="needs a norm before attn of block 0 of the text_fusion tower"):
        plan(tower, [Parallel(0, "attn", LINEAR, normed=True)])


def test_what_computes_is_found_wherever_it_acts() -> None:
    bypass, replaced, beside = (nn.Linear(4, 4) for _ in range(3))
    edits = [SHARED, DEEP, attention(), Bypass(0, bypass), Replace(1, "q", replaced), Parallel(2, "mlp", beside)]
    assert list(plan(TOWER, edits[:2] + edits[3:]).modules) == [bypass, replaced, beside]
    assert plan(TOWER, [SHARED, Tokens(torch.zeros(3, 2, 4), block=1)]).overwriting[1].per_class


TEXT = "the text tower"
MISSING = [
    (Replace(-1, "q", LINEAR), f"Replace refers to block -1 of {TEXT}, which has blocks 0 to 2"),
    (Replace(99, "q", LINEAR), f"Replace refers to block 99 of {TEXT}, which has blocks 0 to 2"),
    (Bypass(3, LINEAR), f"Bypass refers to block 3 of {TEXT}"),
    (Parallel(-2, "mlp", LINEAR), f"Parallel refers to block -2 of {TEXT}"),
    (Tokens(torch.zeros(2, 4), block=7), f"Tokens refers to block 7 of {TEXT}"),
    (Attention(5, lambda scores, queries, keys: scores), f"Attention refers to block 5 of {TEXT}"),
    (Replace(0, "nope", LINEAR), f"Replace refers to 'nope', which block 0 of {TEXT} does not have; .*Valid: .*norm2"),
    (
        Parallel(0, "cross", LINEAR),
        f"'cross', which block 0 of {TEXT} does not have; Valid: attn, block, mlp",
    ),
    (
        Replace(None, "pre_norm", LINEAR),
        f"'pre_norm', which {TEXT} does not have; .*Valid: final_norm, projection",
    ),
    (LowRank(0, "q", torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), 1.0), "require a decoder, and cannot be applied"),
    (Outputs(print), f"outputs of learned tokens require a vision tower with a final norm, which {TEXT} is not"),
    (After(LINEAR), f"After requires a vision tower that pools its tokens, and cannot be applied to {TEXT}"),
]


@pytest.mark.parametrize(("edit", "message"), MISSING, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("path", [PlainText, FastText])
def test_a_place_that_does_not_exist_is_refused_by_name_on_both_paths(
    edit: Edit, message: str, path: type[PlainText | FastText], open_clip: Backbone
) -> None:
    prompts = [Prompt((49406, 320, 49407), (None, 0, None))]
    entering = [SHARED] if isinstance(edit, Tokens | Attention) else []
    before = snapshot(open_clip.model)
    with pytest.raises(AdaptError, match=message):
        path(open_clip, prompts)([*entering, edit], 2**30)
    assert_untouched(open_clip.model, before)


def test_a_decoder_and_a_fusion_tower_refuse_what_they_cannot_carry() -> None:
    fusion = tiny_fusion.vilt().tower("fusion")
    for edit in (SHARED, attention()):
        with pytest.raises(AdaptError, match="learned tokens cannot be added to the fusion tower"):
            plan(fusion, [edit])
    update = LowRank(0, "nope", torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), 1.0)
    with pytest.raises(
        AdaptError, match=r"LowRank refers to 'nope', which block 0 of the decoder tower does not have; .*mlp"
    ):
        plan(tiny_llms.vision_llm("llama").tower("decoder"), [update])


def test_where_learned_tokens_can_enter() -> None:
    assert plan(TOWER, [ENTERING]).entering_at(1) is ENTERING
    assert plan(TOWER, [ENTERING]).entering_at(None) is None
    reading = plan(tiny_backbones.backbone("hf_siglip").tower("vision"), [ENTERING, Outputs(print)])
    assert reading.outputs is print
    with pytest.raises(AdaptError, match="but no edit adds learned tokens at its input or at a block: add Tokens"):
        plan(tiny_backbones.backbone("open_clip").tower("vision"), [Outputs(print)])
    for tower in (tiny_backbones.backbone("hf_siglip").tower("text"), tiny_llms.vision_llm("llama").tower("decoder")):
        with pytest.raises(AdaptError, match=f"cannot enter at a block of the {tower.name} tower; expected a vision"):
            plan(tower, [ENTERING])
    for block, enters in ((None, False), (1, True)):
        with pytest.raises(ValueError, match=r"share is 0\.5 for learned tokens that enter and replace nothing"):
            Tokens(torch.zeros(2, 4), block, enters, share=0.5)


@pytest.mark.parametrize(
    ("edits", "images", "prefix_per_class"),
    [
        ([], None, False),
        ([SHARED, DEEP], None, False),
        ([PER_CLASS], None, True),
        ([SHARED, Tokens(torch.zeros(3, 2, 4), block=1)], None, True),
        ([PER_IMAGE], 5, False),
        ([SHARED, attention()], None, False),
        ([SHARED, attention(names_seen=True)], None, True),
    ],
)
def test_what_prompts_can_share(edits: list[Edit], images: int | None, prefix_per_class: bool) -> None:
    asked = plan(TOWER, edits)
    assert (asked.images, asked.prefix_per_class) == (images, prefix_per_class)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([SHARED, PER_CLASS], "two edits add learned tokens to the text tower"),
        ([SHARED, DEEP, DEEP], "the same kind change block 1 of the text tower"),
        ([Replace(0, "q", LINEAR), Replace(0, "q", LINEAR)], "the same kind change q of block 0 of the text tower"),
        ([SHARED, attention(), attention()], "the same kind change block 0 of the text tower"),
        ([SHARED, ENTERING], "two edits add learned tokens to the text tower"),
        ([ENTERING, DEEP], "an edit changes learned tokens at block 1, but they enter at the input of block 1"),
        ([ENTERING, attention()], "an edit changes learned tokens at block 0, but they enter at the input of block 1"),
        ([DEEP], "but no edit adds learned tokens at its input"),
        ([attention()], "but no edit adds learned tokens at its input"),
        ([Bypass(1, LINEAR), Replace(1, "q", LINEAR)], "block 1 is bypassed by one edit and changed by another"),
        ([Parallel(1, "mlp", LINEAR), Bypass(1, LINEAR)], "block 1 is bypassed by one edit"),
        ([SHARED, attention(), Bypass(0, LINEAR)], "block 0 is bypassed by one edit"),
        (
            [SHARED, Tokens(torch.zeros(3, 4), block=1)],
            r"tokens \(3, 4\) .* do not fit the learned tokens \(2, 4\)",
        ),
        ([SHARED, Tokens(torch.zeros(5, 1, 2, 4), block=1)], r"tokens \(5, 1, 2, 4\) at block 1 do not fit"),
    ],
)
def test_edits_that_do_not_fit_together_are_refused(edits: list[Edit], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        plan(TOWER, edits)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("backbone", ["open_clip", "hf_clip"], indirect=True)
@pytest.mark.parametrize("part", ["linear", "activation", "block"])
def test_a_part_that_its_owner_replaced_is_refused(
    part: str, backbone: Backbone, fast: bool, images: torch.Tensor
) -> None:
    model = adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=4), ("goldfish", "toy"), fast).eval()
    model(images)
    block = backbone.tower("text").blocks[1]
    whole = {"linear": block.projections["fc1"].module, "activation": block.act, "block": block.module}[part]
    path = next(path for path, module in backbone.model.named_modules() if module is whole)
    backbone.model.set_submodule(path, nn.ReLU() if part == "activation" else copy.deepcopy(whole))
    with pytest.raises(AdaptError, match="block 1 of the text tower was replaced after"), torch.no_grad():
        model(images)
