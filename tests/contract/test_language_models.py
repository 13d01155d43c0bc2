"""What holds for every method of vision LLMs on every family of language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_llms
import torch
from checks import Fault, assert_untouched, failing, flag, perturb, relative, scaled, snapshot
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.models import generation as generate
from adapt.models.vision_llm import SpeakingModel

CONFIGS: dict[str, dict[str, Any]] = {
    "adem_vl": {"scales": (4, 1), "hidden": 4, "vision_dim": 2, "beta": 1.0},
    "compose": {
        "methods": [
            {"name": "vlora", "dim": 16, "depth": 1, "rank": 2, "heads": 4, "skip": 2},
            {"name": "lora", "towers": ["decoder"], "dropout": 0.0, "projections": ["q", "v"]},
        ]
    },
    "das": {"towers": ["decoder"], "skipped": ["decoder.2"]},
    "lora": {"towers": ["decoder"], "dropout": 0.0},
    "mqt": {"tokens": 4, "keys": "patches"},
    "ola_vlm": {"task_tokens": 2, "heads": 1},
    "projector": {"align": "assignment"},
    "vlora": {"dim": 16, "depth": 1, "rank": 2, "heads": 4, "skip": 2},
}
QUESTIONS = ["what is it ?", "how many dog ?", "which animal is there : red green blue ?"]
ANSWERS = ["a cat", "two", "the red dog ."]

pytestmark = [pytest.mark.parametrize("kind", tiny_llms.KINDS), pytest.mark.by_turns("kind")]
every_method = pytest.mark.parametrize("method", CONFIGS)


def build(method: str, kind: str, **options: Any) -> SpeakingModel:
    """A wrapped model whose parameters are off their start; the same values at every call."""
    torch.manual_seed(0)
    model: SpeakingModel = perturb(
        adapt.wrap(tiny_llms.vision_llm(kind), methods.find(method)(**CONFIGS[method]), **options)
    )
    return model.eval()


@pytest.fixture
def pictures(images: Tensor) -> Tensor:
    return images[: len(QUESTIONS)]


@every_method
def test_a_few_steps_reduce_the_loss(method: str, kind: str, pictures: Tensor) -> None:
    model = adapt.wrap(tiny_llms.vision_llm(kind), methods.find(method)(**CONFIGS[method]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = model.loss(pictures, QUESTIONS, ANSWERS).item()
    for _ in range(6):
        optimizer.zero_grad()
        model.loss(pictures, QUESTIONS, ANSWERS).backward()
        optimizer.step()
    assert model.loss(pictures, QUESTIONS, ANSWERS).item() < before - 1e-3


@every_method
def test_gradients_reach_the_method_also_through_checkpointed_blocks(method: str, kind: str, pictures: Tensor) -> None:
    found = []
    for checkpointing in (False, True):
        model = build(method, kind, checkpointing=checkpointing)
        model.loss(pictures, QUESTIONS, ANSWERS).backward()
        assert all(parameter.grad.norm() > 0 for parameter in model.parameters())
        assert all(parameter.grad is None for parameter in model.backbone.model.parameters())
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert relative(found[1], found[0]) < 1e-5


@every_method
def test_padding_on_either_side_and_company_change_nothing(method: str, kind: str, pictures: Tensor) -> None:
    model = build(method, kind)
    together = model(pictures, QUESTIONS)
    for i, question in enumerate(QUESTIONS):
        alone = model(pictures[i : i + 1], [question])
        assert scaled(together[i : i + 1, : alone.shape[1]], alone) < 1e-5
    batched = model.generate(pictures, QUESTIONS, max_new_tokens=6)  # padded on the left
    single = [model.generate(pictures[i : i + 1], [q], max_new_tokens=6)[0] for i, q in enumerate(QUESTIONS)]
    assert [answer.text for answer in batched] == [answer.text for answer in single]
    assert [answer.probability for answer in batched] == pytest.approx([a.probability for a in single], rel=1e-3)


@every_method
def test_beams_belong_to_their_image(method: str, kind: str, pictures: Tensor) -> None:
    model = build(method, kind)
    settings: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 5}
    batched = model.generate(pictures, QUESTIONS, **settings)
    single = [model.generate(pictures[i : i + 1], [q], merge=False, **settings)[0] for i, q in enumerate(QUESTIONS)]
    assert [answer.text for answer in batched] == [answer.text for answer in single]


@every_method
def test_a_saved_adapter_loads_bit_for_bit(method: str, kind: str, pictures: Tensor, tmp_path: Path) -> None:
    model = build(method, kind)
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), tiny_llms.vision_llm(kind))
    assert torch.equal(loaded(pictures, QUESTIONS), model(pictures, QUESTIONS))
    assert loaded.method.config == model.method.config
    with pytest.raises(AdaptError, match="prompt"):
        adapt.load(tmp_path / "a.safetensors", tiny_llms.vision_llm(kind, prompt="<image> {} answer :"))


@every_method
def test_unwrap_gives_the_backbone_back_as_it_was(method: str, kind: str, pictures: Tensor) -> None:
    backbone = tiny_llms.vision_llm(kind)
    before = snapshot(backbone.model)
    model = perturb(adapt.wrap(backbone, methods.find(method)(**CONFIGS[method]), checkpointing=True))
    model.loss(pictures, QUESTIONS, ANSWERS).backward()
    model.generate(pictures[:1], QUESTIONS[:1], max_new_tokens=3)
    assert model.unwrap() is backbone
    assert_untouched(backbone.model, before)
    with pytest.raises(AdaptError, match="was unwrapped"):
        model(pictures, QUESTIONS)


@every_method
def test_an_error_inside_a_block_leaves_the_backbone_as_it_was(method: str, kind: str, pictures: Tensor) -> None:
    """In the call itself, where the block is computed again in the backward pass, and while an answer is generated."""
    backbone = tiny_llms.vision_llm(kind)
    flag(backbone.model)
    before = snapshot(backbone.model)
    model = perturb(adapt.wrap(backbone, methods.find(method)(**CONFIGS[method]), checkpointing=True)).eval()
    expected = model(pictures, QUESTIONS)
    for part in (backbone.tower("decoder").blocks[1].norm1, backbone.tower("decoder").blocks[3].norm1):
        with failing(part), pytest.raises(Fault):
            model.loss(pictures, QUESTIONS, ANSWERS)
        assert_untouched(backbone.model, before)
        with failing(part), pytest.raises(Fault):
            model.generate(pictures[:1], QUESTIONS[:1], max_new_tokens=3)
        assert_untouched(backbone.model, before)
        if method not in ("mqt", "ola_vlm", "projector"):  # they give tokens to the first block: none is computed again
            loss = model.loss(pictures, QUESTIONS, ANSWERS)
            with failing(part), pytest.raises(Fault):
                torch.autograd.grad(loss, list(model.parameters()))
            assert_untouched(backbone.model, before)
        assert torch.equal(model(pictures, QUESTIONS), expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_skipped_blocks_cache_is_not_missed(kind: str, beams: int, pictures: Tensor) -> None:
    torch.manual_seed(0)
    settings = {"towers": ["decoder"], "skipped": ["decoder.2", "decoder.3"]}
    model = perturb(adapt.wrap(tiny_llms.vision_llm(kind), methods.DAS(**settings))).eval()
    cached, anew = (
        model.generate(pictures, QUESTIONS, max_new_tokens=6, num_beams=beams, use_cache=use) for use in (True, False)
    )
    assert [answer.text for answer in cached] == [answer.text for answer in anew]


def test_skipped_blocks_can_be_freed(kind: str, pictures: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = tiny_llms.vision_llm(kind)
    blocks = backbone.tower("decoder").blocks
    inside = sum(parameter.numel() for block in blocks[2:] for parameter in block.module.parameters())
    model = perturb(adapt.wrap(backbone, methods.DAS(towers=["decoder"], skipped=["decoder.2", "decoder.3"]))).eval()
    expected = model(pictures, QUESTIONS), [answer.text for answer in model.generate(pictures, QUESTIONS)]
    before = sum(parameter.numel() for parameter in backbone.model.parameters())
    model.cut_skipped()
    assert before - sum(parameter.numel() for parameter in backbone.model.parameters()) == inside
    assert torch.equal(model(pictures, QUESTIONS), expected[0])
    assert [answer.text for answer in model.generate(pictures, QUESTIONS)] == expected[1]
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), tiny_llms.vision_llm(kind))
    assert torch.equal(loaded(pictures, QUESTIONS), expected[0])
    with pytest.raises(AdaptError, match=r"the block decoder\.2 was removed"):
        adapt.wrap(backbone, methods.Projector())(pictures, QUESTIONS)


def test_the_first_block_of_each_kind_of_attention_stays(kind: str) -> None:
    needed = {"decoder.0", "decoder.1"} if kind == "gemma" else {"decoder.0"}
    for name in needed:
        with pytest.raises(AdaptError, match=f"'{name}'.*needs the first block of each kind of attention"):
            adapt.wrap(tiny_llms.vision_llm(kind), methods.DAS(towers=["decoder"], skipped=[name]))
    model = adapt.wrap(tiny_llms.vision_llm(kind), methods.DAS(towers=["decoder"], skip=1))
    assert set(model.method.blocks) == {f"decoder.{i}" for i in range(4)} - needed


def test_without_the_learned_factors_the_language_model_is_unchanged(kind: str, pictures: Tensor) -> None:
    backbone = tiny_llms.vision_llm(kind)
    model = adapt.wrap(backbone, methods.VLoRA(**CONFIGS["vlora"]))
    rows = generate.rows(backbone, QUESTIONS, None, 0, left=False)
    tokens = {"attention_mask": rows.mask.long(), "position_ids": rows.positions, "use_cache": False}
    assert torch.equal(model(pictures, QUESTIONS), backbone.llm(input_ids=rows.ids, **tokens).logits)


def test_merged_weights_say_the_same(kind: str, pictures: Tensor) -> None:
    model = build("vlora", kind)
    for image, question in zip(pictures.split(1), QUESTIONS):
        merged, beside = (
            model.generate(image, [question], merge=merge, max_new_tokens=8)[0] for merge in (True, False)
        )
        assert (merged.text, merged.tokens) == (beside.text, beside.tokens)
        assert merged.probability == pytest.approx(beside.probability, rel=1e-4)


def test_the_factors_are_sized_by_each_projection(kind: str, pictures: Tensor) -> None:
    model = build("vlora", kind)
    block = model.backbone.tower("decoder").blocks[1]
    found = model.method.weights(model.backbone.patches(pictures))
    assert len(found) == 2  # blocks 1 and 3
    for letter, site in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
        out, into = block.projections[site].weight.shape
        a, b = found[0][letter]
        assert (a.shape, b.shape) == ((3, into, 2), (1, out, 2))
    widest = max(block.projections[site].weight.shape[1] for site in ("q", "k", "v", "out"))
    assert model.method.gen.weights_head.weight.shape[1] == widest * 2
