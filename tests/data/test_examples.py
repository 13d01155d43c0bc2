"""Questions after examples: the pictures and the names of `examples:N:DATA`, and what is refused."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import adapt
from adapt.common.errors import AdaptError
from adapt.data import Item, load, open_image
from adapt.data.readers.chats_file import row_of
from adapt.evaluation.evaluate import evaluate
from adapt.models.native_vlm import ChatModel


def _list(folder: Path, rows: list[tuple[str, str, int]]) -> str:
    """Pictures of 40 x 20 pixels, and for each row a box of ten columns from some column on."""
    with (folder / "list.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "x0", "y0", "x1", "y1", "split"))
        for path, label, left in rows:
            Image.new("RGB", (40, 20)).save(folder / path)
            table.writerow((path, label, left, 0, left + 10, 20, path.partition("-")[0]))
    return str(folder / "list.csv")


ROWS = [*((f"train-{place}.png", "mug", place) for place in range(8)), ("train-8.png", "cup", 0),
        ("test-0.png", "mug", 5), ("test-1.png", "mug", 6), ("test-2.png", "mug", 7)]  # fmt: skip


def test_examples_are_other_pictures_of_the_same_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="adapt"):
        split = load(f"examples:2:boxes:{_list(tmp_path, ROWS)}")
    assert "1 questions are left out" in caplog.text  # nothing else shows a cup
    assert (len(split.train), len(split.test)) == (8, 3)
    for part, items in (("train", split.train), ("test", split.test)):
        for item in items:
            own, *others = [Path(path).name for path in item.paths]
            assert len({own, *others}) == 3
            assert all(name.startswith(part) for name in (own, *others))
            left = [int(name[-5]) + 5 * (part == "test") for name in (own, *others)]
            assert [label[0][0] for label in (item.label.boxes, *(boxes for boxes, _ in item.label.examples))] == left
    named = [item.label.name == "mug" for item in (*split.train, *split.test)]
    assert 0 < sum(named[:8]) < 8
    assert not any(named[8:])  # in the test, only an example says what is meant
    assert load(f"examples:2:boxes:{tmp_path / 'list.csv'}").fingerprint == split.fingerprint


def test_a_model_reads_examples_first_and_learns_the_last_answer() -> None:
    split = load("examples:1:emoji-boxes@fluent-3d")
    invented = [
        {item.label.name for item in items} - {item.label.thing for item in items}
        for items in (split.train, split.test)
    ]
    assert len(invented[0] & invented[1]) < 5 < 100 < min(map(len, invented))  # by chance alone
    model = adapt.wrap(adapt.load_backbone("mini-vlm", "cpu"), adapt.methods.LoRA(rank=2, towers=("decoder",)))
    item = next(item for item in split.train if len(item.label.boxes) == 1)
    pictures = [open_image(path) for path in item.paths]
    step: Any = split.task.step(model, [item], [pictures])  # type: ignore[attr-defined]
    assert step.inputs == [[pictures[1], pictures[0]]]
    [chat] = step.chats
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
    assert [turn.images for turn in chat.turns] == [1, 0, 1, 0]
    [(boxes, size)] = item.label.examples
    shown, asked = (
        model.backbone.located(item.label.name, *each) for each in ((boxes, size), (item.label.boxes, size))
    )
    assert (chat.turns[1].text, chat.turns[3].text) == (shown.answer, asked.answer)
    assert step.weight == 12 + 3 + 1 + 1  # tokens of one answer, not of the example's


def test_answers_to_examples_are_scored_in_the_items_own_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    items = load("examples:1:emoji-boxes@fluent-3d").test[:2]
    backbone = adapt.load_backbone("mini-vlm", "cpu")
    words = [backbone.located("it", item.label.boxes, item.label.size).answer for item in items]
    monkeypatch.setattr(ChatModel, "decide", lambda model, step: (words, [0.9] * 2))
    scores: Any = evaluate(adapt.wrap(backbone, adapt.methods.ZeroShot()), items, workers=0)
    assert scores.merits.tolist() == [1, 1]
    assert [row["path"] for row in scores.rows()] == [item.path for item in items]
    plain = load("emoji-boxes@fluent-3d").test
    names = {item.path: item.label.name for item in plain}
    assert [row["question"] for row in scores.rows()] == [
        names[item.path] for item in items
    ]  # by which AP groups boxes


def test_another_picture_with_the_same_box_makes_another_data_set(tmp_path: Path) -> None:
    split = load(f"examples:2:boxes:{_list(tmp_path, ROWS)}")
    first, *rest = split.test
    other = replace(first, paths=(first.path, first.paths[2], first.paths[1]))
    assert replace(split, test=(other, *rest)).fingerprint != split.fingerprint


def test_a_chat_is_written_with_its_pictures_in_its_own_order() -> None:
    item = load("examples:1:emoji-boxes@fluent-3d").test[0]
    assert row_of(item, "test", "")["images"] == [item.paths[1], item.paths[0]]


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    split = load(f"boxes:{_list(tmp_path, ROWS)}")
    (tmp_path / "test-0.png").write_bytes(b"no picture")
    model = adapt.wrap(adapt.load_backbone("mini-vlm", "cpu"), adapt.methods.ZeroShot())
    with pytest.raises(AdaptError, match=r"test-0\.png"):
        evaluate(model, split.test[:1], workers=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("examples:emoji-boxes", "expected a number of examples, from 1, and boxes"),
        ("examples:0:emoji-boxes", "expected a number of examples, from 1, and boxes"),
        ("examples:1:emoji", "examples are of boxes: give boxes:FILE"),
    ],
)
def test_what_is_refused(spec: str, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        load(spec)


def test_a_part_without_enough_examples_is_told(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="fewer than 9 other pictures"):
        load(f"examples:9:boxes:{_list(tmp_path, ROWS)}")


def test_a_chat_follows_examples_whose_answers_are_not_learned() -> None:
    backbone = adapt.load_backbone("mini-vlm", "cpu")
    box = ((0.0, 0.0, 32.0, 32.0),)
    chat = backbone.located("dog", box, (64, 64), [(box, (64, 64))])
    assert [turn.learned for turn in chat.turns if turn.role == "assistant"] == [False, True]
    assert backbone.learned_tokens([chat]) == backbone.learned_tokens([backbone.located("dog", box, (64, 64))])
    assert Item.of(path="a.png", boxes=("dog", box, (64, 64), ())).label.examples == ()
