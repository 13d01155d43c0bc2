"""Captions and preferences that a native model writes about a folder of images, whole or resumed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import tiny_natives
from click.testing import CliRunner, Result
from PIL import Image

import adapt
from adapt import AdaptError
from adapt.chats import Chat
from adapt.cli import main
from adapt.data.decoding.images import open_image
from adapt.labelling.describing import MISLEADING, PLAIN, Damage, Describer, PairMaker, write_rows
from adapt.models.native_vlm import ChatModel
from adapt.models.unadapted import unadapted

NAMES = [f"{number}.png" for number in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        Image.new("RGB", (40, 30), (12 * number, 255 - 12 * number, 90)).save(tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def model() -> ChatModel:
    made = unadapted(tiny_natives.backbone("llava"))
    assert isinstance(made, ChatModel)
    return made


def test_captions_are_the_models_answers_and_are_read_as_pairs(folder: Path, model: ChatModel) -> None:
    out = folder / "captions.jsonl"
    rows = write_rows(out, NAMES, Describer(model, str(folder), "what is it?", tokens=4))
    assert [row["image"] for row in rows] == NAMES
    direct = model.answer(folder / "3.png", "what is it?", max_new_tokens=4).text.strip()
    assert rows[3]["caption"] == direct
    assert rows[3]["source"] == {"model": model.backbone.name, "tokens": 4, "prompt": "what is it?", "labels": False}
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert written == rows


def test_photographs_are_read_upright(tmp_path: Path) -> None:
    """By a backbone without an adapter, which would say whether it learned from such."""
    for name in ("upright", "lying"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, item in enumerate(adapt.data.load("emoji-chats").test[:8]):
        image = open_image(item)
        image.save(tmp_path / f"upright/{number}.png")
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"lying/{number}.png", exif=exif)
    captions = []
    for name in ("upright", "lying"):
        out = str(tmp_path / f"{name}.jsonl")
        words = ["describe", str(tmp_path / name), "--backbone", "mini-vlm", "--tokens", "4", "--out", out]
        assert CliRunner().invoke(main, ["data", *words]).exit_code == 0
        captions.append([json.loads(line)["caption"] for line in Path(out).read_text().splitlines()])
    assert captions[0] == captions[1]
    assert len(set(captions[0])) > 1


def test_a_resumed_file_is_that_of_one_run(folder: Path, model: ChatModel) -> None:
    maker = PairMaker(model, str(folder), seed=3, tokens=4)
    whole = folder / "whole.jsonl"
    rows = write_rows(whole, NAMES, maker)
    text = whole.read_text()
    for cut in (0, len(text) // 3, len(text) - 5):
        part = folder / "part.jsonl"
        part.write_text(text[:cut])
        assert write_rows(part, NAMES, maker, resume=True) == rows
        assert part.read_text() == text
    with pytest.raises(AdaptError, match=r"part\.jsonl row 1 was not made with the seed 4: give what it was"):
        write_rows(folder / "part.jsonl", NAMES, PairMaker(model, str(folder), seed=4, tokens=4), resume=True)
    with pytest.raises(AdaptError, match=r"part\.jsonl row 1 was not made with the tokens 5"):
        write_rows(folder / "part.jsonl", NAMES, PairMaker(model, str(folder), seed=3, tokens=5), resume=True)
    write_rows(folder / "captions.jsonl", NAMES[:2], Describer(model, str(folder), tokens=4))
    for known, told in (({NAMES[0]: {"label": "red"}}, "True"), ({}, "False")):
        rest = Describer(model, str(folder), tokens=4, known=known)
        if known:
            with pytest.raises(AdaptError, match=f"row 1 was not made with the labels {told}"):
                write_rows(folder / "captions.jsonl", NAMES, rest, resume=True)
            write_rows(folder / "labelled.jsonl", NAMES[:2], rest)
        else:
            with pytest.raises(AdaptError, match=f"row 1 was not made with the labels {told}"):
                write_rows(folder / "labelled.jsonl", NAMES, rest, resume=True)
    (folder / "part.jsonl").write_text("[1]\n")
    with pytest.raises(AdaptError, match=r"part\.jsonl row 1 is \[1\]; expected a row that was written here"):
        write_rows(folder / "part.jsonl", NAMES, maker, resume=True)


def test_preferences_are_of_the_kinds_that_were_drawn(
    folder: Path, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chosen answer is to the good prompt about the clean image, the rejected one as its row says."""
    asked: list[tuple[str, Image.Image]] = []

    def answers(own: PairMaker, images: list[Image.Image], prompts: list[str]) -> list[str]:
        first = len(asked)
        asked.extend(zip(prompts, images, strict=True))
        return [f"answer {first + place}" for place in range(len(prompts))]

    monkeypatch.setattr("adapt.labelling.describing.PairMaker.answers", answers)
    rows = PairMaker(model, str(folder), good="GOOD", share=0.5, seed=1)(NAMES)
    kinds = Counter(row["source"]["made"] for row in rows)
    assert set(kinds) == {"misleading", "small", "jitter"}
    assert 5 <= kinds["misleading"] <= 15
    for place, row in enumerate(rows):
        clean = open_image(folder / NAMES[place])
        assert asked[place] == ("GOOD", clean)
        prompt, shown = asked[len(NAMES) + place]
        assert (row["chosen"], row["rejected"]) == (f"answer {place}", f"answer {len(NAMES) + place}")
        assert row["question"] in PLAIN
        if row["source"]["made"] == "misleading":
            assert prompt in MISLEADING
            assert shown == clean
        else:
            assert prompt == row["question"] == row["source"]["prompt"]
            assert shown != clean
        assert (shown.size == (26, 20)) is (row["source"]["made"] == "small")
    others = PairMaker(model, str(folder), good="GOOD", share=0, seed=1)(NAMES)
    assert {row["source"]["made"] for row in others} == {"misleading"}


