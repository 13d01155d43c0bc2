"""Compose: what its parts compute together, whose prompts it reads, and which parts do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_llms
import torch
from checks import gradient, loss_of, perturb, relative, scaled
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.methods.base import Terms
from adapt.methods.compose import Compose

NAMES = ("goldfish", "red_panda", "sea cucumber")
DAS, LoRA, CoOp = methods.DAS, methods.LoRA, methods.CoOp


def wrapped(backbone: Backbone, *parts: methods.Method, **options: Any) -> AdaptedModel:
    """A model off its start; the same values at every call."""
    torch.manual_seed(0)
    return perturb(adapt.wrap(backbone, Compose(parts), NAMES, **options)).eval()


def test_a_part_that_changes_nothing_leaves_the_other(open_clip: Backbone, images: Tensor) -> None:
    alone = perturb(adapt.wrap(open_clip, LoRA(), NAMES)).eval()
    both = wrapped(open_clip, LoRA(), DAS(skipped=[]))
    both.method.parts["lora"].load_state_dict(alone.method.state_dict())
    assert not torch.allclose(both(images), alone(images), atol=1e-2)
    for name, parameter in both.method.parts["das"].named_parameters():
        if ".up." in name:
            torch.nn.init.zeros_(parameter)
    assert torch.equal(both(images), alone(images))


def test_each_part_computes_what_it_does_alone(open_clip: Backbone, images: Tensor) -> None:
    """On towers of their own, two parts do not meet."""
    both = wrapped(open_clip, DAS(skipped=["vision.1"]), CoOp(n_ctx=4))
    light, prompts = (adapt.wrap(open_clip, part, NAMES).eval() for part in (DAS(skipped=["vision.1"]), CoOp(n_ctx=4)))
    for model, name in ((light, "das"), (prompts, "coop")):
        model.method.load_state_dict(both.method.parts[name].state_dict())
    assert torch.equal(both.image_features(images), light.image_features(images))
    assert torch.equal(both.class_features(), prompts.class_features())


def test_its_tensors_are_those_of_the_parts(open_clip: Backbone) -> None:
    parts = DAS(skipped=["vision.1"]), LoRA(), LoRA(projections="o", logit_scale=None)
    method = wrapped(open_clip, *parts).method
    assert tuple(method.parts) == ("das", "lora", "lora2")
    assert tuple(method.parts.values()) == parts
    expected = {f"{name}.{key}" for name, part in method.parts.items() for key in part.state_dict()}
    assert method.state_dict().keys() == expected
    assert (method.touches, method.logit_scale) == ({"text", "vision"}, 100.0)
    assert list(wrapped(open_clip, LoRA(), CoOp(n_ctx=2)).method.learned_tokens) == ["coop.ctx"]


def test_a_skipped_block_has_no_inside(open_clip: Backbone, images: Tensor, labels: Tensor) -> None:
    model = wrapped(open_clip, LoRA(dropout=0), DAS(skipped=["vision.1", "text.0"], towers=["text", "vision"]))
    within = [name for name in model.method.state_dict() if name.startswith(("lora.vision.1.", "lora.text.0."))]
    assert within == []
    assert "lora.vision.2.q.lora_A.weight" in model.method.state_dict()
    loss_of(model, images, labels).backward()
    assert all(parameter.grad.norm() > 0 for parameter in model.method.parameters())


def test_while_blocks_are_searched_only_what_is_inside_the_skipped_ones_rests(
    open_clip: Backbone, images: Tensor, labels: Tensor
) -> None:
    model = wrapped(open_clip, DAS(skip=1), LoRA(dropout=0, towers=["vision"]))
    das = model.method.parts["das"]
    das.select(["vision.2"])
    loss_of(model, images, labels).backward()
    resting = {name for name, parameter in model.method.named_parameters() if parameter.grad is None}
    inside = {name for name, _ in model.method.named_parameters() if name.startswith("lora.vision.2.")}
    other = {f"das.vision.{i}.bypass" for i in (0, 1)} | {f"das.vision.2.{site}" for site in ("attn", "mlp")}
    assert inside
    assert inside < resting
    assert {".".join(name.split(".")[:4]) for name in resting - inside} == other


def test_all_parts_start_anew_as_if_the_blocks_had_been_named(open_clip: Backbone) -> None:
    method = Compose([DAS(skip=1), LoRA(towers=["vision"])])
    model = perturb(adapt.wrap(open_clip, method, NAMES))
    method.parts["das"].config = DAS(skipped=["vision.2"]).config
    torch.manual_seed(1)
    model.start_anew()
    assert method.skipped == {"vision.2"}
    assert method.config.methods[0] | {"skip": 1, "skipped": ["vision.2"]} == method.config.methods[0]
    torch.manual_seed(1)
    named = adapt.wrap(open_clip, Compose([DAS(skipped=["vision.2"]), LoRA(towers=["vision"])]), NAMES)
    expected = named.method.state_dict()
    assert method.state_dict().keys() == expected.keys()
    assert not any(name.startswith("lora.vision.2.") for name in expected)
    assert all(torch.equal(value, expected[name]) for name, value in method.state_dict().items())


def test_terms_of_all_parts_add_up(open_clip: Backbone, images: Tensor, labels: Tensor) -> None:
    alone = adapt.wrap(open_clip, methods.KgCoOp(n_ctx=4, ctx_init=""), NAMES)
    parts = [methods.KgCoOp(n_ctx=4, ctx_init=""), LoRA(dropout=0, logit_scale=None)]
    model = adapt.wrap(open_clip, Compose(parts), NAMES)
    model.method.parts["kgcoop"].load_state_dict(alone.method.state_dict())
    terms, _ = model.losses(model.step(images, labels))
    expected, _ = alone.losses(alone.step(images, labels))  # LoRA's updates are zero at the start
    assert terms.keys() == {"cross_entropy", "kgcoop.knowledge"}
    assert torch.allclose(terms["cross_entropy"], expected["cross_entropy"], atol=1e-5)
    assert torch.allclose(terms["kgcoop.knowledge"], expected["knowledge"], atol=1e-5)


class Pulled(LoRA):
    """LoRA with a term that has the name of another part's."""

    name = "pulled"

    def loss(self, step: Any) -> Terms:
        return super().loss(step) | {"knowledge": torch.ones(())}


