"""Conversations in JSON and JSONL: every form that people have, and every bad row by its file and number."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import adapt
from adapt import AdaptError
from adapt.chats import IMAGE, Chat, Turn
from adapt.data.decoding.images import open_image
from adapt.data.item import Item
from adapt.tasks.conversations import Conversation

USER = {"role": "user", "content": "<image>what is it?"}
DOG = {"role": "assistant", "content": "a dog."}
ABOUT = Chat.about("what is it?", "a dog.")
COLOURS = {"7.png": (200, 30, 30), "8.png": (30, 30, 200)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(tmp_path / name)
    return tmp_path


def encoded(name: str) -> str:
    file = BytesIO()
    Image.new("RGB", (40, 30), COLOURS[name]).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def written(folder: Path, rows: list[Any], name: str = "chats.jsonl") -> Path:
    path = folder / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def read(folder: Path, *rows: Any, name: str = "chats.jsonl") -> list[Item]:
    return list(adapt.data.load(written(folder, list(rows), name)).items())


def chat_of(item: Item) -> Chat:
    assert isinstance(item.label, Conversation)
    return item.label.chat


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


URI = f"data:image/png;base64,{encoded('7.png')}"
PART = {"type": "image"}
ASKED = {"type": "text", "text": "what is it?"}
FORMS: dict[str, dict[str, Any]] = {
    "LLaVA": {"id": "7", "image": "7.png", "conversations": turns("<image>what is it?", "a dog.")},
    "ShareGPT": {"images": ["7.png"], "conversations": turns("<image>what is it?", "a dog.")},
    "bytes": {"images": [{"bytes": encoded("7.png")}], "conversations": turns("<image>what is it?", "a dog.")},
    "path": {"images": [{"path": "7.png", "bytes": None}], "conversations": turns("<image>what is it?", "a dog.")},
    "marks": {"messages": [USER, DOG], "images": ["7.png"]},
    "OpenAI": {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}}, ASKED]},
            {"role": "assistant", "content": "a dog."},
        ]
    },
    "ms-swift": {"query": "<image>what is it?", "response": "a dog.", "images": ["7.png"]},
    "ms-swift inline": {"messages": [{"role": "user", "content": "<img>7.png</img>what is it?"}, DOG]},
    "question and answer": {"question": "what is it?", "answer": "a dog.", "image": "7.png"},
    "TRL": {
        "messages": [
            {"role": "user", "content": [PART, ASKED]},
            {"role": "assistant", "content": [{"type": "text", "text": "a dog."}]},
        ],
        "images": ["7.png"],
    },
    "own image": {"messages": [{"role": "user", "content": [PART | {"path": "7.png"}, ASKED]}, DOG]},
    "image_path": {"question": "what is it?", "answer": "a dog.", "image_path": "7.png"},
    "image_url": {"question": "what is it?", "answer": ["a dog."], "image_url": {"url": URI}, "label": True},
    "img": {"messages": [USER, DOG], "img": ["7.png"], "kto_tag": True, "source": "here", "image_id": 7, "tools": None},
    "base64": {"messages": [{"role": "user", "content": [PART | {"base64": encoded("7.png")}, ASKED]}, DOG]},
    "without a mark": {"messages": [{"role": "user", "content": "what is it?"}, DOG], "images": ["7.png"]},
    "prompt and completion": {
        "prompt": [{"role": "user", "content": "what is it?"}],
        "completion": [DOG],
        "images": ["7.png"],
    },
    "prompt and completion in words": {"prompt": "what is it?", "completion": "a dog.", "images": ["7.png"]},
    "OpenAI's responses": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": URI}, {"type": "input_text", "text": "what is it?"}],
            },
            {"role": "assistant", "content": [{"type": "output_text", "text": "a dog."}]},
        ]
    },
    "Qwen's parts": {
        "messages": [{"role": "user", "content": [{"image": "file://7.png"}, {"text": "what is it?"}]}, DOG]
    },
    "a path of Windows": {"messages": [USER, DOG], "images": [".\\7.png"]},
}


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.json"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, name: str, folder: Path) -> None:
    [item] = read(folder, FORMS[form], name=name)
    assert chat_of(item) == ABOUT
    assert item.text == "what is it?"
    picture = open_image(item)
    assert (picture.size, picture.getpixel((0, 0))) == ((40, 30), COLOURS["7.png"])


def test_each_row_is_read_by_its_own_keys(folder: Path) -> None:
    items = read(folder, *FORMS.values())
    assert [chat_of(item) for item in items] == [ABOUT] * len(FORMS)


def test_a_developer_is_the_system(folder: Path) -> None:
    [item] = read(folder, row({"role": "developer", "content": "be brief"}, USER, DOG))
    assert chat_of(item) == Chat((Turn("system", ("be brief",)), *ABOUT.turns))


def test_images_inside_a_row_keep_their_order_when_its_turns_are_joined(folder: Path) -> None:
    """They are counted in the row as it is stored."""
    uris = {name: f"data:image/png;base64,{encoded(name)}" for name in COLOURS}
    turn = asks({"type": "image_url", "image_url": {"url": uris["7.png"]}}, PART, ASKED)
    [item] = read(folder, {"images": [uris["8.png"]], "prompt": [turn], "completion": [DOG]})
    assert [open_image(path).getpixel((0, 0)) for path in item.paths] == [COLOURS["7.png"], COLOURS["8.png"]]
    rows = [{"thumb": uris["8.png"], "image": uris["7.png"], "question": "what is it?", "answer": "a dog."}]
    for name in ("chats.jsonl", "chats.json"):
        [item] = adapt.data.load(written(folder, rows, name), columns="ignored=thumb").items()
        assert open_image(item).getpixel((0, 0)) == COLOURS["7.png"]


def test_a_key_that_is_there_twice_and_lines_in_a_json(folder: Path) -> None:
    path = folder / "chats.jsonl"
    path.write_text('{"question": "what?", "answer": "a", "answer": "b"}')
    with pytest.raises(AdaptError, match="row 1 is no JSON: line 1: the key 'answer' is there twice: leave one out"):
        adapt.data.load(path)
    path = folder / "chats.json"
    path.write_text('{"question": "what?", "answer": "a"}\n{"question": "why?", "answer": "b"}')
    with pytest.raises(AdaptError, match=r"it has a JSON value on each line: name it \.jsonl"):
        adapt.data.load(path)


def test_usual_rows_of_published_sets(folder: Path) -> None:
    """TRL's ultrafeedback_binarized has its turns three times; others have empty boxes and tools."""
    turns = [BARE, DOG]
    other = [BARE, DOG | {"content": "a cat."}]
    scores = {"score_chosen": 8.0, "score_rejected": 5.0, "prompt_id": "x"}
    [item] = read(folder, {"prompt": "what is it?", "chosen": turns, "rejected": other, "messages": turns, **scores})
    assert (chat_of_preference(item), item.label.rejected) == (["what is it?", "a dog."], "a cat.")
    more = {"objects": {"ref": [], "bbox": []}, "tools": "[]", "ds_name": "mine", "task_name": "vqa", "Unnamed: 0": 3}
    [item] = read(folder, row(USER, DOG, **more))
    assert chat_of(item) == ABOUT


