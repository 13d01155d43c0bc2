"""Conversations about pictures, and models of the tiny native vision-language models, for several tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny_natives
from PIL import Image

import adapt
from adapt.chats import IMAGE, Chat, Turn
from adapt.methods import LoRA, ZeroShot
from adapt.models.chatting import ChatModel, ChatStep

KINDS = sorted(tiny_natives.KINDS)
SIZES = [(40, 24), (24, 24), (30, 44), (64, 32)]


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


CHATS = [
    Chat.about("what is it?", "a dog."),
    Chat.about("is there a circle? answer yes or no.", "no."),
    Chat((Turn("system", ("be brief.",)), *Chat.about("colour?", "red.").turns)).asked("and now?").answered("blue."),
    Chat((Turn("user", (IMAGE, "older than", IMAGE, "?")), Turn("assistant", ("no, it is younger.",)))),
]  # fmt: skip


def seen() -> list[list[Image.Image]]:
    one, two, three, four = pictures()
    return [[one], [two], [three], [four, one]]


def model_of(kind: str, method: Any = None) -> ChatModel:
    model: ChatModel = adapt.wrap(tiny_natives.backbone(kind), method or ZeroShot())
    return model.eval()


def lora(*towers: str) -> LoRA:
    return LoRA(rank=2, alpha=2.0, dropout=0.0, towers=towers, projections="all", input_gradient=True)


def step_of(model: ChatModel, chats: list[Chat] = CHATS, images: list[list[Image.Image]] | None = None) -> ChatStep:
    step = model.step(seen()[: len(chats)] if images is None else images)
    step.chats = chats
    return step
