"""Preferences between two answers: the loss by its formula, runs that go on, and what training refuses and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_natives
import torch
from checks import relative
from native_chats import lora, model_of, moved, pictures

import adapt
from adapt import AdaptError
from adapt.chats import Chat
from adapt.data import Item
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.free_text import PairScores
from adapt.methods import DAS, Compose
from adapt.models.dpo import PreferenceStep, Reference
from adapt.models.native_vlm import ChatModel
from adapt.recipe.settings import DPOSettings
from adapt.tasks.preferences import Preference


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Four pictures, each with a brief and a long answer, of which one is better."""
    made = []
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{number}.png")
        answers = ["a dog.", "it is a dog, I think."]
        chat = Chat.about("what is it?", answers[number % 2])
        made.append(Item((str(tmp_path / f"{number}.png"),), Preference(chat, answers[1 - number % 2]), text="-"))
    return made


def step_of(model: ChatModel, items: list[Item]) -> PreferenceStep:
    images = [[adapt.data.open_image(item)] for item in items]
    step = items[0].task.step(model, items, images)
    assert isinstance(step, PreferenceStep)
    return step


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("per_token", [False, True])
def test_the_loss_is_the_papers(smoothing: float, per_token: bool, items: list[Item]) -> None:
    """By the log-likelihood of each answer alone, under the model and under the reference."""
    model = model_of("smolvlm")
    reference = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)) - 20
    settings = DPOSettings(beta=0.3, label_smoothing=smoothing, per_token=per_token)
    model.loss_inputs = Reference(settings, items, reference)
    step = step_of(model, items)
    expected = []
    for item, (chosen, rejected) in zip(items, reference.tolist(), strict=True):
        gained = []
        for answer, known in ((item.label.words, chosen), (item.label.columns["rejected"], rejected)):
            [own] = model.log_likelihood([[adapt.data.open_image(item)]], [item.label.columns["question"]], [answer])
            chat = Chat.about(item.label.columns["question"], answer)
            tokens = int(model.backbone.rows([chat], [[adapt.data.open_image(item)]]).answers.sum())
            gained.append((own - known) / (tokens if per_token else 1))
        margin = 0.3 * (gained[0] - gained[1])
        expected.append(-(1 - smoothing) * margin.sigmoid().log() - smoothing * (-margin).sigmoid().log())
    torch.testing.assert_close(step.dpo, torch.stack(expected).mean(), rtol=1e-5, atol=1e-5)


def trained(items: list[Item], **settings: Any) -> tuple[ChatModel, Any]:
    torch.manual_seed(0)
    model: ChatModel = adapt.wrap(tiny_natives.backbone("llava"), lora("decoder"))
    chosen = {"epochs": 8, "batch_size": 2, "lr": 0.01, "optimizer": "adamw", "augment": "none"} | settings
    return model, adapt.fit(model, items, items, progress=False, **chosen)


def test_training_puts_the_pairs_in_order(items: list[Item]) -> None:
    """The answer that was the less probable one is the more probable one."""
    model = model_of("llava")
    image, asked = [[adapt.data.open_image(items[0])]], ["what is it?"]
    rejected, chosen = sorted(
        ["red.", "blue."], key=lambda answer: -float(model.log_likelihood(image, asked, [answer]))
    )
    pairs = [item.labelled(Preference(Chat.about("what is it?", chosen), rejected)) for item in items]
    _, result = trained(pairs)
    before, after = result.metrics["zero_shot"], result.metrics["adapted"]
    assert (before["accuracy"], after["accuracy"]) == (0, 1)
    assert before["margin"] < 0 < after["margin"]
    assert "margin" in str(result)


def test_accumulated_pairs_count_alike(items: list[Item]) -> None:
    """Two batches of one pair are a batch of two, though their answers differ in length."""
    one, two = (moved(items[:2], **sizes) for sizes in ({"batch_size": 2}, {"batch_size": 1, "accumulate": 2}))
    assert relative(two, one) < 1e-4


