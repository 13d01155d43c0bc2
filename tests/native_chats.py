"""Conversations about pictures, and models of the tiny native vision-language models, for several tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny_natives
import torch
from checks import flat
from PIL import Image
from torch import Tensor

import adapt
from adapt.chats import IMAGE, Chat, Turn
from adapt.data import Item
from adapt.methods import LoRA, ZeroShot
from adapt.models.native_vlm import ChatModel, ChatStep

KINDS = sorted(tiny_natives.KINDS)
FAST = [
    kind for kind in KINDS if kind not in ("gemma3", "llava_onevision", "paligemma")
]  # the others take the plain path
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


def read_by(kind: str) -> tuple[list[Chat], list[list[Image.Image]]]:
    """The conversations that a model reads, with their images: PaliGemma, one question and its answer."""
    read = [0, 1, 3] if kind == "paligemma" else range(4)
    return [CHATS[number] for number in read], [seen()[number] for number in read]


def model_of(kind: str, method: Any = None) -> ChatModel:
    model: ChatModel = adapt.wrap(tiny_natives.backbone(kind), method or ZeroShot())
    return model.eval()


def lora(*towers: str) -> LoRA:
    return LoRA(rank=2, alpha=2.0, dropout=0.0, towers=towers, projections="all", input_gradient=True)


def moved(items: list[Item], **sizes: int) -> Tensor:
    """How far a step of plain gradient descent moves the parameters of LLaVA's decoder, in batches of the sizes."""
    backbone = tiny_natives.backbone("llava")  # which draws, where it is the first to be asked for it
    torch.manual_seed(0)
    model = adapt.wrap(backbone, lora("decoder"))
    start = flat(model.method.parameters()).detach()
    plain: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "augment": "none", "warmup_epochs": 0}
    assert len(adapt.fit(model, items, epochs=1, progress=False, **plain | sizes).history) == 1
    return flat(model.method.parameters()).detach() - start


def step_of(
    model: ChatModel, chats: list[Chat] | None = None, images: list[list[Image.Image]] | None = None
) -> ChatStep:
    """A step with some conversations, by default all that the model reads."""
    known, pictures = read_by(model.backbone.vlm.config.model_type)
    step = model.step(images or pictures[: len(chats or known)])
    step.chats = chats or known
    return step