def chat_of_preference(item: Item) -> list[str]:
    label: Any = item.label
    return [turn.text for turn in label.chat.turns]


def test_keys_are_called_as_columns_say(folder: Path) -> None:
    rows = [{"q": "what is it?", "a": "a dog.", "pic": "7.png", "weird": 1}, {"q": "why?", "a": "so."}]
    path = written(folder, rows)
    split = adapt.data.load(path, columns="question=q, answer=a, image=pic, ignored=weird")
    assert ABOUT in [chat_of(item) for item in split.items()]
    with pytest.raises(AdaptError, match=r"no row has 'qq', which columns name; did you mean 'q'\?"):
        adapt.data.load(path, columns="question=qq")
    with pytest.raises(AdaptError, match="row 1: 'q' and 'a' would both be 'question': ignore one"):
        adapt.data.load(path, columns="question=q,question=a")
    with pytest.raises(AdaptError, match="columns are 'question'; expected names, each with the list's own"):
        adapt.data.load(path, columns="question")
    with pytest.raises(AdaptError, match="is a folder with one for each class, which has no columns"):
        adapt.data.load(folder, columns="image=pic")


def test_several_images_turns_and_a_system_turn(folder: Path) -> None:
    row = {
        "system": "be brief",
        "query": "<image>and its colour?",
        "response": "brown.",
        "history": [["<image>what is it?", "a dog."]],
        "images": ["7.png", "8.png"],
    }
    marks = {"messages": [{"role": "user", "content": "older, <image> or <image>?"}, DOG], "images": ["8.png", "7.png"]}
    first, second = sorted(read(folder, row, marks), key=lambda item: len(chat_of(item).turns), reverse=True)
    system = Turn("system", ("be brief",))
    more = Chat((system, *ABOUT.turns, Turn("user", (IMAGE, "and its colour?")), Turn("assistant", ("brown.",))))
    assert chat_of(first) == more
    assert [Path(path).name for path in first.paths] == ["7.png", "8.png"]
    assert chat_of(second).turns[0].parts == ("older, ", IMAGE, " or ", IMAGE, "?")
    assert [Path(path).name for path in second.paths] == ["8.png", "7.png"]