class Otherwise(LoRA):
    name = "otherwise"

    def loss(self, step: Any) -> Terms:
        return {"cross_entropy": torch.ones(())}


def test_terms_of_one_name_are_kept_apart(
    open_clip: Backbone, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods._listing, "_registered", {"pulled": Pulled, "otherwise": Otherwise})
    for parts in ([methods.KgCoOp(ctx_init="", n_ctx=4), Pulled()], [Pulled(), methods.KgCoOp(ctx_init="", n_ctx=4)]):
        model = adapt.wrap(open_clip, Compose([*parts]), NAMES)
        terms, _ = model.losses(model.step(images, labels))
        assert terms["pulled.knowledge"] == 1
        assert 0 < terms["kgcoop.knowledge"] != 1
    model = adapt.wrap(open_clip, Compose([Otherwise(towers=["vision"]), methods.CoOp(n_ctx=2)]), NAMES)
    with pytest.raises(AdaptError, match="otherwise changes the cross-entropy"):
        model.losses(model.step(images, labels))


@pytest.mark.parametrize("method", [methods.ProGrad, methods.TPT])
def test_methods_with_gradients_or_answers_of_their_own_stand_alone(method: Any) -> None:
    with pytest.raises(AdaptError, match=f"{method.name} cannot be part of a composition"):
        Compose([method(), LoRA()])


