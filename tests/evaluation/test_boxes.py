"""Scores of boxes: overlaps, greedy matching, figures of answers, and the task that asks where things are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

import adapt
from adapt.backbones.box_texts import plain_text
from adapt.data import load, open_image
from adapt.data.emoji import questions, scenes
from adapt.evaluation.boxes import BoxScores, matched, overlaps
from adapt.evaluation.evaluate import evaluate
from adapt.models.generation import Answer
from adapt.models.native_vlm import ChatModel
from adapt.models.unadapted import unadapted
from adapt.protocols.report import _worst_errors, small_image

ONE, OTHER, THIRD = (0.0, 0.0, 10.0, 10.0), (5.0, 0.0, 15.0, 10.0), (20.0, 20.0, 30.0, 30.0)


def test_overlaps() -> None:
    shared = overlaps([ONE, (3.0, 3.0, 3.0, 9.0), (8.0, 8.0, 2.0, 2.0)], [ONE, OTHER, THIRD])
    assert shared.tolist() == [[1.0, pytest.approx(1 / 3), 0.0], [0.0] * 3, [0.0] * 3]  # none of empty, swapped boxes
    assert overlaps([], [ONE]).shape == (0, 1)


def test_each_true_box_is_matched_once() -> None:
    shared = torch.tensor([[0.6, 0.9], [0.0, 0.8], [0.7, 0.7]], dtype=torch.double)
    assert matched(shared) == [0.9, 0.0, 0.7]
    assert matched(shared, 0.75) == [0.9, 0.0, 0.0]


def _scores(*answers: tuple[Any, Any]) -> BoxScores:
    texts, true, found = tuple(map(str, range(len(answers)))), *zip(*answers, strict=True)
    names = ("dog",) * len(answers)
    return BoxScores(texts, texts, texts, (0.9,) * len(answers), boxes=true, found=found, questions=names)


def test_figures_of_answers() -> None:
    """One right, one too small, one of two found, one unreadable, one rightly and one wrongly without a box."""
    half = (0.0, 0.0, 4.0, 10.0)
    scores = _scores(
        ((ONE,), (ONE,)), ((ONE,), (half,)), ((ONE, THIRD), (THIRD,)), ((ONE,), None), ((), ()), ((), (ONE,))
    )
    assert scores.merits.tolist() == pytest.approx([1, 0.4, 0.5, 0, 1, 0])
    assert scores.right == (True, False, False, False, True, False)
    figures = scores.figures()
    assert figures["mean_iou"] == pytest.approx(2.9 / 6)
    assert figures[scores.compared_by.name] == pytest.approx(float(scores.merits.mean()))
    assert figures["readable"] == pytest.approx(5 / 6)
    assert (figures["precision"], figures["recall"], figures["f1"]) == pytest.approx((2 / 4, 2 / 5, 4 / 9))
    assert scores.intervals["mean_iou"].low < figures["mean_iou"] < scores.intervals["mean_iou"].high
    assert next(scores.lines("6 questions")).startswith("mean IoU 48.3 %")


def test_boxes_of_bundled_scenes_hold_what_is_drawn() -> None:
    """What changes when a thing is left out is in its box, and reaches each edge, but for the faint outline."""
    made = list(questions.scenes_of("emoji-boxes@fluent-3d").values())[:12]
    for scene in (each for each in made if len(each.pieces) > 1):
        without = scenes.Scene(scene.kind, scene.pieces[1:], scene.background)
        gone = ImageChops.difference(scene.draw(), without.draw()).convert("L").point(lambda value: 255 * (value > 40))
        assert gone.getbbox() == pytest.approx(scene.pieces[0].box, abs=3)
    split = load("emoji-boxes@fluent-3d")
    assert max(len(item.label.boxes) for item in split.train) == 4
    assert open_image(split.train[0]).size == split.train[0].label.size == (64, 64)


def test_a_native_model_is_asked_and_scored_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = adapt.load_backbone("mini-vlm", "cpu")
    items = load("emoji-boxes@fluent-3d").test[:3]
    words = [backbone.located(item.label.name, item.label.boxes, item.label.size).answer for item in items]
    answers = [words[0], "a dog", words[2]]
    seen: list[Any] = []

    def decide(model: ChatModel, step: Any) -> tuple[list[str], list[float]]:
        seen.extend(chat.turns[0].text for chat in step.chats)
        return answers, [0.9] * 3

    monkeypatch.setattr(ChatModel, "decide", decide)
    scores = evaluate(unadapted(backbone), items, workers=0)
    assert seen == [f"where is the {item.label.name}?" for item in items]
    assert isinstance(scores, BoxScores)
    assert scores.found[1] is None
    assert scores.merits.tolist() == [1, 0, 1]
    assert scores.predicted == (items[0].answer, "a dog", items[2].answer)


def test_a_native_model_learns_boxes() -> None:
    """The loss is of the words of its family: twelve that say four numbers, three commas, a full stop, an end."""
    split = load("emoji-boxes@fluent-3d")
    method = adapt.methods.LoRA(rank=2, towers=("decoder",), input_gradient=True)
    model = adapt.wrap(adapt.load_backbone("mini-vlm", "cpu"), method)
    items = [item for item in split.train if len(item.label.boxes) == 1][:2]
    step = split.task.step(model, items, [[open_image(item)] for item in items])  # type: ignore[attr-defined]
    assert step.weight == 2 * (12 + 3 + 1 + 1)
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 4, "drop_last": False, "warmup": 0}
    result = adapt.fit(model, split.train[:8], split.test[:2], lr=0.01, workers=0, progress=False, **settings)
    assert 0 <= result.metrics["adapted"]["mean_iou"] <= 1
    assert {"readable", "f1", "average_precision"} < set(result.metrics["adapted"])


def test_predictions_have_boxes_in_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the picture as it is given, whatever the family writes; other answers have none."""
    backbone = adapt.load_backbone("mini-vlm", "cpu")
    words = [backbone.located("dog", [(16.0, 8.0, 48.0, 24.0)], (64, 32)).answer, "a dog"]
    monkeypatch.setattr(ChatModel, "generate", lambda *args: [Answer(text, 0.5, 3) for text in words])
    pictures = [Image.new("RGB", (640, 320)), Image.new("RGB", (640, 320))]
    boxed, other = unadapted(backbone).predict(pictures, question="where is the dog?")
    assert boxed.plain()["boxes"] == [{"bbox": [160.0, 80.0, 480.0, 240.0], "label": ""}]
    assert "boxes" not in other.plain()


def test_the_report_draws_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    rows = [row | {"path": str(tmp_path / "a.png")} for row in _scores(((ONE,), (THIRD,)), ((ONE,), (ONE,))).rows()]
    assert [row["iou"] for row in rows] == [0.0, 1.0]
    [worst] = _worst_errors([{name: str(cell) for name, cell in row.items()} for row in rows], True)
    assert worst["picture"].image
    drawn = small_image(str(tmp_path / "a.png"), True, {"lime": plain_text("dog", [ONE]), "red": "a dog"})
    assert drawn is not None
    assert drawn.getpixel((0, 5))[1] > 200  # type: ignore[index]
    assert drawn.getpixel((50, 50)) == (0, 0, 0)
