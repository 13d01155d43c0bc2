"""Both vision paths on edits as such, without a method around them: the same features and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import adapt
from adapt import AdaptError, Backbone
from adapt.edits import Attention, Bypass, Edit, Parallel, Replace, Tokens
from adapt.engine import vision
from adapt.engine.hooks import run
from adapt.methods import LoRA, ZeroShot

LAST = {"open_clip": 2, "hf_clip": 2, "open_clip_timm": 1, "hf_siglip": 1}  # block
NAMES = ("goldfish", "red panda")


def edits(kind: str, width: int, last: int) -> list[Edit]:
    """Of that kind, with parameters of their own, in the first and the last block."""
    torch.manual_seed(1)

    def values(*shape: int) -> Tensor:
        return (0.1 * torch.randn(*shape, width)).requires_grad_()

    def linear() -> nn.Linear:
        return nn.Linear(width, width)

    def norm() -> nn.LayerNorm:
        made = nn.LayerNorm(width)
        nn.init.normal_(made.weight, 1, 0.3)
        return made

    kinds: dict[str, list[Edit]] = {
        "none": [],
        "tokens": [Tokens(values(2)), Tokens(values(2), block=last)],
        "tokens of an image": [Tokens(values(3, 2)), Tokens(values(3, 2), block=1)],
        "projections": [Replace(0, "q", linear()), Replace(last, "v", linear()), Replace(last, "out", linear())],
        "the MLP": [Replace(0, "fc1", nn.Linear(width, 8)), Replace(0, "fc2", nn.Linear(8, width))],
        "norms": [Replace(0, "norm1", norm()), Replace(last, "norm2", norm())],
        "beside sites": [Parallel(0, "attn", linear()), Parallel(last, "mlp", linear(), normed=True)],
        "beside blocks": [Parallel(0, "block", linear()), Parallel(last, "block", linear(), normed=True)],
        "skipped blocks": [Bypass(0, linear()), Bypass(last, linear())],
        "attention": [Tokens(values(2)), Attention(0, _doubled), Attention(last, _doubled)],
        "outside": [Replace(None, "final_norm", norm())],
    }
    return kinds[kind]


def _doubled(scores: Tensor, learned_queries: Tensor, learned_keys: Tensor) -> Tensor:
    """Learned tokens are looked at twice, and look around evenly."""
    weights = scores.softmax(-1)
    weights = torch.where(learned_keys, 2 * weights, weights)
    return torch.where(learned_queries[:, None], weights.mean(-1, keepdim=True), weights)


KINDS = (
    "none", "tokens", "tokens of an image", "projections", "the MLP", "norms", "beside sites", "beside blocks",
    "skipped blocks", "attention", "outside",
)  # fmt: skip


def tensors(asked: list[Edit]) -> list[Tensor]:
    found = [edit.values for edit in asked if isinstance(edit, Tokens)]
    return found + [p for edit in asked if hasattr(edit, "module") for p in edit.module.parameters()]


def noise(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", LAST, indirect=True)
def test_both_paths_agree(kind: str, backbone: Backbone, request: pytest.FixtureRequest) -> None:
    tower = backbone.tower("vision")
    asked = edits(kind, tower.width, len(tower.blocks) - 1)
    expected = run(backbone.model, [(tower, asked)], lambda: backbone.encode_image(noise()))
    learned = tensors(asked)
    gradients = torch.autograd.grad(expected.sin().sum(), learned) if learned else ()
    for checkpointing in (False, True):
        found = vision.encode(backbone, noise(), asked, checkpointing)
        assert scaled(found, expected) < 1e-5
        again = torch.autograd.grad(found.sin().sum(), learned) if learned else ()
        assert all(scaled(one, other) < 1e-5 for one, other in zip(again, gradients, strict=True))
    unedited = backbone.encode_image(noise())
    assert kind == "none" or scaled(expected, unedited) > 1e-4


class Products(TorchDispatchMode):
    """Counts matrix products by their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.rows.append(args[-2].shape[0])
        return func(*args, **(kwargs or {}))


def test_the_last_block_computes_the_class_token_alone_and_qkv_are_one_product(open_clip: Backbone) -> None:
    images, tokens = 3, 17
    with Products() as counted, torch.no_grad():
        vision.encode(open_clip, noise(images), [])
    whole = [images * tokens] * 4  # q, k and v; out; and the two of the MLP
    assert counted.rows == [*whole, *whole, images * tokens, *[images] * 5]


