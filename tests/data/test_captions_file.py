"""Pairs of images and captions in JSON, in the forms that they come in, with the message of each mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from listed import relative
from PIL import Image

from adapt.common.errors import AdaptError
from adapt.data import Split, load, read_captions_file
from adapt.data.checks import read_leniently

GREY = "a grey cat"
PLAIN = [
    {"image": "a.jpg", "caption": "a dog", "split": "train"},
    {"image": "deep/b.jpg", "caption": ["a cat", " a grey cat "], "split": "test", "id": 7},
]
KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "", "filename": "a.jpg", "split": "restval", "sentences": [{"raw": "a dog", "tokens": ["dog"]}]},
        {
            "filepath": "deep",
            "filename": "b.jpg",
            "split": "test",
            "sentences": [{"raw": "a cat"}, {"raw": "a grey cat"}],
        },
    ],
}
COCO = {
    "info": {},
    "images": [{"id": 3, "file_name": "a.jpg"}, {"id": 1, "file_name": "deep/b.jpg"}],
    "annotations": [
        {"image_id": 1, "id": 0, "caption": "a cat"},
        {"image_id": 3, "id": 1, "caption": "a dog"},
        {"image_id": 1, "id": 2, "caption": "a grey cat"},
    ],
}
LINES = [{"file_name": "a.jpg", "text": "a dog"}, {"path": "deep/b.jpg", "captions": ["a cat", "a grey cat"]}]


def written(folder: Path, content: Any, name: str = "pairs.json") -> Path:
    lines = "\n".join(map(json.dumps, content)) if name.endswith(".jsonl") else json.dumps(content)
    (folder / name).write_text(lines)
    return folder / name


def pairs_of(split: Split, root: Path) -> set[tuple[str, str]]:
    items = list(split.items())
    return set(zip(relative(items, root), (item.text for item in items), strict=True))


@pytest.mark.parametrize(
    ("content", "name"), [(PLAIN, "pairs.json"), (KARPATHY, "pairs.json"), (COCO, "pairs.json"), (LINES, "pairs.jsonl")]
)
def test_all_forms_say_the_same(tmp_path: Path, content: Any, name: str) -> None:
    split = load(written(tmp_path, content, name))
    assert (split.task.name, split.class_names, split.name) == ("pairs", (), "pairs")
    assert pairs_of(split, tmp_path) == {("a.jpg", "a dog"), ("deep/b.jpg", "a cat"), ("deep/b.jpg", "a grey cat")}
    assert sorted(split.task.numbers(list(split.items()), ()).tolist()) in ([0, 0, 1], [0, 1, 1])  # one an image
    if content in (PLAIN, KARPATHY):
        assert (relative(split.train, tmp_path), len(split.test)) == (["a.jpg"], 2)


def test_images_are_divided_whole(tmp_path: Path) -> None:
    content = [{"image": f"{number}.jpg", "caption": ["one", f"two {number}"]} for number in range(20)]
    split = read_captions_file(written(tmp_path, content))
    assert [len(part) for part in (split.train, split.val, split.test)] == [24, 4, 12]
    assert not {item.path for item in split.train} & {item.path for item in split.test}


def test_a_split_file_is_still_one(tmp_path: Path) -> None:
    content = {"train": [["images", 0, "images"]], "val": [], "test": []}
    assert load(written(tmp_path, content)).class_names == ("images",)


IMAGE = {"id": 1, "file_name": "a.jpg"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "list no images"),
        (
            [{"image": "a.jpg"}],
            "entry 1 is {'image': 'a.jpg'}; expected {\"image\": PATH, \"caption\": TEXT or [TEXT, ...]}",
        ),
        ([PLAIN[0], {"image": "a.jpg", "caption": ""}], "entry 2 is {'caption': '', 'image': 'a.jpg'}; expected"),
        ([{"image": "a.jpg", "caption": []}], "entry 1 is {'caption': [], 'image': 'a.jpg'}; expected"),
        ([{"image": "a.jpg", "caption": ["a", 3]}], "entry 1 is"),
        ([{"image": 3, "caption": "a"}], "entry 1 is"),
        (["a.jpg"], "entry 1 is 'a.jpg'; expected"),
        ([{"image": "../a.jpg", "caption": "a"}], "entry 1: the image '../a.jpg' is not under"),
        ([{"image": "a.jpg", "caption": "a", "split": "tests"}], "entry 1: unknown split 'tests'; did you mean 'test'"),
        ([{"image": "a.jpg", "text": "what?", "label": "koala"}], "entry 1: label is 'koala', which seems to be a"),
        ([{"image": "a.jpg", "caption": "a", "correct": False}], "entry 1: correct is False, which seems to be a"),
        ([{"image": "a.jpg", "caption": "a", "split": ["test"]}], "entry 1: unknown split ['test']"),
        ([PLAIN[0], {"image": "b.jpg", "caption": "b"}], "b.jpg' has no split, but others have one"),
        ([PLAIN[0], {**PLAIN[0], "split": "test"}], "a.jpg' is of two parts, 'train' and 'test'"),
        (
            {"images": [IMAGE], "annotations": [{"image_id": 2, "caption": "a"}]},
            "annotation 1 is {'caption': 'a', 'image_id': 2}; expected",
        ),
        (
            {"images": [IMAGE, IMAGE], "annotations": []},
            "image 2 is {'file_name': 'a.jpg', 'id': 1}; expected a unique id",
        ),
        ({"images": [IMAGE], "annotations": []}, "entry 1 is {'caption': [], 'image': 'a.jpg'}; expected"),
        ({"images": [{"filename": "a.jpg", "sentences": [{}]}]}, "entry 1 is {'caption': [None], 'image': 'a.jpg'"),
        ({"images": 3}, "expected a list, or an object with a list 'images'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(AdaptError, match=re.escape(message)):
        load(written(tmp_path, content))


@pytest.mark.parametrize("text", ["[", '[{"image": }]', "[" * 100_000])
def test_what_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(AdaptError, match=r"pairs\.json' cannot be read: "):
        load(tmp_path / "pairs.json")


def test_every_bad_entry_is_named_and_two_texts_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "caption": "one", "difficulty": 3},
        {"image": "a.png", "caption": "one", "text": "two"},
        {"image": "a.png", "path": "a.png", "caption": "one"},
        {"image": "http://x/a.png", "caption": "one"},
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    split, problems = read_leniently(str(path), None)
    assert [item.text for item in split.items()] == ["one"]
    assert [problem.partition("entry ")[2][:40] for problem in problems] == [
        "2 has both caption and text: leave one o",
        "3 has both image and path: leave one of ",
        "4: the image 'http://x/a.png' is an addr",
    ]


def test_questions_without_answers_are_no_captions(tmp_path: Path) -> None:
    """As the files are by which LLaVA is evaluated."""
    row = {"question_id": 7, "image": "a.jpg", "text": "what is it?", "category": "conv"}
    with pytest.raises(AdaptError, match="entry 1 has a text beside a question_id, which seems to be a question"):
        load(written(tmp_path, [row], "questions.jsonl"))


def test_a_mark_in_a_caption_is_no_word(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="entry 1: '<image>' is no mark of an image here"):
        load(written(tmp_path, [{"image": "a.jpg", "text": "<image>\na dog"}]))