def test_answers_that_say_the_same_make_no_pair(
    folder: Path, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = iter([["a dog on a mat", "a cat", ""], ["A dog on a mat", "a goat", "a goat"]])
    monkeypatch.setattr("adapt.labelling.describing.PairMaker.answers", lambda *given: next(texts))
    rows = PairMaker(model, str(folder))(NAMES[:3])
    assert [(row["image"], row["chosen"], row["rejected"]) for row in rows] == [("1.png", "a cat", "a goat")]


def test_damage_changes_what_is_seen(folder: Path) -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((60, 40))
    assert Damage("small")(image).size == (30, 20)
    darker = Damage("jitter", brightness=0.5)(image)
    assert darker.getpixel((30, 30)) == tuple(value // 2 for value in image.getpixel((30, 30)))  # type: ignore[union-attr]


def test_an_image_is_described_before_a_question(
    folder: Path, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same model, whose description stands in the question."""
    plain = model.generate([[]], ["why?"], max_new_tokens=4)
    said = model.answer(folder / "1.png", "Describe the image.", max_new_tokens=4).text
    described = Chat.about("what is it?").with_context("Image description", said)
    direct = model.chat(described, [folder / "1.png"], max_new_tokens=4)
    monkeypatch.setattr(model, "at_use", model.at_use)
    model.set_at_use(describe="Describe the image.")
    assert model.answer(folder / "1.png", "what is it?", max_new_tokens=4) == direct
    assert model.generate([[]], ["why?"], max_new_tokens=4) == plain  # there is nothing to describe
    [turn] = Chat.about("what is it?").with_context("Image description", "a dog").turns
    assert turn.parts == (None, "Image description:\na dog\n\n", "what is it?")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["data", *arguments])


def test_the_commands(folder: Path) -> None:
    for name in NAMES[3:]:
        (folder / name).unlink()
    out, common = folder / "out.jsonl", ("--backbone", "mini-vlm", "--tokens", "6")
    told = run("describe", str(folder), *common, "--out", str(out)).output
    assert f"3 captions; their root is {folder}" in told
    [item, *_] = adapt.data.load(out).items()
    assert item.task.name == "pairs"
    assert "exists already" in run("describe", str(folder), *common, "--out", str(out)).output
    told = run("pairs", str(folder), *common, "--out", str(folder / "pairs.jsonl")).output
    made = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert f"{len(made)} preferences, of" in told
    assert made
    assert {item.task.name for item in adapt.data.load(folder / "pairs.jsonl").items()} == {"preferences"}
    assert "no model is given" in run("pairs", str(folder), "--out", str(folder / "no.jsonl")).output
    (folder / "empty").mkdir()
    assert "has no image" in run("describe", str(folder / "empty"), *common, "--out", str(folder / "no.jsonl")).output
