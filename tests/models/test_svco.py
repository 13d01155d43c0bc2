"""Minimal pairs of images: the loss by its formula, training that tells them apart, files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_natives
import torch
import torch.nn.functional as F
from checks import relative
from native_chats import lora, model_of, moved, pictures

import adapt
from adapt import AdaptError
from adapt.chats import IMAGE, Chat
from adapt.data import Item
from adapt.data.decoding.images import open_image
from adapt.models.dpo import Reference
from adapt.models.native_vlm import ChatModel
from adapt.models.svco import ContrastStep, margins
from adapt.recipe.settings import SVCOSettings
from adapt.tasks.contrasts import Contrast
from adapt.training.step_memory import chat_bytes

ASKED = "what is on the left?"


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Two pairs of pictures, each picture with its own answer."""
    paths = []
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    answers = [("a dog.", "a big red bus."), ("a cat!", "two.")]
    return [
        Item(tuple(paths[2 * number : 2 * number + 2]), Contrast(Chat.about(ASKED, own), other), text="-")
        for number, (own, other) in enumerate(answers)
    ]


def step_of(model: ChatModel, items: list[Item]) -> ContrastStep:
    step = items[0].task.step(model, items, [[open_image(path) for path in item.paths] for item in items])
    assert isinstance(step, ContrastStep)
    return step


@pytest.mark.parametrize("fast", [None, False])
def test_the_loss_is_the_papers(fast: bool | None, items: list[Item]) -> None:
    """By the log-likelihood of each answer alone, about its image, the other's, and none."""
    model: Any = adapt.wrap(tiny_natives.backbone("smolvlm"), methods_of(), fast=fast).eval()
    reference = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)) - 20
    beta = (0.1, 0.2, 0.3, 0.4)
    model.loss_inputs = Reference(SVCOSettings(beta=beta), items, reference)
    expected = []
    for item, known in zip(items, reference, strict=True):
        own, other = ([open_image(path)] for path in item.paths)
        both = [item.label.words, item.label.columns["rejected"]]
        blind = Chat.about(ASKED, images=0)
        sums = torch.cat([model.log_likelihood([i] * 2, [chat] * 2, both) for i, chat in (
            (own, Chat.about(ASKED)), (other, Chat.about(ASKED)), ([], blind))])  # fmt: skip
        first, first_other_answer, second_wrong, second, blind_first, blind_second = (sums - known).tolist()
        differences = [first - blind_first, blind_first - second_wrong, second - blind_second,
                       blind_second - first_other_answer]  # fmt: skip
        expected.append(-F.logsigmoid(torch.tensor(beta) * torch.tensor(differences)).sum())
    torch.testing.assert_close(step_of(model, items).svco, torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)


def methods_of() -> Any:
    return adapt.methods.ZeroShot()


def test_training_tells_the_images_apart(items: list[Item]) -> None:
    model = model_of("llava")
    sums = step_of(model, items).sums
    swapped = [item for item, margin in zip(items, margins(sums).tolist(), strict=True) if margin > 0]
    items = [
        item.labelled(Contrast(Chat.about(ASKED, item.label.columns["rejected"]), item.label.words))
        if item in swapped else item
        for item in items
    ]  # fmt: skip
    torch.manual_seed(0)
    model = adapt.wrap(tiny_natives.backbone("llava"), lora("decoder", "connector"))
    settings: dict[str, Any] = {"batch_size": 2, "lr": 0.01, "optimizer": "adamw", "augment": "none", "workers": 0}
    result = adapt.fit(model, items, items, progress=False, epochs=25, **settings)
    before, after = result.metrics["zero_shot"], result.metrics["adapted"]
    assert (before["accuracy"], after["accuracy"]) == (0, 1)
    assert before["margin"] < 0 < after["margin"]
    assert "margin" in str(result)


def test_accumulated_pairs_count_alike(items: list[Item]) -> None:
    """Two batches of one pair are a batch of two, though their first answers differ in length."""
    other = Contrast(Chat.about(ASKED, "there is a cat!"), "two.")
    unequal = [items[0], items[1].labelled(other)]
    one, two = (moved(unequal, **sizes) for sizes in ({"batch_size": 2}, {"batch_size": 1, "accumulate": 2}))
    assert relative(two, one) < 1e-4


def test_rows_of_a_file_have_rejected_images(items: list[Item], tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"<image>{ASKED}"}, {"role": "assistant", "content": "a dog."}],
         "images": ["0.png"], "rejected_response": "a bus.", "rejected_images": ["1.png"]},
        {"question": ASKED, "image": "2.png", "chosen": "a cat!", "rejected": "two.", "rejected_images": ["3.png"]},
    ]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    split = adapt.data.load(str(file))
    found = sorted([*split.train, *split.val, *split.test], key=lambda item: item.paths)
    assert [[Path(path).name for path in item.paths] for item in found] == [["0.png", "1.png"], ["2.png", "3.png"]]
    assert found[0].label.chat.turns[0].parts == (IMAGE, ASKED)
    assert [(item.answer, item.label.columns["rejected"]) for item in found] == [
        ("a dog.", "a bus."),
        ("a cat!", "two."),
    ]
    assert found[0].task.name == "contrasts"
    rows[0]["rejected_images"] = ["1.png", "2.png"]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(AdaptError, match="row 1: the conversation has 1 images, and 2 rejected images stand beside"):
        adapt.data.load(str(file))
    rows[0]["rejected_images"] = "1.png"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(AdaptError, match=r"row 1: rejected_images is '1\.png'; expected a list of images"):
        adapt.data.load(str(file))


def test_lengths_and_memory_are_of_an_images_own_conversation(items: list[Item]) -> None:
    model = model_of("qwen2_5_vl", lora("decoder"))
    one = [len(model.backbone.rows([chat], [[open_image(path)]]).inputs["input_ids"][0])
           for chat, path in zip(items[0].task.chats(items[0], ""), items[0].paths, strict=True)]  # fmt: skip
    assert model.lengths(items[:1]) == [max(one)]
    plain = [Item(items[0].paths[:1], adapt.tasks.preferences.Preference(items[0].label.chat, "a big red bus."))]
    assert chat_bytes(model, items[:1], "fp32").each > 2 * chat_bytes(model, plain, "fp32").each


def test_bundled_pairs_differ_in_what_is_asked() -> None:
    split = adapt.data.load("emoji-contrasts")
    asked = {item.text for item in split.test}
    assert asked == {"what is it?", "how many?", ASKED}
    for item in split.test[:12]:
        first, other = (open_image(path).tobytes() for path in item.paths)
        assert first != other
        assert item.answer != item.label.columns["rejected"]
    assert adapt.data.load("emoji-contrasts").fingerprint == split.fingerprint


@pytest.mark.parametrize("beta", [(0, 0, 0, 0), (-0.1, 0.1, 0.1, 0.1)])
def test_impossible_weights_are_refused(beta: Any) -> None:
    with pytest.raises(ValueError, match="expected four numbers of at least 0, one of them above 0"):
        SVCOSettings(beta=beta)
