"""CoOp: the prompts, the start of the context, and the settings that are refused."""

from __future__ import annotations

import pytest
import torch

import adapt
from adapt import AdaptError, Backbone

CoOp = adapt.methods.CoOp


def read(backbone: Backbone, **config: object) -> list[str | int]:
    """The prompt of "red_panda" as words and slots."""
    method = CoOp(**config)
    adapt.wrap(backbone, method, ["red_panda", "dog"], fast=False)
    prompt = method.prompts(backbone.tokenizer, "red_panda")[0]
    return [backbone.tokenizer.token(i) if slot is None else slot for i, slot in zip(prompt.ids, prompt.slots)][1:-1]


@pytest.mark.parametrize("backbone", ["open_clip", "hf_clip"], indirect=True)
@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("end", [0, 1, 2, "red", "panda", "."]),
        ("middle", [0, "red", "panda", 1, 2, "."]),
        ("front", ["red", "panda", 0, 1, 2, "."]),
    ],
)
def test_where_the_class_name_stands(position: str, expected: list[str | int], backbone: Backbone) -> None:
    assert read(backbone, n_ctx=3, class_position=position) == expected


def test_words_give_the_length_and_the_start(open_clip: Backbone) -> None:
    method = CoOp(ctx_init="a_photo of a")
    adapt.wrap(open_clip, method, ["dog"])
    ids = torch.tensor(open_clip.tokenizer.pieces("a photo of a"))
    assert torch.equal(method.ctx, open_clip.tower("text").text.embedding(ids))


def test_a_random_start_is_small_and_seeded(open_clip: Backbone) -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        method = CoOp(class_specific=True)
        adapt.wrap(open_clip, method, ["dog", "cat"])
        drawn.append(method.ctx)
    assert drawn[0].shape == (2, 16, 128)
    assert drawn[0].std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(*drawn)


def test_words_that_do_not_match_the_length(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match="ctx_init 'a photo' has 2 tokens but n_ctx is 4"):
        adapt.wrap(open_clip, CoOp(n_ctx=4, ctx_init="a photo"), ["dog"])


def test_a_prompt_that_does_not_fit_is_refused(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match="has 79 tokens but the text tower reads 77: shorten the class name"):
        adapt.wrap(open_clip, CoOp(n_ctx=75), ["dog"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ctx_init": "a", "class_specific": True}, "leave ctx_init empty"),
        ({"n_ctx": 0}, "n_ctx is 0"),
        ({"class_position": "back"}, "class_position is 'back'"),
        ({"nctx": 4}, "coop: unknown key 'nctx'; did you mean 'n_ctx'"),
    ],
)
def test_settings_that_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        CoOp(**config)