def test_the_pass_of_the_reference_tells_how_far_it_is(
    items: list[Item], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapt.common.progress._SECONDS_BETWEEN_LINES", -1)
    caplog.set_level("INFO", logger="adapt")
    model = adapt.wrap(tiny_natives.backbone("llava"), lora("decoder"))
    monkeypatch.setattr(type(model), "evaluated_together", 2)
    adapt.fit(model, items, epochs=1, batch_size=2, augment="none")
    assert [each for each in caplog.messages if each.startswith("reference")] == ["reference  2 of 4"]


def test_a_stopped_run_keeps_the_reference_of_its_start(
    items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the reference is the adapter that it started from, which by then has changed."""
    start, _ = trained(items, epochs=2)
    adapter = start.save(tmp_path / "start.safetensors")

    def goes_on(out: Path | None, resume: bool = False) -> ChatModel:
        from adapt.training.start import start_from

        model: ChatModel = adapt.wrap(tiny_natives.backbone("llava"), lora("decoder"))
        start_from(model, adapter)
        settings: dict[str, Any] = {"epochs": 4, "batch_size": 2, "lr": 0.01, "optimizer": "adamw", "augment": "none"}
        adapt.fit(model, items, out=out, resume=resume, progress=False, **settings)
        return model

    whole = goes_on(tmp_path / "whole")
    from adapt.training import loop

    epochs = loop.Trainer._epoch
    calls: list[int] = []

    def interrupted(trainer: loop.Trainer) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return epochs(trainer)

    monkeypatch.setattr(loop.Trainer, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        goes_on(tmp_path / "stopped")
    monkeypatch.setattr(loop.Trainer, "_epoch", epochs)
    resumed = goes_on(tmp_path / "stopped", resume=True)
    for ours, theirs in zip(resumed.method.parameters(), whole.method.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_scores(items: list[Item]) -> None:
    model = model_of("llava")
    scores = evaluate(model, items, workers=0)
    assert isinstance(scores, PairScores)
    sums = step_of(model, items).sums
    torch.testing.assert_close(torch.tensor(scores.margins), sums[:, 0] - sums[:, 1], rtol=0, atol=1e-4)
    assert scores.right == tuple((sums[:, 0] > sums[:, 1]).tolist())
    assert {row["margin"] for row in scores.rows()} == {round(margin, 6) for margin in scores.margins}
    assert all(0.5 <= value <= 1 for value in scores.confidence)


def test_an_adapter_of_preferences_chats(items: list[Item], tmp_path: Path) -> None:
    model, _ = trained(items, epochs=1)
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), backbone=tiny_natives.backbone("llava"))
    assert isinstance(loaded, ChatModel)
    ours, theirs = (each.answer(items[0].path, "what is it?", max_new_tokens=4).text for each in (model, loaded))
    assert ours == theirs


def test_what_is_refused(items: list[Item]) -> None:
    with pytest.raises(AdaptError, match="label_smoothing"):
        trained(items, dpo={"label_smoothing": 0.7})
    clip = adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.LoRA(), ("a", "b"))
    with pytest.raises(AdaptError, match="pairs of answers about images"):
        adapt.fit(clip, items, epochs=1)


def test_several_methods_learn_them_together_and_a_search_is_refused(items: list[Item]) -> None:
    parts = [DAS(skipped=("decoder.1",), towers=("decoder",), reduction=4), lora("decoder")]
    model: ChatModel = adapt.wrap(tiny_natives.backbone("llava"), Compose(parts))
    adapt.fit(model, items, epochs=1, batch_size=2, lr=0.01, progress=False)
    searching: ChatModel = adapt.wrap(tiny_natives.backbone("llava"), DAS(skip=1, towers=("decoder",), reduction=4))
    with pytest.raises(AdaptError, match=r"das chooses skipped by the loss on validation items.*set method\.skipped"):
        adapt.fit(searching, items, val_set=items, epochs=1)
