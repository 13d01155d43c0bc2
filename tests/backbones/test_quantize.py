"""Backbones in 4 and 8 bits: close to the original, smaller by what is computed, and adapted as the original is."""

from __future__ import annotations

import gc
import logging
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checks
import open_clip as open_clip_library
import pytest
import tiny_backbones
import tiny_fusion
import tiny_llms
import torch
from checks import gradient, loss_of, perturb, relative, scaled, snapshot
from selection import by_turns
from torch import Tensor, nn

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.backbones.quantize import quantize, weight_bytes
from adapt.backbones.split_attention import linear_over
from adapt.backbones.tower import Projection
from adapt.formats.adapter import read_header
from adapt.formats.merge import merge

NAMES = ("goldfish", "red_panda", "sea cucumber")
QUESTIONS = ["what is it ?", "how many dog ?", "which animal"]
ANSWERS = ["a cat", "two", "the red dog ."]
CLIPS = ("open_clip", "open_clip_timm", "hf_clip")
LLMS = ("llama", "gpt_neox", "phi3")
ALL = (*CLIPS, *LLMS, "vilt")
KINDS = ("nf4", "int8")
# relative errors; measured at most: weights 0.094 and 0.008, the features of words 0.28 and 0.034 (images: 0.08 and
# 0.008), products by those weights 6e-8 and 0.009, for int8 rounds the input, too
WEIGHTS = {"nf4": 0.1, "int8": 0.01}
FORWARD = {"nf4": 0.35, "int8": 0.045}
PRODUCT = {"nf4": 1e-6, "int8": 0.012}
every_kind = pytest.mark.parametrize("kind", KINDS)
on_clips = by_turns("name", CLIPS)
on_llms = by_turns("name", LLMS)
on_all = by_turns("name", ALL)
on_one_of_each = by_turns("name", ["open_clip_timm", "gpt_neox", "vilt"])


def fresh(name: str) -> Any:
    if name == "vilt":
        return tiny_fusion.vilt()
    return tiny_llms.vision_llm(name) if name in LLMS else tiny_backbones.backbone(name)


def outputs(backbone: Any, pictures: Tensor) -> list[Tensor]:
    """What the frozen backbone makes of images and of words."""
    with torch.inference_mode():
        if backbone.kind == "dual encoder":
            return [backbone.encode_image(pictures), backbone.encode_text(backbone.tokenize(NAMES))]
        if backbone.kind == "fusion encoder":
            return [backbone.encode(pictures, QUESTIONS)]
        ids = torch.tensor([tiny_llms.tokenizer()(QUESTIONS[1])["input_ids"]])
        return [backbone.patches(pictures), backbone.llm(input_ids=ids, use_cache=False).logits]


def projections(backbone: Backbone) -> Iterator[tuple[str, Projection]]:
    for tower in backbone.towers.values():
        for index, block in enumerate(tower.blocks):
            for letter, projection in block.projections.items():
                yield f"{tower.name}.{index}.{letter}", projection


def told(small: Backbone, original: Any) -> Any:
    """`original` with the weights in full precision that `small` says it has."""
    for (_, projection), (_, whole) in zip(projections(small), projections(original), strict=True):
        weight = getattr(whole.module, whole.weight_name).data
        weight[slice(None) if whole.rows is None else whole.rows] = projection.weight
    return original


def objective(model: Any, pictures: Tensor) -> Tensor:
    """The loss of three images."""
    family = model.backbone.kind
    if family == "dual encoder":
        return loss_of(model, pictures, torch.tensor([0, 1, 2]))
    texts = ANSWERS if family == "vision LLM" else NAMES
    return checks.objective(model, (pictures, QUESTIONS, texts), torch.tensor([0, 1, 2]))[0]


def trained(model: Any, pictures: Tensor, steps: int = 3) -> tuple[float, float]:
    """The loss before and after training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = objective(model.eval(), pictures).item()
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model.train(), pictures).backward()
        optimizer.step()
    return before, objective(model.eval(), pictures).item()


def lora(backbone: Backbone, **options: Any) -> Any:
    """LoRA on every tower; on a vision LLM's decoder alone, which does not look at its image without another method."""
    torch.manual_seed(0)
    towers = ["decoder"] if backbone.kind == "vision LLM" else list(backbone.towers)
    return adapt.wrap(backbone, methods.LoRA(towers=towers, **options), NAMES)


