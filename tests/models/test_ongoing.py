"""Answers that pause after some tokens, while others of the same backbone are generated in between."""

from __future__ import annotations

import pytest
import torch
from checks import perturb
from native_chats import KINDS, lora, model_of, read_by
from torch import Tensor

from adapt.chats import Chat
from adapt.models.native_vlm import ChatModel
from adapt.models.ongoing import OngoingAnswers


class Kept:
    """The tokens of some answers, with a pause after every few."""

    def __init__(self, answers: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(answers)]
        self.until = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return torch.full((len(tokens),), len(self.rows[0]) >= self.until)


@pytest.mark.parametrize("kind", KINDS)
def test_with_pauses_the_tokens_are_those_of_generate(kind: str) -> None:
    model: ChatModel = model_of(kind, lora("decoder"))
    perturb(model)
    chats, images = read_by(kind)
    asked = [chat.question for chat in chats]
    rows = model.backbone.rows(asked, images, left=True, asks=True)
    expected = model._edited(
        lambda: model.backbone.vlm.generate(**rows.inputs, max_new_tokens=9, do_sample=False, eos_token_id=None)
    )[:, rows.inputs["input_ids"].shape[1] :]
    together, alone = OngoingAnswers(model, images, asked), OngoingAnswers(model, images[2:3], asked[2:3])
    assert together.prompt_tokens == rows.lengths.tolist()
    every, one = Kept(len(asked)), Kept(1)
    for until in (1, 5, 9):
        for ongoing, kept in ((together, every), (alone, one)):
            kept.until = until
            ongoing.go_on(kept)
    assert every.rows == expected.tolist()
    assert one.rows[0] == expected[2].tolist()


def test_a_long_neighbour_and_a_checkpoints_settings_change_nothing() -> None:
    """Beside a conversation that nearly fills the context, and where the checkpoint asks for beams or a fixed cache."""
    model: ChatModel = model_of("qwen2_5_vl", lora("decoder"))
    perturb(model)
    chats, images = [Chat.about("why " * 320, images=0), Chat.about("what?")], [[], read_by("qwen2_5_vl")[1][0]]
    expected = Kept(1)
    expected.until = 90
    OngoingAnswers(model, images[1:], chats[1:]).go_on(expected)
    settings = model.backbone.vlm.generation_config
    settings.num_beams, settings.cache_implementation = 2, "static"
    kept, calls = Kept(2), 0
    ongoing = OngoingAnswers(model, images, chats)
    for until in (30, 90):
        kept.until, calls = until, calls + 1
        ongoing.go_on(kept)
    assert ongoing.prompt_tokens[0] > model.backbone.longest - 90
    assert len(kept.rows[1]) == 90
    assert kept.rows[1] == expected.rows[0]
