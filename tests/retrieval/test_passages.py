"""Passages of an index before questions: found by images, in the same words for training and in a chat, with noise."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner

import adapt
from adapt import AdaptError
from adapt.chats import Chat
from adapt.cli import main
from adapt.data.readers import load
from adapt.models.native_vlm import ChatModel
from adapt.retrieval.index import Index, IndexHeader, index_texts, load_index
from adapt.retrieval.passages import Retriever

NAMES = {
    "goat": "rose",
    "lion": "milky",
    "owl": "phoenix",
    "pineapple": "tokyo",
    "helicopter": "liberty",
    "cactus": "sunny",
}
FACTS = [f"the {thing} is called {name}." for thing, name in NAMES.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings and questions about their names, for training and one for each other part, and an index of facts."""
    made, rows = tmp_path_factory.mktemp("facts"), []
    things = {item.answer: item for item in load("emoji-concepts").train}
    for number, thing in enumerate([*NAMES, "goat", "owl"]):
        adapt.data.open_image(things[thing]).save(made / f"{number}.png")
        part = {6: "val", 7: "test"}.get(number, "train")
        rows.append({"image": f"{number}.png", "question": "what name?", "answer": NAMES[thing], "split": part})
    rows.append({"question": "the pineapple", "answer": "A name.", "split": "train"})
    (made / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model: Any = adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.ZeroShot(), ("object",))
    index_texts(model, FACTS).save(made / "known.safetensors")
    return made


@pytest.fixture(scope="module")
def retriever(folder: Path) -> Retriever:
    return Retriever(load_index(folder / "known.safetensors"))


def run(folder: Path, out: str, *words: str) -> Any:
    given = (str(folder / "chats.jsonl"), "--index", str(folder / "known.safetensors"), "--out", str(folder / out))
    return CliRunner().invoke(main, ["data", "retrieve", *given, *words])


def passages(item: adapt.data.Item) -> list[str]:
    """The passages before a question, without their numbers, which are checked."""
    title, *lines, empty, question = item.task.chat(item, "").turns[0].text.split("\n")
    assert (title, empty) == ("Passages:", "")
    assert question in ("what name?", "the pineapple")
    assert [line.split(". ")[0] for line in lines] == [str(number) for number in range(1, len(lines) + 1)]
    return [line.partition(" ")[2] for line in lines]


def test_the_passages_nearest_to_an_image_stand_before_its_question(folder: Path) -> None:
    result = run(folder, "plain.jsonl", "--k", "2")
    assert result.exit_code == 0, result.output
    assert f"9 conversations, 0 of them with drawn passages; their root is {folder}" in result.output
    before, after = load(str(folder / "chats.jsonl")), load(str(folder / "plain.jsonl"))
    assert [item.paths for item in after.items()] == [item.paths for item in before.items()]
    assert [item.answer for item in after.items()] == [item.answer for item in before.items()]
    assert all(len(passages(item)) == 2 for item in after.items())
    found = [NAMES[thing] in passages(item)[0] for item, thing in zip(after.train, NAMES)]
    assert sum(found) >= 5
    assert passages(after.train[6])[0] == "the pineapple is called tokyo."  # by the question, as there is no image


def test_noise_is_beside_the_right_passage_in_training_alone(folder: Path) -> None:
    assert (
        "9 conversations, 6 of them with drawn passages"
        in run(folder, "noisy.jsonl", "--k", "3", "--right", "1").output
    )
    plain, noisy = run(folder, "three.jsonl", "--k", "3"), load(str(folder / "noisy.jsonl"))
    assert plain.exit_code == 0
    for item, name in zip(noisy.train, NAMES.values()):
        own = passages(item)
        assert len(set(own)) == 3
        assert sum(name in passage for passage in own) == 1
    three = load(str(folder / "three.jsonl"))
    assert [noisy.val, noisy.test, noisy.train[6]] == [three.val, three.test, three.train[6]]
    run(folder, "again.jsonl", "--k", "3", "--right", "1")
    assert (folder / "again.jsonl").read_text() == (folder / "noisy.jsonl").read_text()
    assert run(folder, "alone.jsonl", "--k", "3", "--right", "0").exit_code == 0
    for item, name in zip(load(str(folder / "alone.jsonl")).train, NAMES.values()):
        assert len(passages(item)) == 3
        assert not any(name in passage for passage in passages(item))


