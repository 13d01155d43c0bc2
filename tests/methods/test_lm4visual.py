"""LM4Visual: where it starts, both paths, that the borrowed block stays as it is and is recognised, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import tiny_llms
import torch
from checks import gradient, perturb, relative, scaled
from torch import Tensor, nn

import adapt
from adapt import AdaptedModel, AdaptError, methods
from adapt.data import Split
from adapt.methods import lm4visual
from adapt.training.step_memory import step_bytes

NAMES = ("goldfish", "red_panda", "sea cucumber")
STEPS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 0.01, "warmup_epochs": 0, "augment": "none"}


def model_of(kind: str = "open_clip", fast: bool | None = None, **settings: Any) -> AdaptedModel:
    torch.manual_seed(0)
    method = methods.LM4Visual(**settings)
    model: AdaptedModel = adapt.wrap(tiny_backbones.backbone(kind), method, NAMES, fast=fast)
    return model.eval()


def saved(folder: Path, kind: str = "llama", seed: int = 0) -> str:
    """A small language model of that kind in `folder`."""
    torch.manual_seed(seed)
    llm: Any = tiny_llms.KINDS[kind]()
    llm.save_pretrained(folder)
    return str(folder)


def frozen(model: AdaptedModel) -> dict[str, Tensor]:
    """The tensors of the borrowed block, as they are now."""
    method: Any = model.method
    return {key: value.clone() for key, value in method.aside.state_dict().items()}


@pytest.mark.parametrize("kind", tiny_backbones.WITH_VISION_BLOCKS)
def test_training_starts_at_the_backbones_features(kind: str, images: Tensor) -> None:
    added, alone = (model_of(kind, residual=residual) for residual in (True, False))
    assert scaled(added.image_features(images), added.backbone_features(images)) < 1e-6
    assert scaled(alone.image_features(images), alone.backbone_features(images)) > 1e-2
    assert set(added.method.state_dict()) - set(alone.method.state_dict()) == {"gamma"}


@pytest.mark.parametrize("kind", tiny_backbones.WITH_VISION_BLOCKS)
@pytest.mark.parametrize("residual", [True, False])
def test_both_paths_agree(kind: str, residual: bool, images: Tensor, labels: Tensor) -> None:
    fast, plain = (perturb(model_of(kind, fast, residual=residual)) for fast in (None, False))
    assert scaled(fast.image_features(images), plain.image_features(images)) < 1e-5
    assert relative(gradient(fast, images, labels), gradient(plain, images, labels)) < 1e-4
    checkpointed = adapt.wrap(fast.unwrap(), methods.LM4Visual(residual=residual), NAMES, checkpointing=True).eval()
    checkpointed.method.load_state_dict(fast.method.state_dict())
    assert relative(gradient(checkpointed, images, labels), gradient(plain, images, labels)) < 1e-4


def test_eps_is_added_to_the_mean_square_of_each_token() -> None:
    tokens, outputs = torch.randn(2, 5, 192), []
    for eps in (1e-12, 1.0):
        torch.manual_seed(0)
        model = model_of(residual=False, eps=eps)
        [edit] = model.method.edits(model.backbone.tower("vision"), None)
        outputs.append(edit.module(tokens))
    ratio = outputs[1] / outputs[0]
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-2, atol=1e-2)
    assert (ratio < 1).all()


@pytest.mark.parametrize("kind", tiny_llms.KINDS)
def test_blocks_of_every_family_see_all_tokens_and_no_positions(kind: str, tmp_path: Path) -> None:
    """The module behind the tower turns tokens in another order to the same tokens in that order."""
    model = perturb(model_of(llm=saved(tmp_path, kind), block=0))
    [edit] = model.method.edits(model.backbone.tower("vision"), None)
    tokens, order = torch.randn(2, 30, 192, requires_grad=True), torch.randperm(30)
    outputs = edit.module(tokens)
    assert scaled(edit.module(tokens[:, order]), outputs[:, order]) < 1e-5
    [reached] = torch.autograd.grad(outputs[:, 0].sum(), tokens)
    assert (reached.abs().sum(-1) > 0).all()


def test_the_borrowed_block_is_in_no_adapter_and_stays_as_it_is(tiny_split: Split) -> None:
    model = model_of()
    before, start = frozen(model), {key: value.clone() for key, value in model.method.state_dict().items()}
    assert set(start) == {"gamma", "llama_dim_mapper1.weight", "llama_dim_mapper2.weight"}
    assert {name for name, _ in model.named_parameters()} == {f"method.{name}" for name in start}
    adapt.fit(model, tiny_split.train, progress=False, **STEPS)
    assert all(not torch.equal(value, start[key]) for key, value in model.method.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in frozen(model).items())


def test_a_loaded_adapter_has_the_same_block(tmp_path: Path, images: Tensor) -> None:
    model = perturb(model_of(llm=saved(tmp_path / "llm"), block=2))
    path, expected = model.save(tmp_path / "a.safetensors"), model(images)
    assert torch.equal(adapt.load(path, tiny_backbones.backbone("open_clip"))(images), expected)
    saved(tmp_path / "llm", seed=1)
    with pytest.raises(AdaptError, match=r"block 2 of .*llm has the fingerprint .* give that language model by method"):
        adapt.load(path, tiny_backbones.backbone("open_clip"))


def test_the_block_moves_with_the_model(images: Tensor) -> None:
    model = perturb(model_of())
    expected = model(images)
    model.to(torch.float64)
    assert {value.dtype for value in frozen(model).values()} == {torch.float64}
    assert scaled(model(images.double()).float(), expected) < 1e-5


def test_memory_is_estimated_without_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there once, whatever the number of images."""
    with_block = step_bytes(model_of()).kept
    monkeypatch.setattr(lm4visual, "_looking_around", lambda block, x: x)
    without = step_bytes(model_of()).kept
    numbers = 17 * (16 * 192 + 4 * 576)  # of each token, what a block of mini-lm keeps at most
    assert 0 < with_block - without < 4 * numbers


