"""`adapt data filter`: training conversations by the perplexity of their answers, as a list that is read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import adapt
from adapt.cli import main
from adapt.data.readers import load

ASKED = {"what is it?": ("dog", "sea cucumber"), "how many?": ("one", "two")}


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Six conversations for training, with right and absurd answers, and one for each other part."""
    source, rows = adapt.data.load("emoji-chats"), []
    (tmp_path / "photos").mkdir()
    for number, item in enumerate(source.train[:8]):
        adapt.data.open_image(item).save(tmp_path / "photos" / f"{number}.png")
        part = {6: "val", 7: "test"}.get(number, "train")
        said = "red" if number % 2 else "dog"
        turns = [{"role": "user", "content": "<image>what is it?"}, {"role": "assistant", "content": said}]
        if number == 2:
            turns[1:1] = [
                {"role": "assistant", "content": "two", "loss": False},
                {"role": "user", "content": "how many?"},
            ]
        rows.append({"messages": turns, "images": [f"{number}.png"], "split": part})
    path = tmp_path / "photos" / "mine.json"
    path.write_text(json.dumps(rows))
    return path


def run(*words: str) -> Any:
    return CliRunner().invoke(main, ["data", "filter", *words])


def test_the_least_surprising_answers_are_kept(listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.jsonl"
    result = run(str(listed), "--backbone", "mini-vlm", "--keep", "0.5", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "3 of 6 training items, of perplexity up to" in result.output
    before = load(str(listed))
    model: Any = adapt.wrap(adapt.load_backbone("mini-vlm"), adapt.methods.ZeroShot(), ())
    direct = []
    for item in before.train:
        chat = item.task.chat(item, "")
        rows = model.backbone.rows([chat], [[adapt.data.open_image(item)]])
        with torch.no_grad():
            logs = model.backbone.vlm(**rows.inputs).logits[0, :-1].double().log_softmax(-1)
        learned, tokens = rows.answers[0, 1:], rows.inputs["input_ids"][0, 1:]
        direct.append((-logs.gather(-1, tokens[:, None])[learned].mean()).exp().item())
    kept = sorted(sorted(range(6), key=direct.__getitem__)[:3])
    after = load(str(out), before.root)
    assert [item.path for item in after.train] == [before.train[place].path for place in kept]
    assert [item.label for item in after.train] == [before.train[place].label for place in kept]
    assert after.val[0].label == before.val[0].label
    assert after.test[0].path == before.test[0].path
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["perplexity"] for row in written[:3]] == pytest.approx([direct[place] for place in kept], rel=1e-4)
    assert all("perplexity" not in row for row in written[3:])


def test_what_cannot_be_filtered_is_refused(listed: Path, tmp_path: Path) -> None:
    out = ("--keep", "0.5", "--out", str(tmp_path / "kept.jsonl"))
    assert "give --backbone, --adapter, or both" in run(str(listed), *out).output
    assert (
        "mini-clip is a dual encoder, which reads no conversations"
        in run(str(listed), *out, "--backbone", "mini-clip").output
    )
    assert "not files in a folder" in run("emoji-chats", *out, "--backbone", "mini-vlm").output
    assert (
        "Invalid value for '--keep'" in run(str(listed), "--keep", "0", "--out", "x", "--backbone", "mini-vlm").output
    )
    (listed.parent / "images.csv").write_text("path,split\n0.png,train\n1.png,train\n6.png,val\n")
    unlabelled = run(str(listed.parent / "images.csv"), *out, "--backbone", "mini-vlm").output
    assert "has no answers to read, because its images have no labels: give labels" in unlabelled
