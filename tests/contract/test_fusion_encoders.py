"""DAS and the trained head on fusion encoders; BridgeTower's two streams skip independently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_fusion
import torch
from checks import Fault, assert_untouched, failing, flag, objective, perturb, relative, snapshot
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.models.fusion_encoder import AnsweringModel

QUESTIONS = ["what is it ?", "how many dog ?", "which animal is there ?"]
ANSWERS = ("cat", "dog", "two")
STREAMS = {"vilt": ("fusion",), "bridgetower": ("text_fusion", "vision_fusion")}
SKIPPED = {"vilt": ("fusion.0", "fusion.2"), "bridgetower": ("text_fusion.1", "vision_fusion.0")}
MAKERS: dict[str, Callable[[], Any]] = {"vilt": tiny_fusion.vilt, "bridgetower": tiny_fusion.bridgetower}

pytestmark = pytest.mark.parametrize("kind", MAKERS)


def build(kind: str, skipped: tuple[str, ...] | None = None, backbone: Any = None, **options: Any) -> AnsweringModel:
    torch.manual_seed(0)
    method = methods.DAS(towers=STREAMS[kind], skipped=SKIPPED[kind] if skipped is None else skipped)
    model: AnsweringModel = perturb(adapt.wrap(backbone or MAKERS[kind](), method, ANSWERS, **options))
    return model


def pictures(model: AnsweringModel) -> Tensor:
    size = model.backbone.preprocess.size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_skipped_blocks_are_never_called_and_kept_ones_with_their_adapters(kind: str) -> None:
    model = build(kind)
    called: list[str] = []
    for tower in STREAMS[kind]:
        for index, block in enumerate(model.backbone.tower(tower).blocks):
            for part in block.module.children():
                part.register_forward_hook(lambda *_, name=f"{tower}.{index}": called.append(name))
    for name, module in model.method.named_modules():
        if type(module).__name__ == "Adapter":
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(pictures(model), QUESTIONS)
    sites = ("attn", "cross", "mlp") if kind == "bridgetower" else ("attn", "mlp")
    kept = {f"{t}.{i}" for t in STREAMS[kind] for i in range(len(model.backbone.tower(t).blocks))} - set(SKIPPED[kind])
    adapters = {f"{name}.{site}" for name in kept for site in sites} | {f"{name}.bypass" for name in SKIPPED[kind]}
    assert set(called) == kept | adapters
    assert all(called.count(name) == 1 for name in adapters)


def test_hidden_sizes_are_those_of_the_paper(kind: str) -> None:
    model = build(kind)
    width = model.backbone.tower(STREAMS[kind][0]).width
    sites = 3 if kind == "bridgetower" else 2
    state = model.method.state_dict()
    assert state[f"{SKIPPED[kind][0]}.bypass.down.weight"].shape == (sites * (width // 8), width)
    kept = next(name for name in state if name.endswith("attn.down.weight"))
    assert state[kept].shape == (width // 8, width)


def test_adapters_that_change_nothing_leave_the_encoder_as_it_is(kind: str) -> None:
    model = build(kind, skipped=())
    for name, parameter in model.method.named_parameters():
        if ".up." in name:
            torch.nn.init.zeros_(parameter)
    images = pictures(model)
    expected = model.method.classifier(model.backbone.encode(images, QUESTIONS))
    assert torch.equal(model(images, QUESTIONS), expected)


def test_gradients_reach_all_parameters_also_through_checkpointed_blocks(kind: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = build(kind, checkpointing=checkpointing)
        loss, _ = objective(model, (pictures(model), QUESTIONS, ANSWERS), torch.tensor([0, 2, 1]))
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
        assert all(parameter.grad is None for parameter in model.backbone.model.parameters())
    assert found[0].ne(0).float().mean() > 0.5
    assert relative(found[1], found[0]) < 1e-6


def test_a_composition_trains_the_head_too(kind: str) -> None:
    das = {"name": "das", "towers": STREAMS[kind], "skipped": SKIPPED[kind]}
    method = methods.Compose([das, {"name": "lora", "towers": STREAMS[kind]}])
    model = adapt.wrap(MAKERS[kind](), method, ANSWERS)
    trained = {id(parameter) for parameter in method.trains()}
    assert trained == {id(parameter) for parameter in method.parameters()}
    assert {id(parameter) for parameter in model.method.classifier.parameters()} < trained


def test_an_adapter_loads_bit_for_bit_and_unwrap_restores_the_encoder(kind: str, tmp_path: Path) -> None:
    backbone = MAKERS[kind]()
    before = snapshot(backbone.model)
    model = build(kind, backbone=backbone).eval()
    images = pictures(model)
    expected = model(images, QUESTIONS)
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), MAKERS[kind]())
    assert torch.equal(loaded(images, QUESTIONS), expected)
    assert loaded.class_names == ANSWERS
    assert model.unwrap() is backbone
    assert_untouched(backbone.model, before)


def test_an_error_inside_a_block_leaves_the_encoder_as_it_was(kind: str) -> None:
    """In the call itself, and where the block is computed again in the backward pass."""
    backbone = MAKERS[kind]()
    flag(backbone.model)
    before = snapshot(backbone.model)
    model = build(kind, backbone=backbone, checkpointing=True).eval()
    batch, labels = (pictures(model), QUESTIONS, ANSWERS), torch.tensor([0, 2, 1])
    expected = model(*batch[:2])
    for tower in STREAMS[kind]:
        index = next(i for i in range(len(backbone.tower(tower).blocks)) if f"{tower}.{i}" not in SKIPPED[kind])
        part = backbone.tower(tower).blocks[index].norm2
        with failing(part), pytest.raises(Fault):
            objective(model, batch, labels)
        assert_untouched(backbone.model, before)
        loss, _ = objective(model, batch, labels)
        with failing(part), pytest.raises(Fault):
            torch.autograd.grad(loss, list(model.parameters()))
        assert_untouched(backbone.model, before)
        assert torch.equal(model(*batch[:2]), expected)


def test_a_search_starts_the_head_anew(kind: str) -> None:
    torch.manual_seed(0)
    model = adapt.wrap(MAKERS[kind](), methods.DAS(towers=STREAMS[kind], skip=2), ANSWERS)
    before = model.method.classifier[0].weight.clone()
    perturb(model)
    model.method.config = methods.DAS(skipped=SKIPPED[kind], towers=model.method.config.towers).config
    model.start_anew()
    assert model.method.config.skipped == SKIPPED[kind]
    assert not torch.equal(model.method.classifier[0].weight, before)
    assert float(model.method.classifier[1].weight.detach().sub(1).abs().max()) == 0  # the norm of a new head


def test_learned_tokens_and_methods_of_clip_are_refused(kind: str) -> None:
    with pytest.raises(AdaptError, match="coop adapts a dual encoder, and"):
        adapt.wrap(MAKERS[kind](), methods.CoOp(), ANSWERS)
