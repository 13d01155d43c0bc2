"""A training by two processes is that of one: the same adapter, one log; what gains nothing from them is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import divided_training
import pytest
import tiny_llms
import torch
from divided_training import BY_ITEMS, CASES, STOPPED
from small_trainings import MakeModel
from torch import Tensor

import adapt
from adapt import AdaptError
from adapt.data import Item, Split
from adapt.formats.adapter import read_tensors
from adapt.methods import OLAVLM, Compose, LoRA, Projector
from adapt.methods.base import Method, Terms
from adapt.recipe.settings import TrainSettings
from adapt.tasks.questions import Questions
from adapt.training.processes import Processes, dividing
from adapt.training.result import read_history

TWO = Processes(2, 1)
QUESTIONS = [Item.of(path=f"{name}.png", question="what is it ?", label="a cat") for name in "ab"]


@pytest.fixture(scope="module")
def by_two(
    model_folder: Path, five_classes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[str]]]:
    """The folder of all cases, and what each of two processes says."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, divided_training.__file__, *map(str, (model_folder, five_classes, out))]
    setting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    setting |= {"ADAPT_CACHE": str(out / "cache"), "PYTHONPATH": str(Path(divided_training.__file__).parents[1])}
    each = [
        subprocess.Popen(
            words,
            env=os.environ | setting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300) for process in each]
    assert [process.returncode for process in each] == [0, 0], said
    return out, [output.splitlines() for output, _ in said]


@pytest.mark.full
@pytest.mark.parametrize("case", [*CASES, *BY_ITEMS])
def test_two_processes_learn_what_one_does(
    case: str, by_two: tuple[Path, list[list[str]]], model_folder: Path, five_classes: Path, tmp_path: Path
) -> None:
    one = divided_training.train(case, model_folder, five_classes, tmp_path)
    same_run(tmp_path / case, by_two[0] / case)
    assert one.history[0]["loss"] > 0


def same_run(one: Path, two: Path) -> None:
    expected, found = (read_tensors(folder / "adapter.safetensors") for folder in (one, two))
    assert expected.keys() == found.keys()
    assert max(float((found[name] - tensor).abs().max()) for name, tensor in expected.items()) < 1e-5
    logs = [read_history(folder / "log.jsonl") for folder in (one, two)]
    assert [entry["step"] for entry in logs[1]] == [entry["step"] for entry in logs[0]]
    for ours, theirs in zip(*logs, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["accuracy"] == ours["accuracy"]  # of the whole batch
    names = {path.name for path in one.iterdir()}
    assert {path.name for path in two.iterdir()} == names
    assert not (two / "checkpoint.safetensors").exists()


@pytest.mark.full
@pytest.mark.parametrize("case", STOPPED)
def test_a_stop_of_either_is_one_of_both_and_the_run_goes_on(case: str, by_two: tuple[Path, list[list[str]]]) -> None:
    out, said = by_two
    assert [lines[: len(STOPPED)] for lines in said] == [["stopped"] * len(STOPPED)] * 2
    same_run(out / case, out / "stopped" / case)


@pytest.mark.full
def test_what_gains_nothing_is_refused(by_two: tuple[Path, list[list[str]]]) -> None:
    for lines in by_two[1]:
        assert lines[len(STOPPED) :] == [
            "2 processes gain nothing, because gda takes no steps, and one process solves it: use one process"
        ]


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("coop", {"augment": "none"}, "coop reads features from the cache, and encodes no image in"),
        ("coop", {"views": 3}, "coop reads features from the cache"),
        ("zero_shot", None, "zero_shot takes no steps, and one process solves it"),
    ],
)
def test_what_cannot_be_divided(
    method: str, changes: dict[str, Any] | None, reason: str, make_model: MakeModel, tiny_split: Split
) -> None:
    settings = None if changes is None else TrainSettings(epochs=1, **changes)
    with pytest.raises(AdaptError, match=f"2 processes gain nothing, because {reason}.*: use one process"):
        dividing(TWO, make_model(method), tiny_split.train, settings, True)