def test_low_rank_updates_share_the_frozen_product(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, LoRA(towers=["vision"], blocks=(0, 1), dropout=0.0), NAMES)
    bare, tokens = Products(), 17
    with bare, torch.no_grad():
        vision.encode(open_clip, noise(1), [])
    with Products() as counted, torch.no_grad():
        model.image_features(noise(1))
    assert len(counted.rows) == len(bare.rows) + 6  # A and B of three projections, and nothing frozen besides
    assert counted.rows.count(tokens) == bare.rows.count(tokens) + 6


@pytest.mark.parametrize("first", [0, 1, 2])
def test_blocks_before_the_first_edit_have_no_graph(first: int, open_clip: Backbone) -> None:
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        vision.encode(open_clip, noise(), [Parallel(first, "mlp", nn.Linear(192, 192))])
    inner = [shape for shape in kept if shape[-1] == 4 * 192 and len(shape) == 2 and shape[0] != 192]
    assert len(inner) == 2 - first  # what each later MLP but the last keeps


def test_a_frozen_tower_keeps_nothing_at_all(open_clip: Backbone) -> None:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        assert not vision.encode(open_clip, noise(), []).requires_grad
    assert not kept


def test_somebody_who_watches_a_block_sees_it(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, ZeroShot(), NAMES).eval()
    expected, seen = model.image_features(noise()), []
    block = open_clip.tower("vision").blocks[1]
    handle = block.module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert scaled(model.image_features(noise()), expected) < 1e-5
    assert seen == [(3, 17, 192)]
    handle.remove()
    model.image_features(noise())
    assert len(seen) == 1


def test_a_tower_that_computes_otherwise_takes_the_plain_path(open_clip: Backbone) -> None:
    assert adapt.wrap(open_clip, ZeroShot(), NAMES).vision_path == "fast"
    encode = open_clip.encode_image
    open_clip.encode_image = lambda images: encode(images).roll(1, -1)  # e.g. a fork's own forward
    assert adapt.wrap(open_clip, ZeroShot(), NAMES).vision_path == "plain"
    with pytest.raises(AdaptError, match="fast=True, but the vision tower of CLIP cannot take it: its features differ"):
        adapt.wrap(open_clip, ZeroShot(), NAMES, fast=True)


def test_changed_weights_are_compared_anew(open_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    look = vision._compared
    monkeypatch.setattr(vision, "_compared", lambda backbone: compared.append(1) or look(backbone))
    for _ in range(2):
        adapt.wrap(open_clip, ZeroShot(), NAMES)
    assert len(compared) == 1
    with torch.no_grad():
        open_clip.model.visual.conv1.weight.mul_(2)  # type: ignore[union-attr, operator]
    adapt.wrap(open_clip, ZeroShot(), NAMES)
    assert len(compared) == 2


def test_which_path_a_model_takes(open_clip: Backbone, open_clip_resnet: Backbone) -> None:
    assert adapt.wrap(open_clip, ZeroShot(), NAMES, fast=False).vision_path == "plain"
    assert adapt.wrap(open_clip_resnet, ZeroShot(), NAMES, fast=True).vision_path == "plain"  # no blocks to be fast on


def test_in_bf16_autocast_both_paths_agree_by_its_rounding(open_clip: Backbone) -> None:
    tower, images = open_clip.tower("vision"), noise()
    asked = edits("beside sites", tower.width, 2)
    with torch.autocast("cpu", torch.bfloat16):
        plain = run(open_clip.model, [(tower, asked)], lambda: open_clip.encode_image(images))
        fast = vision.encode(open_clip, images, asked)
    assert fast.dtype == plain.dtype
    assert scaled(F.normalize(fast.float(), dim=-1), F.normalize(plain.float(), dim=-1)) < 2e-2
    fast.sum().backward()
    assert all(tensor.grad is not None for tensor in tensors(asked))


def test_a_second_derivative_is_refused_rather_than_wrong(open_clip: Backbone) -> None:
    images = noise().requires_grad_()
    (slope,) = torch.autograd.grad(vision.encode(open_clip, images, []).sin().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()
    (plain,) = torch.autograd.grad(open_clip.encode_image(images).sin().sum(), images)
    assert scaled(slope, plain) < 1e-5
