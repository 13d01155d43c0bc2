"""Conversations on a tiny native model: check, train, resume, evaluate, predict, chat, and classes of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_natives
from click.testing import CliRunner, Result
from PIL import Image

import adapt
from adapt.cli import main
from adapt.common.errors import AdaptError

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "smolvlm"
    tiny_natives.model("smolvlm").save_pretrained(folder)
    tiny_natives.processor("smolvlm").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight conversations about coloured pictures for each of three colours, and one without a picture."""
    folder = tmp_path_factory.mktemp("chats")
    rows = [
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi."}], "split": "train"}
    ]
    for number in range(24):
        colour = list(COLOURS)[number % 3]
        (folder / colour).mkdir(exist_ok=True)
        path = f"{colour}/{number}.png"
        Image.new("RGB", (32 + number, 30), COLOURS[colour]).save(folder / path)
        turns = [{"role": "user", "content": "<image>colour?"}, {"role": "assistant", "content": f"{colour}."}]
        rows.append({"messages": turns, "images": [path], "split": "test" if number < 6 else "train"})
    path = folder / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


TRAIN = ("--set", "train.lr=0.02", "--set", "train.epochs=12", "--set", "method.dropout=0", "--quiet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model: Path, chats: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", "lora/chats", "--data", chats, "--backbone", model, "--out", out, *TRAIN]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert (result.exit_code, result.stderr) == (0, "")
    return out


def test_a_backbone_of_another_kind_is_refused_by_its_kind(run: Run, refused, model_folder: Path, chats: Path) -> None:
    asked = run("train", "lora/chats", "--data", chats, "--backbone", model_folder, "--quiet")
    refused(asked, "the data are conversations about images, but ", " is a dual encoder: use a native VLM")