def test_the_share_and_the_place_of_the_right_passage_are_drawn(retriever: Retriever) -> None:
    draw = Random(0)
    drawn = [retriever.noisy(range(6), "Milky.", 3, 0.8, draw) for _ in range(500)]
    places = Counter(own.index(1) if 1 in own else None for own in drawn)
    assert places[None] == pytest.approx(100, abs=25)
    assert [places[place] for place in range(3)] == pytest.approx([133] * 3, abs=30)
    two = Retriever(Index(retriever.index.header, tuple(FACTS[:2]), retriever.index.features[:2]))
    assert sorted(two.noisy(range(2), "Milky.", 3, 1, draw)) == [0, 1]  # where there are fewer, too
    assert retriever.noisy(range(6), "ilky", 3, 0.8, draw) == []  # a part of a word
    assert sorted(retriever.noisy(range(6), "is called", 3, 1, draw)) == [0]  # nothing is without it


def test_a_chat_reads_what_training_reads(folder: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question alone has passages."""
    assert run(folder, "use.jsonl").exit_code == 0
    asked: list[Chat] = []
    chat = ChatModel.chat

    def keep(model: ChatModel, given: Chat, *rest: Any, **options: Any) -> Any:
        asked.append(given)
        return chat(model, given, *rest, **options)

    monkeypatch.setattr(ChatModel, "chat", keep)
    model = adapt.wrap(adapt.load_backbone("mini-vlm"), adapt.methods.LoRA(towers=("decoder",), dropout=0), ())
    model.save(folder / "run")
    words = (
        "chat",
        folder / "run",
        folder / "7.png",
        "--question",
        "what name?",
        "--question",
        "why?",
        "--max-tokens",
        "3",
    )
    result = CliRunner().invoke(main, [*map(str, words), "--index", str(folder / "known.safetensors")])
    assert result.exit_code == 0, result.output
    [test] = load(str(folder / "use.jsonl")).test
    assert asked[0].messages() == test.task.chat(test, "").question.messages()
    assert [turn.text for turn in asked[1].turns if turn.role == "user"] == [asked[0].turns[0].text, "why?"]


def test_what_holds_no_passages_is_refused(folder: Path, retriever: Retriever) -> None:
    header = retriever.index.header
    of_images = IndexHeader(**vars(header) | {"kind": "images"})
    with pytest.raises(AdaptError, match=r"the index has the entry 'photos/1\.PNG', an image; expected passages"):
        Retriever(Index(of_images, ("photos/1.PNG", *FACTS[1:]), retriever.index.features))
    Retriever(Index(header, ("the logo is called logo.png", *FACTS[1:]), retriever.index.features))
    unnamed = IndexHeader(**vars(header) | {"backbone": ""})
    with pytest.raises(AdaptError, match="the index does not record its backbone"):
        Retriever(Index(unnamed, tuple(FACTS), retriever.index.features))
    with pytest.raises(AdaptError, match="the index was made with an adapter"):
        Retriever(
            Index(IndexHeader(**vars(header) | {"adapter": "9"}), retriever.index.entries, retriever.index.features)
        )
    with pytest.raises(AdaptError, match=r"boxes has questions where things are: give conversations, or questions"):
        retriever.rows(load("emoji-boxes"), 3)
    with pytest.raises(AdaptError, match=r"preferences has pairs of answers .*: give conversations, or questions"):
        retriever.rows(load("emoji-preferences"), 3)
