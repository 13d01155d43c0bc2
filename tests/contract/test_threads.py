"""Calls from many threads, by one model or several on one backbone, give what they give one after the other."""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ALL, CLIPS, TRAINED_BY_STEPS, build, new, pairs
from checks import assert_untouched, gradient, relative, scaled, snapshot
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptedModel, Backbone
from adapt.backbones.locks import alone, frozen, sharing

EXAMPLE = Path(__file__).resolve().parents[2] / "notebooks/example.png"

THREADS, CALLS = 6, 4


@pytest.fixture(autouse=True)
def _often() -> Iterator[None]:
    """Threads take turns a thousand times as often as they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """What `work(number)` gives in each of the threads, which start together."""
    start = threading.Barrier(THREADS)

    def run(number: int) -> Any:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


@pairs(ALL, CLIPS, take=5)
@by_turns("options", [{}, {"fast": False}], ids=["fast", "plain"])
def test_predictions(method: str, backbone: Backbone, options: dict[str, Any], images: Tensor) -> None:
    """Models of this method, in turn with a zero-shot and a prompted one, on a backbone with flags of its owner."""
    backbone.model.requires_grad_(True).train()
    before = snapshot(backbone.model)
    models = [build(method, backbone, **options), build("coop", backbone, **options), build("zero_shot", backbone)]
    models.append(build(method, backbone, **options))
    with torch.no_grad():
        for parameter in models[-1].method.parameters():
            parameter.mul_(1.5)
        expected = [model.eval()(images) for model in models]
    models[0].train()  # one that is being trained is served too, in evaluation mode

    def work(number: int) -> float:
        worst = 0.0
        for call in range(CALLS):
            index = (number + call) % len(models)
            with torch.no_grad(), adapt.models.base.evaluating(models[index]):
                worst = max(worst, scaled(models[index](images), expected[index]))
        return worst

    assert max(at_once(work)) < 1e-5
    assert all(module.training for module in models[0].modules())
    assert_untouched(backbone.model, before)


@pytest.mark.parametrize("backbone", CLIPS, indirect=True)
def test_a_model_that_is_trained_while_it_predicts(backbone: Backbone, images: Tensor) -> None:
    """Every prediction is one without dropout, and every training step has its dropout."""
    model: AdaptedModel = adapt.wrap(backbone, new("lora", dropout=0.9, rank=4), ("goldfish", "toy"))
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.normal_(std=0.2)
        expected = model.eval()(images)
    model.train()

    def work(number: int) -> list[float]:
        differences = []
        for _ in range(CALLS):
            with adapt.models.base.evaluating(model) if number % 4 else contextlib.nullcontext(), torch.no_grad():
                differences.append(scaled(model(images), expected))
        return differences

    found = at_once(work)
    assert max(difference for number in range(THREADS) if number % 4 for difference in found[number]) < 1e-5
    assert min(found[0] + found[4]) > 1e-3
    assert all(module.training for module in model.modules())


@pairs(TRAINED_BY_STEPS, CLIPS, take=5)
@by_turns("options", [{}, {"fast": False, "checkpointing": True}], ids=["fast", "checkpointed"])
def test_gradients(method: str, backbone: Backbone, options: dict[str, Any], images: Tensor, labels: Tensor) -> None:
    models = [build(method, backbone, **options) for _ in range(THREADS)]
    for number, model in enumerate(models):
        with torch.no_grad():
            for parameter in model.method.parameters():
                parameter.mul_(1 + number / 10)
    expected = [gradient(model, images, labels) for model in models]
    found = at_once(lambda number: gradient(models[number], images, labels))
    assert max(map(relative, found, expected)) < 1e-5


def test_a_block_waits_for_nobody_but_calls(open_clip: Backbone, images: Tensor, labels: Tensor) -> None:
    """Neither a backward that never comes nor a stream that is not read on holds the backbone."""
    model = build("maple", open_clip, fast=False, checkpointing=True)
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    stream = model.predict_stream([EXAMPLE] * 3, batch_size=1)
    next(stream)
    done = at_once(lambda number: model(images[:1]).shape)
    assert done == [(1, 3)] * THREADS
    loss.backward()
    assert len(list(stream)) == 2


def test_unedited_calls_run_side_by_side_and_edited_ones_alone(open_clip: Backbone) -> None:
    model = open_clip.model
    inside, most, together = threading.Semaphore(0), [0], threading.Barrier(THREADS)

    def unedited(number: int) -> None:
        with frozen(model):
            together.wait(timeout=30)  # all of them are inside at one time, or this breaks

    at_once(unedited)
    count = [0]

    def edited(number: int) -> None:
        with alone(model), alone(model), sharing(model):
            count[0] += 1
            most[0] = max(most[0], count[0])
            inside.release()
            threading.Event().wait(0.001)
            count[0] -= 1

    at_once(edited)
    assert most == [1]
    with sharing(model), pytest.raises(RuntimeError, match="cannot become one that edits it"), alone(model):
        pass


def test_a_clip_and_the_vision_llm_that_looks_through_it_take_turns() -> None:
    import tiny_llms

    speaking = tiny_llms.vision_llm("llama")
    eyes = speaking.model["vision"]
    entered = []

    def outside(number: int) -> None:
        with alone(eyes if number % 2 else speaking.model):
            entered.append(number)
            assert entered[-1] == number
            threading.Event().wait(0.001)
            assert entered[-1] == number

    at_once(outside)
    assert sorted(entered) == list(range(THREADS))


def test_flags_come_back_when_the_last_call_is_over(open_clip: Backbone) -> None:
    open_clip.model.requires_grad_(True).train()
    before = snapshot(open_clip.model)
    first = frozen(open_clip.model)
    first.__enter__()
    with frozen(open_clip.model):
        pass
    assert not any(parameter.requires_grad for parameter in open_clip.model.parameters())
    first.__exit__(None, None, None)
    assert_untouched(open_clip.model, before)


def test_a_new_model_of_one_that_serves_leaves_it_serving(open_clip: Backbone, images: Tensor) -> None:
    """A model for other names takes over mode and metadata; serving it turns no dropout on."""
    model: AdaptedModel = adapt.wrap(open_clip, new("lora", dropout=0.9, rank=4), ("goldfish", "toy")).eval()
    model.metadata = {"seed": 5}
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.normal_(std=0.2)
        expected = model(images)
        other = model.with_classes(("apple", "toy"))
        other.predict([EXAMPLE])
        assert torch.equal(model(images), expected)
    assert (other.training, other.metadata) == (False, {"seed": 5})
    assert not any(module.training for module in model.modules())
    assert model.train().with_classes(("apple", "toy")).training


def test_a_stream_leaves_the_mode_to_what_comes_between(open_clip: Backbone, images: Tensor) -> None:
    model = build("lora", open_clip).train()
    model.method._modules["text"].eval()  # a mode of a part's own
    modes = [module.training for module in model.modules()]
    one, two = (model.predict_stream([EXAMPLE] * 4, batch_size=1) for _ in range(2))
    answers = [next(one), next(two), next(one)]
    assert [module.training for module in model.modules()] == modes
    model.eval()
    answers += [next(two), next(one)]
    assert not any(module.training for module in model.modules())
    one.close()
    model.train()
    answers.append(next(two))
    two.close()
    assert all(module.training for module in model.modules())
    assert len({(answer.class_name, round(answer.probability, 5)) for answer in answers}) == 1


def test_evaluation_mode_lasts_while_another_threads_ends(open_clip: Backbone) -> None:
    """A model that is in training mode, as `wrap` leaves it, under two evaluations that overlap."""
    model = build("lora", open_clip).train()
    first_inside, first_may_end, modes = threading.Event(), threading.Event(), list[bool]()

    def first() -> None:
        with adapt.models.base.evaluating(model):
            first_inside.set()
            first_may_end.wait(30)

    def second() -> None:
        first_inside.wait(30)
        with adapt.models.base.evaluating(model):
            first_may_end.set()
            ended.join(30)
            modes.append(model.method.training)

    ended = threading.Thread(target=first)
    other = threading.Thread(target=second)
    ended.start()
    other.start()
    other.join(0.2)  # it waits for the first, or is inside by now
    first_may_end.set()
    other.join(30)
    assert modes == [False]
    assert model.training
    assert all(module.training for module in model.modules())


@pytest.mark.full
@pytest.mark.parametrize("backbone", CLIPS, indirect=True)
def test_a_copy_that_is_made_while_others_call_is_whole(backbone: Backbone, images: Tensor) -> None:
    backbone.model.requires_grad_(True).train()
    before = snapshot(backbone.model)
    model = build("maple", backbone, fast=False).eval()
    with torch.no_grad():
        expected = model(images)

    def work(number: int) -> float:
        with torch.no_grad():
            if number % 4:
                return scaled(model(images), expected)
            copied = copy.deepcopy(model if number else backbone)
            parts = snapshot(copied.model if isinstance(copied, Backbone) else copied.backbone.model)
            assert all(parts["training"].values())
            assert all(trainable for _, trainable, _ in parts["flags"].values())
            assert (parts["attributes"], parts["hooks"]) == (before["attributes"], before["hooks"])
            return 0.0 if isinstance(copied, Backbone) else scaled(copied(images), expected)

    assert max(max(at_once(work)) for _ in range(4)) < 1e-5