def test_alpacas_instruction_and_its_input(folder: Path) -> None:
    rows = [
        {"instruction": "translate", "input": "hund", "output": "a dog.", "split": "train"},
        {"instruction": "what is it?", "input": "", "output": "a dog.", "image": "7.png", "split": "test"},
    ]
    both, alone = read(folder, *rows)
    assert chat_of(both) == Chat.about("translate\nhund", "a dog.", 0)
    assert chat_of(alone) == ABOUT


def test_an_image_inside_a_row_is_read_anew_where_the_file_has_changed(folder: Path) -> None:
    uris = {name: f"data:image/png;base64,{encoded(name)}" for name in COLOURS}
    for name in COLOURS:
        [item] = read(folder, row(USER, DOG, images=[uris[name]]))
        assert open_image(item).getpixel((0, 0)) == COLOURS[name]


def test_an_image_inside_a_file_in_utf16_is_read(folder: Path) -> None:
    """As the rows themselves are, with a byte order mark."""
    path = written(folder, [row(USER, DOG, images=[URI])])
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-16")
    [item] = adapt.data.load(path).items()
    assert open_image(item).getpixel((0, 0)) == COLOURS["7.png"]


def test_answers_that_are_not_learned(folder: Path) -> None:
    [item] = read(folder, row(USER, DOG | {"loss": False}, BARE, DOG))
    assert [turn.learned for turn in chat_of(item).turns] == [True, False, True, True]
    [item] = read(folder, row(USER, DOG | {"weight": 0}, BARE, DOG | {"weight": 1}))
    assert [turn.learned for turn in chat_of(item).turns] == [True, False, True, True]


def test_rows_with_and_without_images_and_their_parts(folder: Path) -> None:
    words = {"messages": [{"role": "user", "content": "hello"}, DOG]}
    split = adapt.data.load(written(folder, [FORMS["LLaVA"] | {"split": "train"}, words | {"split": "test"}]))
    assert [len(split.train), len(split.val), len(split.test)] == [1, 0, 1]
    assert split.test[0].name == "hello"


def row(*messages: Any, images: Any = ("7.png",), **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), "images": list(images)} | more