def test_what_is_divided(make_model: MakeModel, tiny_split: Split) -> None:
    for method, augment in (("coop", "published"), ("ln_tuning", "none"), ("prograd", "published")):
        processes = dividing(TWO, make_model(method), tiny_split.train, TrainSettings(epochs=1, augment=augment), True)
        assert not processes.by_items


@pytest.mark.parametrize(
    ("method", "adds_up"),
    [
        (Projector(), True),
        (Projector(align="words"), False),  # contrasts the answers of a batch
        (OLAVLM(task_tokens=2, heads=1), False),
        (Compose([LoRA(towers=("decoder",)), Projector()]), True),
        (Compose([LoRA(towers=("decoder",)), Projector(align="assignment")]), False),
    ],
)
def test_questions_are_divided_where_the_loss_adds_up(method: Method, adds_up: bool) -> None:
    model = adapt.wrap(tiny_llms.vision_llm("llama"), method)
    with nullcontext() if adds_up else pytest.raises(AdaptError, match="cannot train together, because the loss may"):
        assert dividing(TWO, model, QUESTIONS, TrainSettings(epochs=1), True).by_items


class OwnLoss(Projector):
    """Adds a term, of which the projector's statement about its own knows nothing."""

    def loss(self, step: Any) -> Terms:
        return super().loss(step) | {"more": step.cross_entropy}


class Ranked(Questions):
    """Has a loss of its own, and does not say that it adds up."""

    def loss(self, step: Any) -> Terms:
        return {"ranked": step.cross_entropy}


def test_who_inherits_a_statement_about_the_loss_and_replaces_the_loss_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for method, task in ((OwnLoss(), Questions), (Projector(), Ranked)):
        monkeypatch.setattr("adapt.training.processes.tasks.of", lambda items, task=task: task())
        model = adapt.wrap(tiny_llms.vision_llm("llama"), method)
        with pytest.raises(AdaptError, match="cannot train together, because the loss may compare"):
            dividing(TWO, model, QUESTIONS, TrainSettings(epochs=1), True)


def test_a_batch_smaller_than_the_processes_is_refused() -> None:
    model = adapt.wrap(tiny_llms.vision_llm("llama"), Projector())
    with pytest.raises(AdaptError, match="2 processes gain nothing, because a batch has only 1 of the questions"):
        dividing(TWO, model, QUESTIONS, TrainSettings(epochs=1, batch_size=1), True)


def test_answers_count_by_their_tokens() -> None:
    model = adapt.wrap(tiny_llms.vision_llm("llama"), Projector())
    step = model.question_step(torch.zeros(2, 3, 32, 32), ["what is it ?"] * 2, ["a cat", "the red dog ."])
    assert step.weight == (step.read.targets >= 0).sum() == 3 + 5  # with the token that ends each


@pytest.mark.parametrize("changed", ["backward", "images"])
def test_methods_whose_shares_do_not_add_up(
    changed: str, make_model: MakeModel, tiny_split: Split, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("ln_tuning")
    if changed == "backward":
        monkeypatch.setattr(type(model.method), "backward", lambda self, terms: None)
        with pytest.raises(AdaptError, match="ln_tuning changes gradients by a rule that needs the full batch"):
            dividing(TWO, model, tiny_split.train, TrainSettings(epochs=1), True)
        return
    step = model.step(images, torch.zeros(6))
    step.whole = lambda rows: rows
    with pytest.raises(AdaptError, match="ln_tuning reads all images of a batch, but each of several"):
        _ = step.images


@pytest.mark.parametrize(("size", "first", "second"), [(4, [0, 2], [1, 3]), (5, [0, 2, 4], [1, 3]), (1, [0], [])])
def test_items_are_divided_without_repeats(size: int, first: list[int], second: list[int]) -> None:
    assert [Processes(2, number, by_items=True).own(range(size)) for number in (0, 1)] == [first, second]


@pytest.mark.parametrize(("size", "first", "second"), [(4, [0, 1], [2, 3]), (5, [0, 1, 2], [3, 4, 0]), (1, [0], [0])])
def test_shares_are_of_one_size(size: int, first: list[int], second: list[int]) -> None:
    assert [Processes(2, number).share(range(size)) for number in (0, 1)] == [first, second]
