"""CLIP-SVD: it starts at zero-shot, trains singular values alone, and loads on the weights that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import tiny_natives
import torch
from checks import perturb, relative, scaled
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone
from adapt.methods import CLIPSVD, ZeroShot
from adapt.methods.base import total

NAMES = ("goldfish", "red_panda", "sea cucumber")
FIRST = "transformer.resblocks.0.attn.q_proj"
FIRST_MLP = "visual.transformer.resblocks.0.mlp.c_fc"


def wrapped(backbone: Backbone, **settings: Any) -> AdaptedModel:
    return adapt.wrap(backbone, CLIPSVD(**{"logit_scale": None} | settings), NAMES).eval()


@by_turns("kind", tiny_backbones.WITH_VISION_BLOCKS)
def test_untrained_it_is_zero_shot(kind: str, images: Tensor) -> None:
    backbone = tiny_backbones.backbone(kind)
    assert scaled(wrapped(backbone)(images), adapt.wrap(backbone, ZeroShot(), NAMES).eval()(images)) < 1e-5


def test_it_trains_one_vector_for_each_projection(open_clip: Backbone) -> None:
    names = {name for name, _ in wrapped(open_clip).method.named_parameters()}
    parts = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "mlp.c_fc", "mlp.c_proj")
    assert names == {
        f"{tower}transformer.resblocks.{block}.{part}.vector_S"
        for tower, name in (("", "text"), ("visual.", "vision"))
        for block in range(len(open_clip.tower(name).blocks))
        for part in parts
    }


@pytest.mark.parametrize(
    ("letter", "rank", "kept"), [("q", 1, 192), ("out", 1, 192), ("fc1", 1, 192), ("fc2", 0.57, 108), ("q", 0.01, 4)]
)
def test_each_weight_is_composed_of_its_singular_values(
    open_clip: Backbone, letter: str, rank: float, kept: int
) -> None:
    """Of a fused weight's own rows, and of wide and tall ones; their order and signs are free in training."""
    method = wrapped(open_clip, projections=(letter,), towers=("vision",), blocks=(1, 2), rank=rank).method
    [(place, start)] = method.merged().items()
    assert place == ("vision", 1, letter)
    frozen = open_clip.tower("vision").blocks[1].projections[letter].weight
    [values] = method.parameters()
    assert len(values) == kept
    u, s, v = torch.linalg.svd(frozen.double(), full_matrices=False)
    u, s, v = u[:, :kept], s[:kept], v[:kept]
    assert relative(start, u * s @ v) < 1e-6
    assert (relative(start, frozen) < 1e-6) == (rank == 1)
    with torch.no_grad():
        values.copy_(torch.linspace(-1, 2, len(values)))
    assert relative(method.merged()[place], u * values @ v) < 1e-5


@torch.no_grad()
def test_an_answers_weight_is_kept_until_its_values_change(open_clip: Backbone) -> None:
    method = wrapped(open_clip, projections=("fc1",), towers=("vision",), blocks=(0, 1)).method
    [place] = method._projections
    [values] = method.parameters()
    before = method.merged()[place]
    assert method.merged()[place].data_ptr() == before.data_ptr()
    values.mul_(2)
    assert relative(method.merged()[place], 2 * before) < 1e-6
    method.load_state_dict(method.state_dict() | {f"{FIRST_MLP}.vector_S": 3 * method.get_submodule(FIRST_MLP).start})
    assert relative(method.merged()[place], 3 * before) < 1e-6


@pytest.mark.parametrize("learns", [False, True])
def test_a_weight_is_composed_in_full_precision_where_the_rest_is_in_half(open_clip: Backbone, learns: bool) -> None:
    method = wrapped(open_clip, projections=("fc1",), towers=("vision",), blocks=(0, 1)).method
    [place] = method._projections
    with torch.set_grad_enabled(learns), torch.autocast("cpu", torch.bfloat16):
        composed = method.merged()[place]
    assert composed.dtype == torch.float
    assert relative(composed, open_clip.tower("vision").blocks[0].projections["fc1"].weight) < 1e-6


def test_a_gradient_is_that_of_the_weight_between_both_vectors(open_clip: Backbone, images: Tensor) -> None:
    """dL/dS_j = u_j^T (dL/dW) v_j, whose dL/dW is by a backbone whose own weight trains."""
    backbone = tiny_backbones.backbone("open_clip")
    labels = torch.tensor([0, 1])
    model = wrapped(backbone, projections=("fc1",), towers=("vision",), blocks=(0, 1))
    [gradient] = torch.autograd.grad(total(model.losses(model.step(images[:2], labels))[0]), model.method.parameters())
    own = backbone.tower("vision").blocks[0].projections["fc1"].module.weight.requires_grad_()
    features = torch.nn.functional.normalize(backbone.encode_image(images[:2]), dim=-1)
    logits = backbone.logit_scale * features @ model.class_features().T
    [of_weight] = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), [own])
    u, _, v = torch.linalg.svd(own.detach().double(), full_matrices=False)
    assert relative(gradient, torch.einsum("or,oi,ri->r", u, of_weight.double(), v)) < 1e-4


def test_an_adapter_loads_on_its_own_weights_alone(images: Tensor, tmp_path: Path) -> None:
    backbone = tiny_backbones.backbone("open_clip")
    model = perturb(wrapped(backbone)).eval()
    file = model.save(tmp_path / "adapter.safetensors")
    assert torch.equal(adapt.load(file, backbone)(images), model(images))
    tensors = {name: tensor.clone() for name, tensor in model.method.state_dict().items()}
    model.method.check_tensors(tensors, "here")
    tensors[f"{FIRST}.start"][0] *= 1.001
    with pytest.raises(AdaptError, match=r"singular values of q in block 0 of the text tower differ by 1\.0e-03"):
        model.method.check_tensors(tensors, "here")


def test_an_adapter_holds_no_factors(open_clip: Backbone) -> None:
    held = {name.rpartition(".")[2] for name in wrapped(open_clip).method.state_dict()}
    assert held == {"vector_S", "start"}


def test_projections_that_a_tower_lacks_are_refused_by_name_and_all_are_its_own() -> None:
    backbone = tiny_natives.dual_encoder()
    with pytest.raises(AdaptError, match=r"clip_svd: projections has fc1; expected names in q, k, v, out, gate, up"):
        wrapped(backbone, towers=("text",), projections=("q", "fc1"))
    names = {name for name, _ in wrapped(backbone, towers=("text",)).method.named_parameters()}
    assert "transformer.resblocks.0.mlp.gate.vector_S" in names


def test_blocks_beyond_the_last_are_refused(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=r"clip_svd: blocks are 0 to 99, but the text tower has"):
        wrapped(open_clip, blocks=(0, 99))
