"""Adapters in place of blocks that first learn to do what the blocks do."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_backbones
import tiny_fusion
import torch
from selection import by_turns
from stopping import stopped_at

from adapt import AdaptError, methods, wrap
from adapt.methods import das
from adapt.methods.base.step import ImageStep, distill
from adapt.methods.das import lacking_blocks
from adapt.methods.das import search as searching
from adapt.training import fitting as trainings
from adapt.training.loop import Trainer

SEARCH: dict[str, Any] = {"skip": 1, "search_epochs": 2, "warmup_epochs": 0, "turn": 1, "draws": 2}
SKIPPING: dict[str, Any] = {"skip": 1, "skipped": ["vision.1"]}
HOW: dict[str, Any] = {"batch_size": 6, "optimizer": "adamw", "lr": 0.01, "schedule": "cosine_iteration"}


def _composed(**config: Any) -> dict[str, Any]:
    return {"methods": [{"name": "das", **SKIPPING | config}, {"name": "lora", "rank": 2}]}


def _apart(model, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float(distill(ImageStep(model, images)))


def _bypass(model) -> torch.nn.Module:
    return model.method.vision["1"]["bypass"]


@by_turns("composed", [False, True])
def test_a_skipped_block_is_missed_less(make_model, training_of, images, composed: bool) -> None:
    config = {**SKIPPING, "imitate": 30}
    model = make_model("compose", **_composed(imitate=30)) if composed else make_model("das", **config)
    before = {name: tensor.clone() for name, tensor in model.method.state_dict().items()}
    apart = _apart(model.eval(), images)
    training = training_of(model, **HOW)
    model.method.prepare(training)
    assert training.seconds > 0
    assert _apart(model, images) < 0.6 * apart
    changed = {name for name, tensor in model.method.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("vision.1.bypass" in name for name in changed)


@pytest.mark.parametrize(("batch_size", "expected"), [(6, 4), (2, 2)])
def test_a_step_takes_few_images(make_model, training_of, monkeypatch, batch_size: int, expected: int) -> None:
    made: list[Trainer] = []

    class Kept(Trainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

    monkeypatch.setattr(trainings, "Trainer", Kept)
    model = make_model("das", **SKIPPING, imitate=3)
    training = training_of(model, **HOW | {"batch_size": batch_size, "accumulate": 3, "average": {"swa": {}}})
    model.method.prepare(training)
    [trainer] = made
    assert trainer.length.steps == 3 * (len(training.plan.train_set) // expected)
    assert trainer.average is None  # of the training alone


@pytest.mark.parametrize("length_first", [False, True], ids=["(b, l, d)", "(l, b, d)"])
def test_the_class_token_is_also_measured_by_itself(make_model, images, length_first: bool) -> None:
    model = make_model("das", **SKIPPING)
    tower = model.backbone.tower("vision")
    assert tower.form.pooling == "class"
    seen: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        seen[:] = inputs[0], output

    handle = tower.blocks[1].module.register_forward_hook(keep)
    with torch.no_grad():
        model.backbone_features(images)
    handle.remove()
    before, after = seen
    made = _bypass(model)(before)

    def lacking(token: slice) -> torch.Tensor:
        wrong, change = (made - after)[:, token], (after - before)[:, token]
        return wrong.square().sum() / change.square().sum()

    if length_first:
        torch.manual_seed(0)  # the same bypass
        model = wrap(tiny_backbones.length_first(model.backbone), methods.DAS(**SKIPPING), model.class_names)
    found = lacking_blocks({"vision.1": _bypass(model)}, ImageStep(model, images))
    torch.testing.assert_close(found, lacking(slice(None)) + lacking(slice(1)), rtol=1e-4, atol=0)


def test_a_tower_that_is_read_at_all_tokens_has_no_class_token(hf_siglip, images, class_names) -> None:
    model = wrap(hf_siglip, methods.DAS(**SKIPPING), class_names)
    assert model.backbone.tower("vision").form.pooling != "class"
    found = lacking_blocks({"vision.1": _bypass(model)}, ImageStep(model, images))
    assert 0.5 < found < 1.5  # one ratio, not two: a new adapter changes next to nothing


@pytest.mark.full
def test_a_search_and_the_training_after_it_start_so(make_model, tiny_split, train, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(searching.Search, "_enough", lambda self, order: (1,))  # whatever the gates say
    monkeypatch.setattr(searching, "number_of_subsets", lambda *blocks: 2)
    monkeypatch.setattr(searching.Search, "_update", lambda self, step: None)

    def first(epochs: int) -> tuple[float, float]:
        settings = {"lr": 0.01, "optimizer": "adamw", "schedule": "constant", "terms": {"distill": 100}}
        steps: list[float] = []
        taken = Trainer._step

        def watched(self, group):
            terms, counts = taken(self, group)
            steps.extend([sum(terms.values())] * (self.loss is None))  # the search's, after those that imitate
            return terms, counts

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", watched)
            model = make_model("das", **SEARCH, imitate=epochs)
            result = train(model, val_set=tiny_split.val, out=tmp_path / str(epochs), epochs=1, **settings)
        assert model.method.skipped == {"vision.1"}
        return steps[0], result.history[0]["loss"]

    plain, imitating = first(0), first(30)
    assert imitating[0] < 0.8 * plain[0]
    assert imitating[1] < 0.8 * plain[1]


@by_turns("step", [1, 5], ids=["without a checkpoint", "with a checkpoint"])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(
    make_model, tiny_split, train, tmp_path, monkeypatch, step: int
) -> None:
    options = {"val_set": tiny_split.val}
    whole, stopped, resumed = (make_model("das", **SEARCH, imitate=2) for _ in range(3))
    train(whole, out=tmp_path / "whole", **options)
    with stopped_at(step):
        train(stopped, out=tmp_path / "run", **options)
    if (tmp_path / "run/checkpoint.safetensors").exists():
        monkeypatch.setattr(das, "imitate", None)  # it is not done again
    else:
        assert step == 1
    train(resumed, out=tmp_path / "run", resume=True, **options)
    expected = whole.method.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.method.state_dict().items())


def test_without_skipped_blocks_there_is_nothing_to_do(make_model, training_of) -> None:
    model = make_model("das", skip=0, imitate=2)
    training = training_of(model)
    model.method.prepare(training)
    assert training.seconds == 0


@pytest.mark.parametrize("towers", [["text"], ["text", "vision"]])
def test_blocks_of_another_tower_are_refused(make_model, towers: list[str]) -> None:
    named = " and ".join(towers)
    with pytest.raises(AdaptError, match=rf"das: imitate is 2 for .* and the towers {named};"):
        make_model("das", skip=1, towers=towers, imitate=2)


def test_a_fusion_encoder_refuses_it(train) -> None:
    with pytest.raises(AdaptError, match=r"das: imitate is 2 for .* and the towers fusion;"):
        wrap(tiny_fusion.vilt(), methods.DAS(towers=["fusion"], skip=1, imitate=2), ("cat", "dog"))
    model = wrap(tiny_fusion.vilt(), methods.DAS(towers=["fusion"], skip=1, skipped=["fusion.1"]), ("cat", "dog"))
    from adapt.training import plan

    with pytest.raises(AdaptError, match=r"train\.terms has distill: 2, but das on .* does not change image features"):
        plan._settings(model, {"epochs": 1, "terms": {"distill": 2}}, True, None)
