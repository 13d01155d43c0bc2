"""Training starts at the first edited block: what it reads is computed once, and kept like features."""

from __future__ import annotations

import logging

import pytest
import torch
from checks import flat, relative, scaled

from adapt import AdaptError
from adapt.data import open_image
from adapt.edits import Parallel
from adapt.engine import vision
from adapt.methods.base import BlockInputs
from adapt.models.features import block_inputs
from adapt.recipe.settings import TrainSettings
from adapt.training.batches import ImageBatches, KnownBatches, training_batches

LATE = {"towers": ["vision"], "blocks": (2, 3), "dropout": 0.0}
SETTINGS = TrainSettings(epochs=1, workers=0, batch_size=4, augment="none")


def batches(model, split, cache: bool = True, **changed):
    settings = SETTINGS.model_copy(update=changed)
    return training_batches(model, split.train, settings, 1, cache, None)


@pytest.mark.parametrize(("method", "config", "block"), [("lora", LATE, 2), ("lora", LATE | {"blocks": (1, 3)}, 1)])
def test_a_step_from_there_is_a_step_from_the_image(make_model, tiny_split, method, config, block) -> None:
    model = make_model(method, **config)
    known = batches(model, tiny_split)
    assert isinstance(known, KnownBatches)
    assert known.block == block
    found, expected = [], []
    for taken, source in ((found, known), (expected, batches(model, tiny_split, cache=False))):
        for inputs, items in source.epoch(0, 0):
            step = tiny_split.task.step(model, items, inputs)
            loss = sum(model.losses(step, {"distill": 0.5})[0].values())
            taken += [loss.detach()[None], *torch.autograd.grad(loss, list(model.method.parameters()))]
    assert relative(flat(found), flat(expected)) < 1e-5


@pytest.mark.parametrize(
    ("method", "config", "changed"),
    [("lora", LATE, {"augment": "published"}), ("lora", {"dropout": 0.0}, {}), ("maple", {"depth": 1}, {})],
)
def test_images_are_read_where_they_change_or_the_first_block_is_edited(
    make_model, tiny_split, method, config, changed
) -> None:
    assert isinstance(batches(make_model(method, **config), tiny_split, **changed), ImageBatches)


def test_more_than_the_cache_may_hold_is_not_kept(make_model, tiny_split, monkeypatch, caplog) -> None:
    model = make_model("lora", **LATE)
    bytes_of_one = 17 * 192 * 4
    monkeypatch.setenv("ADAPT_CACHE_GIB", str((len(tiny_split.train) - 1) * bytes_of_one / 2**30))
    assert isinstance(batches(model, tiny_split), ImageBatches)
    assert f"the inputs of block 2 for {len(tiny_split.train)} images take" in caplog.text
    assert "the cache may hold" in caplog.text


def test_how_much_it_takes_is_said_before_it_is_filled(make_model, tiny_split, caplog) -> None:
    with caplog.at_level(logging.INFO, "adapt"):
        tokens = block_inputs(make_model("lora", **LATE), tiny_split.train, 2, workers=0, progress=None)
    assert tokens.shape == (len(tiny_split.train), 17, 192)
    assert "of the cache, so that training steps skip the earlier blocks" in caplog.text


def test_what_is_kept_is_what_the_block_reads(make_model, tiny_split) -> None:
    model = make_model("lora", **LATE)
    tokens = block_inputs(model, tiny_split.train, 2, workers=0, progress=None)
    transform = model.backbone.transform(train=False)
    images = torch.stack([transform(open_image(item.path)) for item in tiny_split.train])
    read, _ = model.frozen_blocks(images, ["vision.2"])["vision.2"]
    assert scaled(tokens, read) < 1e-5


def test_an_edit_of_an_earlier_block_is_refused(make_model) -> None:
    backbone = make_model("lora", **LATE).backbone
    with pytest.raises(AdaptError, match="inputs of vision block 2, but block 1 before it is edited"):
        vision.encode(backbone, torch.zeros(1, 17, 192), [Parallel(1, "mlp", torch.nn.Linear(192, 192))], begun=2)


def test_a_batch_of_block_inputs_has_no_images(make_model) -> None:
    model = make_model("lora", **LATE)
    with pytest.raises(AdaptError, match="reads images, but this batch has only image features"):
        _ = model.step(BlockInputs(2, torch.zeros(1, 17, 192)), torch.zeros(1).long()).images


def test_training_from_there_leaves_the_adapter_of_training_from_images(make_model, train) -> None:
    adapters = []
    for cache in (True, False):
        model = make_model("lora", **LATE)
        train(model, epochs=2, augment="none", cache=cache)
        adapters.append(flat(model.method.state_dict().values()))
    assert relative(*adapters) < 1e-4


def test_they_are_kept_in_the_models_own_precision(make_model, tiny_split) -> None:
    model = make_model("lora", **LATE)
    with torch.autocast("cpu", torch.bfloat16):
        kept = block_inputs(model, tiny_split.train, 2, workers=0, progress=None)
    transform = model.backbone.transform(train=False)
    images = torch.stack([transform(open_image(item.path)) for item in tiny_split.train])
    assert scaled(kept, model.block_inputs(images, 2).tokens) < 1e-5


def test_a_method_that_comes_to_edit_an_earlier_block_gets_other_batches(make_model, train) -> None:
    model = make_model("lora", **LATE)
    early = torch.nn.Linear(192, 192)
    edits = model.method.edits

    def prepare(training) -> bool:
        model.method.early = early
        model.method.edits = lambda tower, context: [*edits(tower, context), Parallel(0, "mlp", early)]
        return True

    model.method.prepare = prepare
    assert train(model, epochs=1, augment="none").metrics["steps"] > 0