@pytest.fixture
def pictures(images: Tensor) -> Tensor:
    return images[:3]


@every_kind
@on_all
def test_every_linear_of_a_block_is_close_to_its_original(name: str, kind: str) -> None:
    small, original = quantize(fresh(name), kind), dict(projections(fresh(name)))
    found = dict(projections(small))
    assert found.keys() == original.keys()
    for place, projection in found.items():
        expected = original[place]
        assert projection.quantized
        assert projection.shape == expected.shape
        assert relative(projection.weight, expected.weight) < WEIGHTS[kind]
        x = torch.randn(5, projection.shape[1])
        product = x @ projection.weight.T + (0 if projection.bias is None else projection.bias)
        assert relative(projection(x), product) < PRODUCT[kind]
    inside = [block.module for tower in small.towers.values() for block in tower.blocks]
    assert not any(type(part) is nn.Linear for block in inside for part in block.modules())


@every_kind
@on_all
def test_the_forward_is_close_to_the_originals(name: str, kind: str, pictures: Tensor) -> None:
    small, original = quantize(fresh(name), kind), fresh(name)
    for found, expected in zip(outputs(small, pictures), outputs(original, pictures), strict=True):
        assert 0 < relative(found, expected) < FORWARD[kind]


@on_all
def test_in_4_bits_it_computes_by_the_weights_that_it_tells(name: str, pictures: Tensor) -> None:
    small = quantize(fresh(name), "nf4")
    for found, expected in zip(outputs(small, pictures), outputs(told(small, fresh(name)), pictures), strict=True):
        assert scaled(found, expected) < 1e-5


def stored(linear: nn.Linear, kind: str) -> int:
    """The bytes of a quantised weight: its values, their scales, and in 4 bits the tables of values and scales."""
    if kind == "int8":
        return linear.weight.numel() + 4 * linear.out_features
    blocks = linear.out_features * -(-linear.in_features // 64)
    return 32 * blocks + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256)


def linears(backbone: Backbone) -> list[nn.Linear]:
    """One for each linear that is quantised: q, k and v apart where torch's attention fuses them."""
    found: dict[tuple[int, Any], nn.Linear] = {}
    for _, projection in projections(backbone):
        apart = isinstance(projection.module, nn.MultiheadAttention)
        weight = projection.weight if apart else projection.module.weight
        found[id(projection.module), projection.rows.start if apart else None] = linear_over(weight, None)
    return list(found.values())


@every_kind
@on_all
def test_it_shrinks_by_what_is_computed_and_stays_so(name: str, kind: str, pictures: Tensor) -> None:
    backbone = fresh(name)
    saved = sum(4 * linear.weight.numel() - stored(linear, kind) for linear in linears(backbone))
    expected = weight_bytes(backbone.model) - saved
    assert weight_bytes(quantize(backbone, kind).model) == expected
    outputs(backbone, pictures)
    assert weight_bytes(backbone.model) == expected
    backbone.model._apply(torch.clone)  # as `.to(device)` does with every tensor
    assert weight_bytes(backbone.model) == expected


@on_one_of_each
def test_in_8_bits_all_that_a_product_reads_moves_with_the_weight(name: str, pictures: Tensor) -> None:
    small = quantize(fresh(name), "int8")
    before = outputs(small, pictures)
    small.model._apply(torch.clone)
    for _, projection in projections(small):
        module: Any = projection.module
        assert module.state.CB.data_ptr() == module.weight.data_ptr()
    assert all(torch.equal(*pair) for pair in zip(outputs(small, pictures), before, strict=True))


@every_kind
def test_the_originals_are_freed(kind: str) -> None:
    backbone = fresh("open_clip")
    held = [weakref.ref(getattr(projection.module, projection.weight_name)) for _, projection in projections(backbone)]
    quantize(backbone, kind)
    gc.collect()
    assert [weight for weight in held if weight() is not None] == []


