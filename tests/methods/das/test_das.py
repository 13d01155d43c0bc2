"""DAS: the published rule of its gates, blocks that are never called, and the adapters around those that are."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import tiny_backbones
import torch
from checks import perturb, scaled
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.engine.hooks import run
from adapt.evaluation.flops import image_flops
from adapt.methods.base import Context
from adapt.methods.das.search import updated_gates

NAMES = ("goldfish", "red_panda", "sea cucumber")


def das(backbone: Backbone, *skipped: str, towers: tuple[str, ...] = ("vision",), **options: Any) -> AdaptedModel:
    method = methods.DAS(skip=len(skipped), skipped=skipped, towers=towers)
    return perturb(adapt.wrap(backbone, method, NAMES, **options))


@pytest.mark.parametrize(("lr", "variant"), [(1.0, "ViLT and METER"), (0.05, "LaVIN")])
def test_gates_change_as_published(lr: float, variant: str) -> None:
    """Three blocks, two subsets; worked out by hand: p(1 - p) is 0.25 at 0 and 0.1966 at 1."""
    gates = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    losses = (0.5, 1.5)
    half_gap = (math.exp(-0.5) - math.exp(-1.5)) / 2  # 0.1917: what one reward is above, the other below their mean
    found = updated_gates(gates, [(0, 1), (1, 2)], losses, lr)
    expected = [lr * half_gap * 0.25, 1.0, -lr * half_gap * 0.25]
    assert half_gap == pytest.approx(0.19170, abs=1e-5)
    assert found.tolist() == pytest.approx(
        expected, rel=1e-12
    )  # in double; the block of both subsets gains what it loses
    assert gates.tolist() == [0.0, 1.0, 0.0]
    (_, second, _) = updated_gates(gates, [(0, 1), (2,)], losses, lr).tolist()
    assert second == pytest.approx(1 + lr * half_gap * 0.196612)


@by_turns("backbone", tiny_backbones.WITH_VISION_BLOCKS, indirect=True)
@pytest.mark.parametrize("fast", [None, False])
def test_a_skipped_block_is_never_called(backbone: Backbone, fast: bool | None, images: Tensor) -> None:
    model = das(backbone, "vision.1", "text.0", towers=("text", "vision"), fast=fast)
    called: list[str] = []
    for tower in backbone.towers.values():
        for index, block in enumerate(tower.blocks):
            for part in (block.norm1, block.norm2):
                part.register_forward_hook(lambda *_, name=f"{tower.name}.{index}": called.append(name))
    model(images)
    assert set(called) == {
        f"{name}.{i}" for name, tower in backbone.towers.items() for i in range(len(tower.blocks))
    } - {
        "vision.1",
        "text.0",
    }


def test_kept_blocks_have_their_adapters_beside_them(open_clip: Backbone) -> None:
    model = das(open_clip, "vision.0")
    block = open_clip.model.visual.transformer.resblocks[1]
    x = torch.randn(2, 17, 192)
    adapters = model.method.vision["1"]
    after = x + block.attention(block.ln_1(x)) + adapters["attn"](x)
    expected = after + block.mlp(block.ln_2(after)) + adapters["mlp"](after)
    tower = open_clip.tower("vision")
    changes = [(tower, model.method.edits(tower, Context()))]
    first = open_clip.model.visual.transformer.resblocks[0]
    found, bypassed = run(open_clip.model, changes, lambda: (block(x), first(x)))
    assert scaled(found, expected) < 1e-5
    assert scaled(bypassed, model.method.vision["0"]["bypass"](x)) < 1e-6
    assert scaled(block(x), expected) > 1e-3


def test_adapters_have_the_published_sizes(open_clip: Backbone) -> None:
    shapes = {name: tuple(x.shape) for name, x in das(open_clip, "vision.2").method.named_parameters()}
    assert shapes["vision.0.attn.down.weight"] == shapes["vision.0.mlp.down.weight"] == (24, 192)  # 96 of 768
    assert shapes["vision.2.bypass.down.weight"] == (48, 192)
    assert {name.split(".")[2] for name in shapes if name.startswith("vision.2")} == {"bypass"}


def test_skipping_saves_operations_in_proportion(open_clip: Backbone) -> None:
    whole, two, one = (
        image_flops(das(open_clip, *skipped)) for skipped in ((), ("vision.0", "vision.2"), ("vision.1",))
    )
    assert whole - two == 2 * (whole - one) > 0


def test_a_model_starts_anew_as_its_settings_are(open_clip: Backbone) -> None:
    method = methods.DAS(skip=1)
    model = perturb(adapt.wrap(open_clip, method, NAMES))
    assert {name.split(".")[2] for name, _ in method.named_parameters()} == {"attn", "mlp", "bypass"}
    searched = method.vision["0"]["attn"].down.weight.clone()
    method.config = methods.DAS(skipped=["vision.2"]).config
    model.start_anew()
    assert (method.config.skipped, method.selected, method.skipped) == (("vision.2",), {"vision.2"}, {"vision.2"})
    assert set(dict(method.vision["2"].named_children())) == {"bypass"}
    assert not torch.equal(method.vision["0"]["attn"].down.weight, searched)
    assert model.method.state_dict().keys() == das(open_clip, "vision.2").method.state_dict().keys()


@pytest.mark.parametrize(
    ("settings", "count"),
    [({}, 2), ({"skip": 0}, 0), ({"skipped": ["vision.1"]}, 1), ({"keep_flops": 0.9}, None)],
)
def test_how_many_blocks_are_skipped(settings: dict[str, Any], count: int | None) -> None:
    assert methods.DAS(**settings).config.count == count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip": 3}, "skip is 3, but there are 3 blocks: skip fewer"),
        ({"skip": 9}, "skip is 9, but there are 3 blocks: skip fewer"),
        (
            {"skip": 1, "skipped": ["vision.3"]},
            "skipped contains 'vision.3'; expected names among vision.0, vision.1, vision.2",
        ),
        ({"skip": 1, "skipped": ["text.0"]}, "skipped contains 'text.0'; expected names among vision.0"),
    ],
)
def test_what_does_not_fit_the_towers_is_refused(settings: dict[str, Any], message: str, open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=message):
        adapt.wrap(open_clip, methods.DAS(**settings), NAMES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip": 2, "skipped": ["vision.1"]}, "skipped has 1 different blocks, but skip is 2"),
        ({"skip": 1, "keep_flops": 0.9}, "keep_flops cannot be combined with skip or skipped"),
        ({"skipped": ["vision.1"], "keep_flops": 0.9}, "keep_flops cannot be combined with skip or skipped"),
        ({"keep_flops": 1.0}, r"keep_flops is 1\.0: .*less than 1"),
        ({"search_epochs": 1}, "warmup_epochs is 1; expected less than search_epochs, which is 1"),
    ],
)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        methods.DAS(**settings)


@pytest.mark.parametrize("fast", [None, False])
def test_skipped_blocks_of_either_tower_can_be_freed(fast: bool | None, images: Tensor, open_clip: Backbone) -> None:
    das, lora = adapt.methods.DAS(skipped=["text.1", "vision.0"], towers=("text", "vision")), adapt.methods.LoRA()
    model = adapt.wrap(open_clip, adapt.methods.Compose([das, lora]), NAMES, fast).eval()
    inside = [weakref.ref(open_clip.tower(name).blocks[i].module) for name, i in (("text", 1), ("vision", 0))]
    with torch.no_grad():
        expected = model(images)
    model.cut_skipped()
    gc.collect()
    assert [each() for each in inside] == [None, None]
    with torch.no_grad():
        assert torch.equal(model(images), expected)