def test_it_is_saved_with_the_settings_of_its_parts(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    model = wrapped(open_clip, DAS(skip=1), LoRA(rank=3))
    model.method.parts["das"].config = DAS(skipped=["vision.0"]).config
    model.start_anew()
    loaded = adapt.load(perturb(model).save(tmp_path / "a.safetensors"), open_clip)
    assert loaded.method.config == model.method.config
    assert loaded.method.parts["lora"].config.rank == 3
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("towers", [["text"], ["vision"], ["text", "vision"]])
def test_prompts_of_each_image_take_both_paths(
    open_clip: Backbone, images: Tensor, labels: Tensor, towers: list[str]
) -> None:
    parts = [{"name": "das", "skipped": [f"{towers[0]}.1"], "towers": towers}, {"name": "cocoop"}]
    fast, plain = (wrapped(open_clip, *parts, fast=fast) for fast in (True, False))
    assert fast.text_path == "fast"
    assert scaled(fast(images), plain(images)) < 1e-5
    assert relative(gradient(fast, images, labels), gradient(plain, images, labels)) < 1e-5


def test_the_part_with_learned_tokens_brings_the_prompts(open_clip: Backbone) -> None:
    coop = CoOp(n_ctx=4)
    model = wrapped(open_clip, DAS(skipped=["vision.1"], template="art of the {}."), coop)
    tokenizer = open_clip.tokenizer
    assert model.method.prompts(tokenizer, "sky") == coop.prompts(tokenizer, "sky")
    visual = wrapped(open_clip, DAS(skipped=["vision.1"]), methods.IVLP(n_ctx_text=0, depth_vision=2))
    assert visual.method.prompts(tokenizer, "sky")[0].ids == DAS().prompts(tokenizer, "sky")[0].ids


def test_different_templates_are_refused(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match="das and lora have different prompts for 'goldfish': set the same"):
        wrapped(open_clip, DAS(skipped=["vision.1"], template="art of the {}."), LoRA())


_DAS, _LORA = {"name": "das", "skip": 1}, {"name": "lora"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "a composition needs at least two methods: name more methods"),
        ([_LORA], "a composition needs at least two methods: name more methods"),
        (
            [{"name": "coop"}, {"name": "maple"}],
            "coop and maple both learn prompt tokens and cannot be combined: use one",
        ),
        ([{"name": "coop"}, {"name": "coop"}], "coop and coop2 both learn prompt tokens"),
        ([{"name": "ivlp"}, {"name": "cocoop"}], "ivlp and cocoop both learn prompt tokens"),
        ([_DAS, _LORA, _DAS], "das and das2 both choose skipped on validation images: set skipped in one method"),
        ([_LORA, _LORA | {"logit_scale": 50}], r"logit_scale is 100\.0 in lora, 50\.0 in lora2: set equal values"),
        ([_DAS, {"name": "zero_shot"}], "zero_shot cannot be part of a composition: expected methods that change"),
        ([_DAS, {"name": "linear_probe"}], "linear_probe cannot be part of a composition"),
        ([_DAS, {"name": "compose", "methods": [_DAS, _LORA]}], "compose cannot be part of a composition"),
        ([_DAS, {"rank": 2}], r"an entry of methods is \{'rank': 2\}; expected name and"),
        ([_DAS, {"name": "lore"}], "unknown method 'lore'; did you mean 'lora'"),
        ([_DAS, {"name": "lora", "rnk": 2}], "lora: unknown key 'rnk'; did you mean 'rank'"),
        ([_DAS, "lora"], "methods is 'lora': .*dictionary"),
    ],
)
def test_parts_that_do_not_go_together(parts: list[Any], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        Compose(parts)


def test_a_part_belongs_to_one_model(open_clip: Backbone) -> None:
    lora = LoRA()
    adapt.wrap(open_clip, lora, NAMES)
    with pytest.raises(AdaptError, match="this lora already belongs to a model: create a new lora"):
        Compose([DAS(), lora])
    alone = LoRA()
    wrapped(open_clip, DAS(skipped=["vision.1"]), alone)
    with pytest.raises(AdaptError, match="this lora already belongs to a model"):
        adapt.wrap(open_clip, alone, NAMES)


def test_parts_serve_the_backbones_that_each_of_them_serves(open_clip: Backbone, images: Tensor) -> None:
    reading = tiny_llms.vision_llm("llama")
    with pytest.raises(AdaptError, match=r"coop adapts a dual encoder, and .* is a vision LLM"):
        adapt.wrap(reading, Compose([CoOp(), LoRA(towers=["decoder"])]))
    with pytest.raises(AdaptError, match="projector adapts a vision LLM or a native VLM, and CLIP is a dual encoder"):
        adapt.wrap(open_clip, Compose([methods.Projector(), LoRA()]), NAMES)
    model = perturb(adapt.wrap(reading, Compose([methods.Projector(), LoRA(towers=["decoder"], dropout=0)])))
    model.loss(images[:2], ["what is it?"] * 2, ["a cat", "a dog"]).backward()
    assert all(parameter.grad.norm() > 0 for parameter in model.method.parameters())


@pytest.mark.parametrize(
    ("parts", "place"),
    [
        ([LoRA(), LoRA()], "k of block 0 of the text tower|q of block 0 of the text tower"),
        ([DAS(skip=0), DAS(skip=0)], "attn of block 0 of the vision tower"),
    ],
)
def test_parts_that_want_one_place_are_refused_when_it_is_built(
    parts: list[methods.Method], place: str, open_clip: Backbone
) -> None:
    with pytest.raises(AdaptError, match=f"two edits of the same kind change ({place})"):
        adapt.wrap(open_clip, Compose(parts), NAMES)
