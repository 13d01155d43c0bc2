"""Adapters in place of blocks that first learn to do what the blocks do."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_backbones
import tiny_fusion
import torch

from adapt import AdaptError, methods, wrap
from adapt.methods.step import ImageStep, distill
from adapt.training import fit as fitting
from adapt.training import imitate as imitating
from adapt.training import search as searching
from adapt.training.imitate import imitate
from adapt.training.loop import Trainer
from adapt.training.settings import TrainSettings

SEARCH: dict[str, Any] = {"skip": 1, "search_epochs": 2, "warmup_epochs": 0, "turn": 1, "draws": 2}
SKIPPING: dict[str, Any] = {"skip": 1, "skipped": ["vision.1"]}
COMPOSED = {"methods": [{"name": "das", **SKIPPING}, {"name": "lora", "rank": 2}]}


def _settings(imitate: int) -> TrainSettings:
    return TrainSettings(
        epochs=1, workers=0, augment="none", batch_size=6, optimizer="adamw", lr=0.01,
        schedule="cosine_iteration", imitate=imitate,
    )  # fmt: skip


def _imitated(model, items, epochs: int) -> float:
    return imitate(model, items, _settings(epochs), seed=1, progress=False)


def _apart(model, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float(distill(ImageStep(model, images)))


@pytest.mark.parametrize(("method", "config"), [("das", SKIPPING), ("compose", COMPOSED)])
def test_a_skipped_block_is_missed_less(make_model, tiny_split, images, method: str, config: dict[str, Any]) -> None:
    model = make_model(method, **config)
    before = {name: tensor.clone() for name, tensor in model.method.state_dict().items()}
    apart = _apart(model.eval(), images)
    assert _imitated(model, tiny_split.train, 30) > 0
    assert _apart(model, images) < 0.6 * apart
    changed = {name for name, tensor in model.method.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("vision.1.bypass" in name for name in changed)


@pytest.mark.parametrize(("batch_size", "expected"), [(6, 4), (2, 2)])
def test_a_step_takes_few_images(make_model, tiny_split, monkeypatch, batch_size: int, expected: int) -> None:
    made: list[Trainer] = []

    class Kept(Trainer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(imitating, "Trainer", Kept)
    settings = _settings(3).model_copy(update={"batch_size": batch_size, "accumulate": 3, "epochs": 1})
    imitate(make_model("das", **SKIPPING), tiny_split.train, settings, seed=1, progress=False)
    [trainer] = made
    assert trainer.plan.steps == 3 * (len(tiny_split.train) // expected)


@pytest.mark.parametrize("length_first", [False, True], ids=["(b, l, d)", "(l, b, d)"])
def test_the_class_token_is_also_measured_by_itself(make_model, tiny_split, images, length_first: bool) -> None:
    model = make_model("das", **SKIPPING)
    tower, bypass = model.backbone.tower("vision"), model.method.bypasses["vision.1"]
    assert tower.form.pooling == "class"
    seen: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        seen[:] = inputs[0], output

    handle = tower.blocks[1].module.register_forward_hook(keep)
    with torch.no_grad():
        model.backbone_features(images)
    handle.remove()
    before, after = seen
    made = bypass(before)

    def lacking(token: slice) -> torch.Tensor:
        wrong, change = (made - after)[:, token], (after - before)[:, token]
        return wrong.square().sum() / change.square().sum()

    if length_first:
        torch.manual_seed(0)  # the same bypass
        model = wrap(tiny_backbones.length_first(model.backbone), methods.DAS(**SKIPPING), model.class_names)
    labels = torch.zeros(len(images), dtype=torch.long)
    terms, right = imitating._lacking_blocks(model, images, labels)
    torch.testing.assert_close(terms["imitation"], lacking(slice(None)) + lacking(slice(1)), rtol=1e-4, atol=0)
    assert not right.any()


def test_a_tower_that_is_read_at_all_tokens_has_no_class_token(hf_siglip, tiny_split, images, class_names) -> None:
    model = wrap(hf_siglip, methods.DAS(**SKIPPING), class_names)
    assert model.backbone.tower("vision").form.pooling != "class"
    terms, _ = imitating._lacking_blocks(model, images, torch.zeros(len(images), dtype=torch.long))
    assert 0.5 < terms["imitation"] < 1.5  # one ratio, not two: a new adapter changes next to nothing


def test_a_search_and_the_training_after_it_start_so(make_model, tiny_split, train, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(searching.Search, "_enough", lambda self, order: (1,))  # whatever the gates say
    monkeypatch.setattr(searching, "number_of_subsets", lambda gains, goal: 2)
    monkeypatch.setattr(searching.Search, "_update", lambda self, step: None)

    def first(epochs: int) -> tuple[float, float]:
        settings = {"lr": 0.01, "optimizer": "adamw", "schedule": "constant", "imitate": epochs, "distill": 100}
        steps: list[float] = []
        run = searching.Search.run

        def watched(self, batches, report):
            return run(self, batches, lambda entry: steps.append(entry["loss"]))

        with monkeypatch.context() as patch:
            patch.setattr(searching.Search, "run", watched)
            model = make_model("das", **SEARCH)
            result = train(model, val_set=tiny_split.val, out=tmp_path / str(epochs), epochs=1, **settings)
        assert model.method.skipped == {"vision.1"}
        return steps[0], result.history[0]["loss"]

    plain, imitating = first(0), first(30)
    assert imitating[0] < 0.8 * plain[0]
    assert imitating[1] < 0.8 * plain[1]


@pytest.mark.parametrize("step", [1, 5], ids=["without a checkpoint", "with a checkpoint"])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(
    make_model, tiny_split, train, at_step, tmp_path, monkeypatch, step: int
) -> None:
    def stop() -> None:
        raise RuntimeError("killed")

    options = {"val_set": tiny_split.val, "imitate": 2}
    whole, stopped, resumed = (make_model("das", **SEARCH) for _ in range(3))
    train(whole, out=tmp_path / "whole", **options)
    at_step(step, stop)
    with pytest.raises(RuntimeError, match="killed"):
        train(stopped, out=tmp_path / "run", **options)
    if (tmp_path / "run/checkpoint.safetensors").exists():
        monkeypatch.setattr(fitting, "imitate", None)  # it is not done again
    else:
        assert step == 1
    train(resumed, out=tmp_path / "run", resume=True, **options)
    expected = whole.method.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.method.state_dict().items())


def test_without_skipped_blocks_there_is_nothing_to_do(make_model, tiny_split) -> None:
    assert _imitated(make_model("das", skip=0), tiny_split.train, 2) == 0


@pytest.mark.parametrize(("method", "config"), [("coop", {"n_ctx": 4}), ("das", {"skip": 1, "towers": ["text"]})])
def test_a_model_that_skips_no_vision_block_refuses_it(train, make_model, method: str, config: dict[str, Any]) -> None:
    if method == "das":
        config |= {"skipped": ["text.1"]}
    with pytest.raises(
        AdaptError, match=rf"train\.imitate is 2, and {method} on .* skips no blocks, or such of another"
    ):
        train(make_model(method, **config), imitate=2)


def test_a_fusion_encoder_refuses_it(train) -> None:
    model = wrap(tiny_fusion.vilt(), methods.DAS(towers=["fusion"], skip=1, skipped=["fusion.1"]), ("cat", "dog"))
    with pytest.raises(AdaptError, match=r"train\.imitate is 2, and das on .* skips no blocks, or such of another"):
        fitting._settings(model, {"epochs": 1, "imitate": 2})
    with pytest.raises(AdaptError, match=r"train\.terms has distill: 2, and das on .* changes no image features"):
        fitting._settings(model, {"epochs": 1, "distill": 2})