def test_in_4_bits_a_vit_b_16_clip_needs_a_third() -> None:
    """By one block of each tower at full width, counted twelve times; random weights."""
    config = open_clip_library.get_model_config("ViT-B-16")
    for tower in ("vision_cfg", "text_cfg"):
        config[tower]["layers"] = 1
    sizes = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
    with torch.device("meta"):
        model = open_clip_library.model.CLIP(**sizes)
    backbone = tiny_backbones.from_open_clip(model.to_empty(device="cpu").requires_grad_(False))

    def whole() -> int:
        blocks = sum(weight_bytes(tower.blocks[0].module) for tower in backbone.towers.values())
        return weight_bytes(backbone.model) + 11 * blocks

    before = whole()
    assert before == pytest.approx(598.5e6, rel=1e-3)  # the 149.6 million parameters in fp32
    quantize(backbone, "nf4")
    assert 0.25 < whole() / before < 0.35


@every_kind
@on_all
def test_the_fingerprint_is_the_originals_and_the_content_is_not(name: str, kind: str, pictures: Tensor) -> None:
    small = quantize(fresh(name), kind)
    assert small.fingerprint == fresh(name).fingerprint
    content = small.content()
    assert content != fresh(name).content()
    outputs(small, pictures)
    with torch.autocast("cpu", torch.bfloat16):  # a product in lower precision rounds nothing for good
        outputs(small, pictures)
    assert small.content() == content


@every_kind
@on_clips
def test_coop_takes_either_path(name: str, kind: str, pictures: Tensor) -> None:
    small, labels, found = quantize(fresh(name), kind), torch.tensor([0, 1, 2]), []
    for fast in (True, False):
        torch.manual_seed(0)
        model = adapt.wrap(small, methods.CoOp(n_ctx=4), NAMES, fast)
        found.append((model.class_features(), gradient(model, pictures, labels)))
    for fast_one, plain_one in zip(*found, strict=True):
        assert relative(fast_one, plain_one) < 1e-4
    before, after = trained(model, pictures)
    assert after < before - 1e-3


@every_kind
@pytest.mark.parametrize(
    ("name", "dropout"), [*((name, 0.0) for name in ALL), *((name, 0.25) for name in ("hf_clip", "gpt_neox", "vilt"))]
)
def test_lora_trains(name: str, kind: str, dropout: float, pictures: Tensor) -> None:
    model = lora(quantize(fresh(name), kind), dropout=dropout)
    before, after = trained(model, pictures)
    assert after < before - 1e-3
    assert all(parameter.grad.norm() > 0 for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.backbone.model.parameters())


@pytest.mark.parametrize("name", ["gpt_neox", "phi3"])
def test_in_4_bits_loras_gradient_is_that_of_the_weights_it_tells(name: str, pictures: Tensor) -> None:
    """Against the original with those weights in full precision, whole and through the frozen weights alone."""
    for whole in (True, False):
        gradients = []
        for backbone in (quantize(fresh(name), "nf4"), told(quantize(fresh(name), "nf4"), fresh(name))):
            model = perturb(lora(backbone, dropout=0.0, projections="qkvo", input_gradient=whole))
            objective(model, pictures).backward()
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        assert relative(*gradients) < 1e-4


@every_kind
@on_llms
def test_vlora_trains_and_answers(name: str, kind: str, pictures: Tensor) -> None:
    torch.manual_seed(0)
    method = methods.VLoRA(dim=16, depth=1, rank=2, heads=4, skip=2)
    model = adapt.wrap(quantize(fresh(name), kind), method)
    before, after = trained(model, pictures)
    assert after < before - 1e-3
    assert all(parameter.grad.norm() > 0 for parameter in model.parameters())
    alone = [model.generate(picture, [q], max_new_tokens=4)[0] for picture, q in zip(pictures.split(1), QUESTIONS)]
    assert model.generate(pictures, QUESTIONS, max_new_tokens=4, merge=True)[0].text == alone[0].text


