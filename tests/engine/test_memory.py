"""The memory of a text step: estimated honestly, and independent of the classes inside a budget."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt import AdaptedModel, Backbone
from adapt.engine.text import activation_bytes, classes_within


def coop(backbone: Backbone, classes: int, **options: object) -> AdaptedModel:
    return adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=4), [f"name number {i}" for i in range(classes)], **options)


def kept_bytes(model: AdaptedModel, image_features: Tensor | None = None) -> int:
    """What the forward pass keeps for the backward pass, each storage once, the model's own weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.backbone.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = model.class_features(image_features)
    assert features.requires_grad  # alive until here, so that no storage is counted for another
    return sum(kept.values())


@pytest.mark.parametrize("fast", [True, False])
def test_a_step_inside_a_budget_does_not_grow_with_the_classes(fast: bool, open_clip: Backbone) -> None:
    budget = 2 * 2**20
    few, many = (kept_bytes(coop(open_clip, classes, fast=fast, text_memory=budget)) for classes in (24, 96))
    assert many < budget
    assert kept_bytes(coop(open_clip, 96, fast=fast)) > 2 * budget
    assert many - few < 96 * 4096  # ids and features of a class, no activations


@pytest.mark.full
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("n_ctx", "classes"), [(1, 30), (56, 2)])  # mostly the classes' own rows, mostly shared ones
def test_the_images_of_a_batch_share_the_budget(n_ctx: int, classes: int, fast: bool, open_clip: Backbone) -> None:
    """Learned tokens of each image: the classes are encoded for each, and what all of them keep adds up."""
    features = F.normalize(torch.randn(16, 64), dim=-1)

    def kept(images: int, **options: object) -> int:
        method = adapt.methods.CoCoOp(n_ctx=n_ctx, ctx_init="")
        names = [f"name number {i}" for i in range(classes)]
        return kept_bytes(adapt.wrap(open_clip, method, names, fast, **options), features[:images])

    alone = kept(1)
    budget = 12 * alone
    assert kept(1, text_memory=budget) == alone
    assert kept(16) > budget
    assert kept(16, text_memory=budget) < budget / 2


@pytest.mark.parametrize("fast", [True, False])
def test_the_estimate_bounds_what_a_step_keeps(fast: bool, open_clip: Backbone) -> None:
    classes = 12
    model = coop(open_clip, classes, fast=fast)
    tower = open_clip.tower("text")
    lengths = [len(model.method.prompts(open_clip.tokenizer, name)[0].ids) for name in model.class_names]
    prefix = 7  # start, four learned tokens, "name number"
    rows = prefix + sum(lengths) - classes * prefix if fast else classes * 77
    estimate = rows * activation_bytes(tower, max(lengths) if fast else 77, len(tower.blocks))
    assert 0.4 * estimate < kept_bytes(model) < 1.2 * estimate


def test_what_a_row_leaves_in_memory(open_clip: Backbone) -> None:
    """Numbers of four bytes: eight of the width, three of the MLP's inside, three for each head and key."""
    tower = open_clip.tower("text")
    of_a_block = 8 * tower.width + 3 * 4 * tower.width + 3 * tower.heads * 10
    assert activation_bytes(tower, 10, 5) == 4 * 5 * of_a_block


@pytest.mark.parametrize("keeps", [True, False])
def test_parts_are_as_equal_as_can_be(keeps: bool, open_clip: Backbone) -> None:
    tower = open_clip.tower("text")
    row = activation_bytes(tower, 10, len(tower.blocks) if keeps else 1)
    assert classes_within(10**12, tower, 100, 5, 3, 10, keeps) == 100
    assert classes_within(2 * (3 * row + 5 * row * 60), tower, 100, 5, 3, 10, keeps) == 50
    assert classes_within(2 * (7 * row + 5 * row * 60), tower, 60, 5, 7, 10, keeps) == 60
    assert classes_within(2 * (7 * row + 5 * row * 60), tower, 61, 5, 7, 10, keeps) == 31  # one too many: two parts
    assert classes_within(0, tower, 100, 5, 3, 10, keeps) == 1