def test_beside_lora(images: Tensor, labels: Tensor) -> None:
    lora = {"name": "lora", "towers": ["vision"], "dropout": 0.0, "rank": 2, "template": "a photo of a {}."}
    made = []
    for fast in (None, False):
        torch.manual_seed(0)
        both = methods.Compose([{"name": "lm4visual"}, lora])
        made.append(perturb(adapt.wrap(tiny_backbones.backbone("open_clip"), both, NAMES, fast=fast)).eval())
    assert scaled(made[0](images), made[1](images)) < 1e-5
    assert relative(gradient(made[0], images, labels), gradient(made[1], images, labels)) < 1e-4


class _Causal(nn.Module):
    """A block that takes the arguments of LLaMA's, but goes by the order of tokens."""

    def forward(self, x: Tensor, attention_mask: Tensor, position_embeddings: object) -> Tensor:
        return x.cumsum(1)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AdaptError, match="the vision tower of CLIP has no transformer blocks"):
        model_of("open_clip_resnet")
    with pytest.raises(AdaptError, match="lm4visual: block is 6, but mini-lm has 6 blocks: give -6 to 5"):
        model_of(block=6)
    with pytest.raises(AdaptError, match="the language model 'gpt' is not an existing folder"):
        model_of(llm="gpt")
    twice = methods.Compose([{"name": "lm4visual"}, {"name": "lm4visual", "block": 0}])
    with pytest.raises(AdaptError, match="two edits add a module after the blocks of the vision tower: keep one"):
        adapt.wrap(tiny_backbones.backbone("open_clip"), twice, NAMES)
    for other in (_Causal(), nn.Linear(192, 192)):
        block = tiny_llms.Block(other, *[other] * 4, projections={})
        tower = tiny_llms.Tower("decoder", 192, 1, tiny_llms.Form(causal=True, pooling="none"), (block,))
        monkeypatch.setattr(lm4visual, "decoder_tower", lambda llm, tower=tower: tower)
        with pytest.raises(AdaptError, match=f"a {type(other).__name__} of mini-lm cannot see tokens without their"):
            model_of()