def asks(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


BARE = {"role": "user", "content": "what is it?"}
BAD: dict[str, tuple[Any, str]] = {
    "fewer marks than images": (row(USER, DOG, images=["7.png"] * 2), "1 image marks and 2 images: give as many"),
    "more marks than images": (row(USER, DOG, images=[]), "1 image marks and 0 images"),
    "a mark without images": ({"messages": [USER, DOG]}, "1 image marks and 0 images"),
    "a mark typed in a part": (
        row(asks(PART, {"type": "text", "text": "<image>?"}), DOG),
        "2 image marks and 1 images",
    ),
    "an empty answer": (row(USER, DOG | {"content": " "}), "answer 1 has no words"),
    "no answer": (row(USER), "does not end with an answer"),
    "a question last": (row(USER, DOG, BARE), "does not end with an answer"),
    "an unknown role": (row(USER, DOG | {"role": "tool"}), "the role 'tool' is not known"),
    "roles out of turn": (row(DOG, USER, DOG), "turn 1 is of the assistant; expected the user"),
    "two questions in a row": (row(USER, BARE, DOG), "turn 2 is of the user; expected the assistant"),
    "a system turn inside": (row(USER, {"role": "system", "content": "be brief"}, DOG), "turn 2 is of the system"),
    "an address": (row(USER, DOG, images=["https://a.b/7.png"]), "is an address, and nothing is fetched: download it"),
    "a path outside": (row(USER, DOG, images=["../7.png"]), "is not under"),
    "a number as image": (row(USER, DOG, images=[7]), "has the image 7; expected a path, a data URI or base64"),
    "another type of part": (row(asks({"type": "video"}), DOG, images=[]), "has the type 'video'"),
    "a part of another form": (row(asks(1), DOG, images=[]), "the part 1 is neither a text nor an object"),
    "a text of null": (row(asks({"type": "text", "text": None}), DOG, images=[]), "is not a text"),
    "content of null": (row(BARE | {"content": None}, DOG), "content is None; expected a text"),
    "a turn without a role": (row({"content": "what is it?"}, DOG), "has no role or no content"),
    "both forms": ({"messages": [BARE, DOG], "conversations": turns("a", "b")}, "both messages and conversations"),
    "image and images": (row(USER, DOG, image="7.png"), "both images and image"),
    "a history of another form": ({"query": "a", "response": "b", "history": ["c"]}, "expected a list of"),
    "half a preference": ({"prompt": [BARE], "chosen": "a"}, "has chosen; expected chosen and rejected, or"),
    "three answers": (
        row(BARE, images=[], chosen="a", rejected="b", rejected_response="c"),
        "has chosen and rejected and",
    ),
    "equal answers": ({"question": "what?", "chosen": "a", "rejected": "a "}, "the rejected answer are equal"),
    "no rejected answer": (
        {"question": "what?", "chosen": "a", "rejected": " "},
        "rejected is ' '; expected an answer",
    ),
    "an image in a rejected answer": ({"question": "a", "chosen": "a", "rejected": "<image>"}, "expected an answer of"),
    "whole conversations": (
        {"chosen": [BARE, DOG], "rejected": [USER, DOG]},
        "one turn of the assistant, with earlier",
    ),
    "turns twice": (
        {"messages": [BARE], "prompt": [BARE], "completion": [DOG]},
        "has turns in messages and in another",
    ),
    "a tool": (
        {"input": {"messages": [BARE], "tools": [1]}, "preferred_output": [DOG], "non_preferred_output": [DOG]},
        "tools is .1., which seems to be a film, a sound, a tool",
    ),
    "an answer that is a number": ({"question": "how many?", "answer": 5}, "answer is 5; expected a text"),
    "a key that nobody knows": ({"question": "what?", "answer": "a", "weird": "x"}, "weird is 'x', which no form of"),
    "a film in the words": ({"question": "<video>what happens?", "answer": "a"}, "'<video>' is no mark of an image"),
    "a place in the words": ({"question": "what is at <bbox>?", "answer": "a"}, "'<bbox>' is no mark of an image here"),
    "a size of an image": (
        row(asks(PART | {"image": "7.png", "min_pixels": "small"}), DOG, images=[]),
        "min_pixels is 'small', which",
    ),
    "half a weight": (row(BARE, DOG | {"weight": 0.5}, images=[]), "the loss, or weight, is 0.5; expected true"),
    "a weight of a question": (
        row(BARE | {"weight": 1}, DOG, images=[]),
        "a turn of the user has a loss, or weight: only answers are learned",
    ),
    "a rejected question": (row(BARE, images=[], chosen=DOG, rejected=BARE), "expected an answer of the assistant"),
    "an answer of another form": (row(BARE, images=[], chosen=7, rejected="b"), "chosen is 7; expected a text, or one"),
    "rejected images": (row(USER, DOG, rejected_images=["7.png"]), "has 'rejected_images': two answers to one"),
    "other keys": ({"messages": None, "caption": "a dog"}, "caption is 'a dog', which seems to be an answer"),
    "two questions": ({"question": "what?", "prompt": "why?", "answer": "so."}, "has both prompt and question"),
    "a film": (row(USER, DOG, videos=["a.mp4"]), r"videos is \['a.mp4'\], which .*: only images and texts are learned"),
    "a question without words": (row(BARE | {"content": " "}, DOG, images=[]), "question 1 has neither words nor an"),
    "base64 as a path": (row(USER, DOG, images=["A" * 5000]), "give base64 as a data URI, or under the key base64"),
    "no turns": ({"messages": []}, "has the keys messages; expected"),
    "turns in a text": ({"messages": "[]"}, r"messages is '\[\]'; expected a list of turns"),
    "no object": ([1], r"is \[1\]; expected an object"),
    "an unknown part of the split": (row(USER, DOG, split="fold"), "unknown split 'fold'"),
    "a picture under a key that is not read": (
        {"question": "what?", "answer": "a dog", "image_id": "a.PNG"},
        "image_id is 'a.PNG', which seems to",
    ),
    "a file in a tag of the text": (
        {"question": "<img src='a.png'> what?", "answer": "a dog"},
        "<img src='a.png'>\" is no",
    ),
    "a file in a link of the text": ({"question": "![](a.png) what?", "answer": "a dog"}, "is no mark of an image"),
    "a picture as a remark": (
        {"question": "what?", "answer": "a dog", "source": "a.jpg"},
        "source is 'a.jpg', which seems to be an image: give it",
    ),
    "loss of another form": (row(BARE, DOG | {"loss": "no"}), "the loss, or weight, is 'no'; expected"),
    "nothing to learn": (row(BARE, DOG | {"loss": False}, images=[]), "no answer to learn"),
    "half an emoji": (row(BARE | {"content": "nice \ud83d"}, DOG, images=[]), "half a character .* after 'nice '"),
    "half an emoji in a rejected answer": (
        {"question": "what?", "chosen": "a", "rejected": "b\ude00"},
        "half a character",
    ),
    "an answer that is wrong": (row(USER, DOG, label=False), "label is False, which seems to be a judgement of the"),
    "one to a question": (
        {"question": "a", "answer": "b", "kto_tag": False},
        "kto_tag is False, which seems to be a j",
    ),
    "a list of answers": ({"question": "what?", "answer": ["a dog", "a dog", "dog"]}, "is .*'dog'.; expected one text"),
    "another image": (row(USER, DOG, image2="8.png"), "image2 is '8.png', which seems to be an image: list the images"),
    "an image of a turn": (row(BARE | {"images": ["7.png"]}, DOG, images=[]), "images is .*, which seems to be an im"),
    "another mark": (
        {"question": "<image_1>what?", "answer": "a", "image": "7.png"},
        "'<image_1>' is no mark of an image",
    ),
    "choices": ({"question": "what?", "answer": "B", "choices": ["a", "b"]}, "choices is .* a part of the question"),
    "a part by another name": (row(USER, DOG, subset="test"), "subset is 'test', which .*: call it split"),
    "an image as a question": (
        {"question": "7.png", "answer": "8.png"},
        "'7.png' seems to be an image; expected a text",
    ),
    "an image in a remark": ({"question": "what?", "answer": "a", "meta": {"file": "7.png"}}, "file is '7.png', which"),
    "an image by its path in a remark": (
        {"question": "what?", "answer": "a", "meta": {"path": "7.png"}},
        "path is '7.png'",
    ),
    "an image of a turn by a remark": (
        {"messages": [BARE | {"source": "7.png"}, DOG]},
        "source is '7.png', which seems to be an image",
    ),
    "a part with two images": (row(asks(PART | {"image": "7.png", "path": "8.png"}), DOG, images=[]), "names 2 images"),
    "a part of another interface": (
        row(asks({"type": "image", "source": {"data": "x"}}), DOG),
        "source is .*, which no form of a row has: take it out$",
    ),
    "loss and weight": (row(BARE, DOG | {"loss": True, "weight": 0}, images=[]), "has both loss and weight"),
    "a chosen answer without weight": (
        row(BARE, images=[], chosen=DOG | {"weight": 0}, rejected="b"),
        "weight is 0, which seems to be a judgement",
    ),
    "a mark in brackets": (row(USER | {"content": "<image>[IMG] what?"}, DOG), r"'\[IMG\]' is no mark of an image"),
    "a film inside the words": ({"question": "see <video> what?", "answer": "a"}, "turn 1: '<video>' is no mark"),
    "a film by its file": ({"question": "see <video>a.mp4</video>", "answer": "a"}, "'<video>' is no mark"),
    "a placeholder": ({"question": "what is in {image}?", "answer": "a"}, "'{image}' is no mark"),
    "brackets inside the words": ({"question": "look, [IMG] what?", "answer": "a"}, r"'\[IMG\]' is no mark"),
    "a token in an answer": (row(BARE, DOG | {"content": "a <|vision_start|>"}, images=[]), "turn 2: '<.vision_st"),
    "a token in a rejected answer": (
        {"question": "what?", "chosen": "a", "rejected": "b <image_1>"},
        "the rejected answer: '<image_1>' is no mark",
    ),
    "a tag that names a file that is there": (
        {"question": 'what is <img class="x" src="7.png">?', "answer": "a"},
        "'<img class=.x. src=.7.png.>' is no mark",
    ),
    "an image in an answer": (row(BARE, DOG | {"content": "<image>a dog"}), "answer 1 has an image"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_refused_by_file_and_row(case: str, folder: Path) -> None:
    """And no other row is taken in its place."""
    bad, message = BAD[case]
    with pytest.raises(AdaptError, match=rf"conversations '.*chats\.jsonl' row 2.*{message}"):
        read(folder, FORMS["marks"], bad)


TEXTS = (
    "how do I centre <img class='logo' src='https://a.b/logo.png'> in a page?",
    'write <video controls>\n<source src="a.mp4"></video> or <picture>\n <source srcset="a.webp"></picture>',
    "what is `<video>` for, and `<image_1>`?",
    "```html\n<video>\n{image}\n```",
    "so: ![a chart](https://a.b/chart.png) and ![](none.png)",
    "a ${image} of {{image}}, <imageView>, <imagine> and <b>video</b>, [images]",
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("images", [[], ["7.png"]])
def test_pages_of_html_and_words_about_marks_are_texts(text: str, images: list[str], folder: Path) -> None:
    """In questions and in answers, with and without an image."""
    mark = "<image>" * len(images)
    asked = {"role": "user", "content": f"{mark}tell: {text}"}
    [item] = read(folder, row(asked, DOG | {"content": text}, images=images))
    assert [turn.text for turn in chat_of(item).turns] == [f"tell: {text}", text]


def test_an_image_that_does_not_decode_is_refused_before_training(folder: Path) -> None:
    (folder / "7.png").write_bytes(b"no picture")
    split = adapt.data.load(written(folder, [FORMS["marks"]]))
    from adapt.data.check import without_broken

    with pytest.raises(AdaptError, match=r"1 of 1 conversations .* cannot be used: image '.*7\.png' cannot be decoded"):
        without_broken(split, "refuse")


def test_a_broken_image_inside_a_row_is_named_by_the_row(folder: Path) -> None:
    [item] = read(folder, {"messages": [USER, DOG], "images": ["data:image/png;base64,AAAA"]})
    with pytest.raises(AdaptError, match=r"image '.*chats\.jsonl!1/1' cannot be decoded"):
        open_image(item)


def test_photographs_are_turned_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "7.jpg", exif=exif)
    [item] = read(folder, {"messages": [USER, DOG], "images": ["7.jpg"]})
    assert item.turned
    assert open_image(item, turned=item.turned).size == (30, 40)


def test_captions_are_still_captions(folder: Path) -> None:
    [item] = read(folder, {"image": "7.png", "caption": "a dog"})
    assert item.task.name == "pairs"


PREFERENCES: dict[str, dict[str, Any]] = {
    "TRL": {"prompt": [USER], "chosen": [DOG], "rejected": [DOG | {"content": "a cat."}], "images": ["7.png"]},
    "LLaMA-Factory": {
        "conversations": turns("<image>what is it?"),
        "chosen": {"from": "gpt", "value": "a dog."},
        "rejected": {"from": "gpt", "value": "a cat."},
        "images": ["7.png"],
    },
    "TRL, whole conversations": {
        "chosen": [USER, DOG],
        "rejected": [USER, DOG | {"content": "a cat."}],
        "images": ["7.png"],
    },
    "OpenAI": {
        "input": {"messages": [asks(PART | {"path": "7.png"}, ASKED)]},
        "preferred_output": [DOG],
        "non_preferred_output": [DOG | {"content": "a cat."}],
    },
    "ms-swift": row(USER, DOG, rejected_response="a cat."),
    "ms-swift, a turn": row(USER, DOG, rejected_response=[DOG | {"content": "a cat."}]),
    "LLaVA": {"image": "7.png", "prompt": "<image>what is it?", "chosen": "a dog.", "rejected": "a cat."},
    "OpenAI's names, beside a question": {
        "filename": "7.png",
        "messages": [],
        "question": "what is it?",
        "preferred_output": "a dog.",
        "non_preferred_output": "a cat.",
    },
    "RLHF-V": {"image": "7.png", "question": "what is it?", "chosen": "a dog.", "rejected": "a cat."},
}


@pytest.mark.parametrize("form", PREFERENCES)
def test_preferences_of_each_form_are_the_same_pair(form: str, folder: Path) -> None:
    [item] = read(folder, PREFERENCES[form])
    assert item.task.name == "preferences"
    assert item.paths == (str(folder / "7.png"),)
    [asked, answered] = item.label.chat.turns
    assert (asked.images, asked.text.strip()) == (1, "what is it?")
    assert (answered.text, item.label.rejected) == ("a dog.", "a cat.")


def test_conversations_and_preferences_are_not_mixed(folder: Path) -> None:
    with pytest.raises(AdaptError, match="row 2 belongs to preferences, and row 1 to conversations: put each"):
        read(folder, FORMS["marks"], PREFERENCES["TRL"])


def _corrupted(text: str, draw: random.Random) -> str:
    """The text with one thing wrong: a letter, a word, or a value of another kind."""
    values = ["null", "1", "[]", "{}", '""', "true", '"<image>"', "[[]]", '{"type": "image"}']
    changes: list[Callable[[str], str]] = [
        lambda line: line[: draw.randrange(len(line))],
        lambda line: line.replace(draw.choice(["role", "content", "user", "assistant", "images", "type"]), "x", 1),
        lambda line: line.replace(draw.choice(['"7.png"', '"a dog."', '"user"', '"text"']), draw.choice(values)),
        lambda line: line.replace("<image>", draw.choice(["", "<image><image>", "<img>", "<img>8.png</img>"])),
        lambda line: line[: (at := draw.randrange(len(line)))] + draw.choice('{}[]",:') + line[at + 1 :],
    ]
    lines = text.split("\n")
    place = draw.randrange(len(lines))
    lines[place] = draw.choice(changes)(lines[place])
    return "\n".join(lines)


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=[pytest.mark.full, pytest.mark.at_length])])
def test_two_thousand_corrupted_files(count: int, folder: Path) -> None:
    """Each is refused in a message, or read as it says: conversations that end with an answer, with their images."""
    rows = [FORMS["marks"], FORMS["TRL"], FORMS["ms-swift"]]
    text = "\n".join(map(json.dumps, rows))
    draw, read_ones = random.Random(0), 0
    path = folder / "chats.jsonl"
    for _ in range(count):
        corrupted = _corrupted(text, draw)
        path.write_text(corrupted, encoding="utf-8")
        items: list[Item] = []
        with suppress(AdaptError):
            items = list(adapt.data.load(path).items())
            read_ones += 1
            assert len(items) == sum(bool(line.strip()) for line in corrupted.split("\n"))
        for item in items:
            if item.task.name == "conversations":
                assert chat_of(item).answer.strip()
                assert chat_of(item).images == len(item.paths)
    assert 0.05 < read_ones / count < 0.75