@every_kind
def test_an_adapter_records_it_and_warns_elsewhere(
    kind: str, pictures: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = perturb(lora(quantize(fresh("open_clip"), kind), dropout=0.0)).eval()
    path = model.save(tmp_path / "a.safetensors")
    assert read_header(path).quantization == kind
    with caplog.at_level(logging.WARNING, "adapt"):
        same = adapt.load(path, quantize(fresh("open_clip"), kind))
        assert caplog.messages == []
        whole = adapt.load(path, fresh("open_clip"))
    [message] = caplog.messages
    assert f"was trained on a backbone with {kind}, but the given backbone has no quantisation: results" in message
    assert torch.equal(same(pictures), model(pictures))
    assert 0 < relative(whole(pictures), model(pictures)) < FORWARD[kind]


def test_an_adapter_of_the_original_warns_when_it_is_quantised(
    pictures: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = lora(fresh("hf_clip")).save(tmp_path / "a.safetensors")
    assert read_header(path).quantization is None
    adapt.load(path, quantize(fresh("hf_clip"), "int8"))
    assert "was trained on a backbone with no quantisation, but the given backbone has int8" in caplog.text


@every_kind
def test_by_name_it_is_quantised_again(kind: str, tmp_path: Path) -> None:
    backbone = adapt.load_backbone("mini-clip", quantize=kind)
    model = perturb(lora(backbone, blocks=(0, 1))).eval()
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"))
    assert (backbone.quantization, loaded.backbone.quantization) == (kind, kind)
    picture = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(picture), model(picture))


@every_kind
def test_without_bitsandbytes_the_extra_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.backbones.quantize.find_spec", lambda name: None)
    for attempt in (lambda: adapt.load_backbone("mini-clip", quantize=kind), lambda: quantize(fresh("hf_clip"), kind)):
        with pytest.raises(AdaptError, match=rf'^A backbone in {kind} needs .*: pip install "adapt-vlm\[quantize\]"$'):
            attempt()


@every_kind
@on_one_of_each
def test_loras_weights_do_not_merge_into_it(name: str, kind: str, tmp_path: Path) -> None:
    model = lora(quantize(fresh(name), kind))
    with pytest.raises(AdaptError, match="cannot be merged into quantised weights: load the backbone without quantize"):
        model.method.merged()
    if name in CLIPS:
        with pytest.raises(AdaptError, match="cannot be merged into quantised weights"):
            merge(model, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


@every_kind
def test_twice_or_an_unknown_kind_is_refused(kind: str) -> None:
    small = quantize(fresh("open_clip_timm"), kind)
    with pytest.raises(AdaptError, match=f"CustomTextCLIP is already quantised to {kind}"):
        quantize(small, "nf4")
    with pytest.raises(AdaptError, match="quantize is 'nf5'; did you mean 'nf4'"):
        quantize(fresh("open_clip_timm"), "nf5")
    with pytest.raises(AdaptError, match="quantize is 'int9'; did you mean 'int8'"):
        adapt.load_backbone("mini-clip", quantize="int9")


@every_kind
@on_one_of_each
def test_unwrap_gives_the_quantised_backbone_back_as_it_was(name: str, kind: str, pictures: Tensor) -> None:
    small = quantize(fresh(name), kind)
    outputs(small, pictures)
    before, content = snapshot(small.model), small.content()
    model = perturb(lora(small))
    objective(model, pictures).backward()
    assert model.unwrap() is small
    after = snapshot(small.model)
    assert small.content() == content
    for what in ("modules", "flags", "training", "hooks", "attributes"):
        assert after[what] == before[what]


@every_kind
@on_one_of_each
def test_a_pickled_model_is_whole(name: str, kind: str, pictures: Tensor) -> None:
    backbone = quantize(fresh(name), kind)
    expected = outputs(backbone, pictures)
    again = pickle.loads(pickle.dumps(backbone))
    for one, other in zip(outputs(again, pictures), expected, strict=True):
        assert torch.equal(one, other)
    for tower, blocks in ((each.name, each.blocks) for each in backbone.towers.values()):
        for block, restored in zip(blocks, again.towers[tower].blocks, strict=True):
            for letter, projection in block.projections.items():
                assert torch.equal(restored.projections[letter].weight, projection.weight)
    assert again.quantization == kind
    assert weight_bytes(again.model) < 1.01 * weight_bytes(backbone.model)
