"""ADEM-VL: the features that it reads, what it ignores, and settings that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_llms
import torch
import torch.nn.functional as F
from checks import perturb, scaled
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.edits import Parallel, Tokens
from adapt.methods.adem_vl import Fusion, VisionAdapter
from adapt.methods.base import Context
from adapt.models.vision_llm import SpeakingModel

SMALL: dict[str, Any] = {"scales": (4, 1), "hidden": 4, "vision_dim": 0}


def model_of(**settings: Any) -> SpeakingModel:
    torch.manual_seed(0)
    model: SpeakingModel = adapt.wrap(tiny_llms.vision_llm("llama"), methods.ADEMVL(**SMALL | settings))
    return perturb(model).eval()


def test_weak_scores_are_ignored_and_rows_have_their_image() -> None:
    keys, values = torch.randn(2, 10, 6), torch.randn(2, 10, 6)
    states = torch.randn(4, 3, 6)
    added = Fusion(keys, values, dropped=0.25, alpha=0.5)(states)
    for row in range(4):
        scores = F.silu(states[row].double()) @ F.silu(keys[row // 2].double()).T
        least = scores.sort(-1).values[:, 2:3]  # a quarter of ten are two
        kept = torch.where(scores < least, 0, scores)
        assert (kept == 0).sum(-1).tolist() == [2, 2, 2]
        assert scaled(added[row], 0.5 * kept @ values[row // 2].double()) < 1e-6


def test_features_are_normed_and_pooled_beside_a_class_token(images: Tensor) -> None:
    model = model_of()
    backbone, method = model.backbone, model.method
    tower = backbone.tower("vision")
    assert isinstance(tower.final_norm, torch.nn.LayerNorm)
    with torch.no_grad():
        seen = tower.final_norm(backbone.tokens(images))
        patches = seen[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        rows = patches.unflatten(1, (2, side // 2, 2, side // 2)).mean((2, 4)).flatten(1, 2)
        pooled = torch.cat([rows, patches.mean(1, keepdim=True)], dim=1)
        expected = method.config.beta * method.adapter_proj(pooled)
        context = Context(
            tokens={"vision": lambda: backbone.patches(images)},
            class_tokens={"vision": lambda: backbone.tokens(images)[:, 0]},
        )
        token, *fusions = method.edits(backbone.tower("decoder"), context)
        assert isinstance(token, Tokens)
        assert scaled(token.values[:, 0, 0], method.adapter_proj_cls(seen[:, 0])) < 1e-5
        assert [edit.block for edit in fusions] == list(range(len(backbone.tower("decoder").blocks)))
        first = fusions[0]
        assert isinstance(first, Parallel)
        assert isinstance(first.module, Fusion)
        assert scaled(first.module.keys, F.silu(expected + method.adapter_emb1)) < 1e-5
        assert scaled(first.module.values, method.config.alpha * (expected + method.adapter_emb2)) < 1e-5


def test_the_setting_says_how_many_weak_scores_are_ignored() -> None:
    method: Any = model_of(dropped=0.5).method
    [first] = method.fusions(torch.randn(1, 5, method.adapter_emb1.shape[-1]), 1)
    assert first.module.rank == 3  # the third of five is the smallest that counts


@torch.no_grad()
def test_hidden_units_of_the_vision_towers_adapters_drop_out_in_training() -> None:
    """A tenth of them, so that the sums of those that are left spread by as much as can be told."""
    adapter, x = VisionAdapter(8, 1000, scale=0.1, dropout=0.1), torch.randn(1, 8)
    torch.nn.init.ones_(adapter.fc2.weight)
    hidden = F.gelu(adapter.fc1(x))[0]
    torch.testing.assert_close(adapter.eval()(x)[0, 0], 0.1 * hidden.sum())
    answers = torch.stack([adapter.train()(x)[0, 0] for _ in range(400)])
    spread = 0.1 * (hidden.square().sum() * 0.1 / 0.9).sqrt()
    assert float(answers.std() / spread) == pytest.approx(1, abs=0.15)
    assert float((answers.mean() - 0.1 * hidden.sum()) / spread) == pytest.approx(0, abs=0.2)


def test_the_prompt_has_a_class_token_or_none_and_the_adapter_no_norm() -> None:
    lengths = [model_of(class_token=token)(torch.zeros(1, 3, 32, 32), ["what is it ?"]).shape[1] for token in (1, 0)]
    assert lengths[0] == lengths[1] + 1
    names = {key.split(".")[0] for key in model_of().state_dict()}
    assert names == {"method"}
    assert {key.split(".")[1] for key in model_of().state_dict()} == {
        "adapter_proj",
        "adapter_emb1",
        "adapter_emb2",
        "adapter_proj_cls",
    }


def test_the_vision_tower_learns_up_to_the_block_that_is_read(images: Tensor) -> None:
    model = model_of(vision_dim=2)
    blocks = len(model.backbone.tower("vision").blocks)
    assert len(model.method.adapter_mlp) == blocks - 1
    model.loss(images[:2], ["what is it ?"] * 2, ["a cat"] * 2).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.method.adapter_mlp.parameters())
    assert model_of().method.touches == {"decoder"}


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(AdaptError, match="scales has 6; expected squares, such as 256 and 64"):
        methods.ADEMVL(scales=(6,))
    with pytest.raises(AdaptError, match=r"has 16 patches, and scales is \[25\]; expected a square of patches, and"):
        model_of(scales=(25,))
    eyes = tiny_llms.Unfold(image=16, patch=4).vision()
    llm = tiny_llms.causal("LlamaConfig", num_hidden_layers=1)()
    blind = adapt.backbones.vision_llm.VisionLLM(eyes, llm, tiny_llms.tokenizer(), patch_block=-1)
    with pytest.raises(AdaptError, match=r"has no class token: set method\.class_token to false"):
        adapt.wrap(blind, methods.ADEMVL(**SMALL))
    with pytest.raises(AdaptError, match="ends without a layer norm, which the features pass"):
        adapt.wrap(blind, methods.ADEMVL(**SMALL, class_token=False))