def test_it_learns(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["zero_shot"]["accuracy"] == 0
    assert metrics["adapted"]["accuracy"] == 1
    assert metrics["adapted"]["by_question"] == {"colour?": 1.0}
    assert metrics["baseline"] == "without the adapter"


def test_check(run: Run, chats: Path, model: Path) -> None:
    result = run("data", "check", chats, "--backbone", model)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "chats: conversations about images: train 19, val 0, test 6",
        "  2 turns and 0 to 1 (median 1) images in a conversation",
        f"  17 to 25 (median 25) tokens, of which {model} reads 1,024",
        "All images can be used.",
    ]
    rows = [json.loads(line) for line in chats.read_text().splitlines()]
    rows[3]["messages"][1]["content"] = "word " * 2000
    (chats.parent / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    long = run("data", "check", chats.parent / "long.jsonl", "--backbone", model)
    assert long.exit_code == 2
    assert f"1 of 25 conversations take more than the 1,024 tokens that {model} reads\n" in long.stdout
    refused = run("data", "check", chats, "--backbone", "mini-clip")
    assert "mini-clip is a dual encoder, which reads no conversations: give a native" in refused.stderr


def test_eval(run: Run, trained: Path, chats: Path) -> None:
    result = run("eval", trained, "--data", chats)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("100.0 % (61.0 to 100.0) of 6 test conversations of chats answered right, ")


def test_all_parts_are_measured_with_conversations_that_have_no_image(run: Run, trained: Path, chats: Path) -> None:
    result = run("eval", trained, "--data", chats, "--part", "all")
    assert (result.exit_code, result.stderr) == (0, "")
    scores, *_, measured = result.stdout.splitlines()
    assert " of 25 conversations of chats answered right" in scores
    assert measured == "measured: all 25 conversations of the data (train 19, test 6)"


def test_texts_alone_are_measured(run: Run, refused, trained: Path, tmp_path: Path) -> None:
    """They have no classes by which they could have been divided."""
    source = tmp_path / "texts.jsonl"
    rows = [{"question": f"what is {number}?", "answer": "a number."} for number in range(10)]
    source.write_text("\n".join(map(json.dumps, rows)))
    every = run("eval", trained, "--data", source, "--part", "all")
    assert every.exit_code == 0, every.stderr
    assert "measured: all 10 conversations of the data (train 6, val 1, test 3)" in every.stdout
    test = run("eval", trained, "--data", source)
    assert test.stdout.splitlines()[-2:] == [
        "measured: 3 test conversations of 10 (train 6, val 1; --part all measures all)",
        "texts came without parts and was divided by ratios: 60 % are for training, 10 % for validation and 30 % for "
        "testing, drawn with a fixed seed",
    ]
    source.write_text("\n".join(json.dumps(row | {"split": "train"}) for row in rows))
    refused(run("eval", trained, "--data", source), "texts has no test conversations; its conversations: train 10.")


def test_conversations_about_missing_and_broken_images_are_left_out(
    run: Run, refused, model: Path, chats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in chats.read_text().splitlines()]
    rows[7]["images"], rows[8]["images"] = ["gone.png"], ["half.png"]
    (chats.parent / "half.png").write_bytes(b"no picture")
    source = chats.parent / "lost.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    words = ("train", "lora/chats", "--data", source, "--backbone", model, "--set", "train.epochs=1", "--quiet")
    gone = f"image '{chats.parent}/gone.png' does not exist"
    refused(run(*words), f"2 of 25 conversations of data 'lost' cannot be used: {gone}")
    kept = run(*words, "--set", "data.broken=skip", "--out", tmp_path / "run")
    assert kept.exit_code == 0, kept.stderr
    assert any(line.startswith(f"left out 2 of 25 conversations of data 'lost': {gone}") for line in caplog.messages)
    assert json.loads((tmp_path / "run/metrics.json").read_text())["train_images"] == 17


def test_check_goes_on_behind_a_bad_row_and_lists_them_all(run: Run, chats: Path, model: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in chats.read_text().splitlines()]
    rows[3]["label"], rows[5]["messages"], rows[9]["images"] = False, [], ["gone.png"]
    source = chats.parent / "bad.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    result = run("data", "check", source, "--backbone", model, "--out", tmp_path / "lists")
    assert result.exit_code == 2
    assert result.stderr == "3 problems in bad.\n"
    first, _turns, _tokens, *problems = result.stdout.splitlines()
    assert first == "bad: conversations about images: train 19, val 0, test 4"
    told = ("row 4: label is False, which seems", "row 6 has the keys messages, images, split; ", "gone.png' does not")
    assert [words in problem for words, problem in zip(told, problems)] == [True] * 3
    listed = (tmp_path / "lists/inconsistent.csv").read_text()
    assert "row 4: label is False, which seems to be a judgement of the answer" in listed
    source.write_text("\n".join(json.dumps(row | {"label": False}) for row in rows[:3]))
    none = run("data", "check", source, "--backbone", model)
    assert (none.exit_code, none.stderr) == (2, "4 problems in bad.jsonl.\n")


def test_chat_without_an_image(run: Run, trained: Path) -> None:
    result = run("chat", trained, "--question", "hello", "--max-tokens", "5")
    assert result.exit_code == 0, result.stderr
    model = adapt.load(trained)
    assert isinstance(model, adapt.models.native_vlm.ChatModel)
    answer = model.chat(adapt.chats.Chat.about("hello", images=0), max_new_tokens=5).text
    assert result.stdout == f"hello  {answer}\n"


def test_table_and_report(run: Run, trained: Path, tmp_path: Path) -> None:
    table = run("table", trained)
    assert table.exit_code == 0
    assert "100.0" in table.stdout
    assert run("report", trained, "--out", tmp_path / "report.html").exit_code == 0
    assert "100.0 %" in (tmp_path / "report.html").read_text()


def test_predict_needs_a_question(run: Run, trained: Path, chats: Path) -> None:
    picture = chats.parent / "red/3.png"
    result = run("predict", trained, picture, "--question", "colour?")
    assert result.exit_code == 0
    assert result.stdout.endswith("red.\n")
    refused = run("predict", trained, picture)
    assert refused.exit_code == 2
    assert "there is no question: give a question" in refused.stderr


def test_chat_remembers(run: Run, trained: Path, chats: Path) -> None:
    """The second answer is that of the model to the whole conversation."""
    picture = chats.parent / "green/4.png"
    result = run("chat", trained, picture, "--question", "colour?", "--question", "why?", "--max-tokens", "5")
    assert result.exit_code == 0
    model = adapt.load(trained)
    assert isinstance(model, adapt.models.native_vlm.ChatModel)
    first = adapt.chats.Chat.about("colour?")
    answer = model.chat(first, [picture], max_new_tokens=5).text
    second = model.chat(first.answered(answer).asked("why?"), [picture], max_new_tokens=5).text
    assert result.stdout.splitlines() == [f"colour?  {answer}", f"why?  {second}".rstrip()]


def test_a_resumed_training_is_the_same(tmp_path: Path, run: Run, model: Path, chats: Path, trained: Path) -> None:
    out = tmp_path / "run"
    assert run("train", "lora/chats", "--data", chats, "--backbone", model, "--out", out, *TRAIN[:-1]).exit_code == 0
    assert (out / "adapter.safetensors").read_bytes() == (trained / "adapter.safetensors").read_bytes()


def test_a_folder_of_photographs_is_classified_by_the_classes_words(
    tmp_path: Path, run: Run, model: Path, chats: Path
) -> None:
    out, photos = tmp_path / "run", chats.parent
    result = run("train", "lora/chats", "--data", photos, "--backbone", model, "--out", out, *TRAIN)
    assert result.exit_code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["adapted"]["accuracy"] == 1
    shown = run("predict", out, photos / "blue/2.png", "--csv")
    assert shown.stdout.splitlines()[1].startswith(f"{photos / 'blue/2.png'},blue,")
    others = run("predict", out, photos / "blue/2.png", "--classes", "blue,violet", "--csv")
    assert others.stdout.splitlines()[1].startswith(f"{photos / 'blue/2.png'},blue,")
    asked = run("predict", out, photos / "blue/2.png", "--question", "What is in the image?")
    assert asked.stdout.endswith("blue\n")
    question, options, photo = "Which colour is in the image?", ["blue", "violet", "pale green"], photos / "blue/2.png"
    among = run("predict", out, photo, "--question", question, "--classes", ",".join(options), "--csv", "--top-k", "3")
    loaded = adapt.load(out)
    assert isinstance(loaded, adapt.models.native_vlm.ChatModel)
    chosen = loaded.choose([[Image.open(photo).convert("RGB")]], [question], options).softmax(-1)[0]
    cells = iter(among.stdout.splitlines()[1].split(",")[1:])
    found = {name: float(next(cells)) for name in cells}
    assert [found[name] for name in options] == pytest.approx(chosen.tolist(), abs=2e-6)
    in_python = adapt.load(out).predict(photo, question=question, options=options)[0]
    assert dict(in_python.top) == pytest.approx(found, abs=2e-6)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"options": ["a", "b"]}, "the options a, b answer no question: give a question too"),
        ({"question": "what?", "options": ["a", "a"]}, "appears 2 times"),
        ({"question": "what?", "sets": 0.9}, "without a question: leave one out"),
    ],
)
def test_options_and_sets_go_with_what_they_answer(
    trained: Path, chats: Path, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(AdaptError, match=words):
        adapt.load(trained).predict(chats.parent / "red/3.png", **asked)


def test_questions_of_a_csv(tmp_path: Path, run: Run, model: Path, chats: Path) -> None:
    coloured = [(number, list(COLOURS)[number % 3]) for number in range(6, 24)]
    rows = [f"{colour}/{number}.png,colour?,{colour}" for number, colour in coloured]
    source = chats.parent / "questions.csv"
    source.write_text("path,question,label,split\n" + "\n".join(f"{row},train" for row in rows) + f"\n{rows[0]},test\n")
    result = run("train", "lora/chats", "--data", source, "--backbone", model, "--out", tmp_path / "run", *TRAIN)
    assert result.exit_code == 0
    assert run("predict", tmp_path / "run", chats.parent / "red/3.png", "--question", "colour?").stdout.endswith(
        "red\n"
    )


def test_what_is_too_long_is_refused_before_the_first_step(tmp_path: Path, run: Run, model: Path) -> None:
    """By the sizes of images alone, with all that are too long; a smaller picture is proposed."""
    Image.new("RGB", (40, 30)).save(tmp_path / "0.png")
    rows = [
        {"question": "why? " * words, "answer": "so.", "image": "0.png", "split": "train"} for words in (10, 900, 400)
    ]
    source = tmp_path / "chats.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    result = run("train", "lora/chats", "--data", source, "--backbone", model, "--out", tmp_path / "run", *TRAIN)
    assert result.exit_code == 2
    assert "2 of 3 conversations take more than the 1,024 tokens that" in result.stderr
    assert "set data.max_pixels for smaller images" in result.stderr


def test_a_budget_of_pixels_is_kept_with_the_adapter(tmp_path: Path, run: Run, chats: Path) -> None:
    folder = tmp_path / "qwen"
    tiny_natives.model("qwen2_5_vl").save_pretrained(folder)
    tiny_natives.processor("qwen2_5_vl").save_pretrained(folder)
    settings = ("--set", "data.max_pixels=320", "--set", "train.epochs=1", "--quiet")
    out = tmp_path / "run"
    assert run("train", "lora/chats", "--data", chats, "--backbone", folder, "--out", out, *settings).exit_code == 0
    model = adapt.load(out)
    assert model.backbone.reading()["processor"]["size"] == {"shortest_edge": 256, "longest_edge": 320}
