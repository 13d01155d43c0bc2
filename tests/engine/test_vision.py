"""Both vision paths on edits as such, without a method around them: the same features and gradients."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from checks import Fault, assert_untouched, flag, scaled, snapshot
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import adapt
from adapt import AdaptError, Backbone
from adapt.edits import After, Attention, Bypass, Edit, Outputs, Parallel, Replace, Tokens
from adapt.engine import vision
from adapt.engine.hooks import run
from adapt.engine.plan import plan
from adapt.methods import LoRA, ZeroShot

LAST = {"open_clip": 2, "hf_clip": 2, "open_clip_timm": 1, "hf_siglip": 1}  # block
NAMES = ("goldfish", "red panda")


class Mixing(nn.Module):
    """Each token gets what a linear map makes of the mean of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = x + self.linear(x.mean(1, keepdim=True))
        return mixed


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
        "tokens of a block": [Tokens(values(2), last, enters=True), Attention(last, _doubled)],
        "blended tokens": [Tokens(values(2), 0, enters=True), Tokens(values(2), last, share=0.6)],
        "projections": [Replace(0, "q", linear()), Replace(last, "v", linear()), Replace(last, "out", linear())],
        "the MLP": [Replace(0, "fc1", nn.Linear(width, 8)), Replace(0, "fc2", nn.Linear(8, width))],
        "norms": [Replace(0, "norm1", norm()), Replace(last, "norm2", norm())],
        "beside sites": [Parallel(0, "attn", linear()), Parallel(last, "mlp", linear(), normed=True)],
        "beside blocks": [Parallel(0, "block", linear()), Parallel(last, "block", linear(), normed=True)],
        "skipped blocks": [Bypass(0, linear()), Bypass(last, linear())],
        "attention": [Tokens(values(2)), Attention(0, _doubled), Attention(last, _doubled)],
        "outside": [Replace(None, "final_norm", norm())],
        "after the blocks": [After(Mixing(width))],
        "after learned tokens": [After(Mixing(width)), Tokens(values(2)), Parallel(last, "block", linear())],
        "after a skipped block": [Bypass(last, linear()), After(Mixing(width)), Replace(None, "final_norm", norm())],
    }
    return kinds[kind]


def _doubled(scores: Tensor, learned_queries: Tensor, learned_keys: Tensor) -> Tensor:
    """Learned tokens are looked at twice, and look around evenly."""
    weights = scores.softmax(-1)
    weights = torch.where(learned_keys, 2 * weights, weights)
    return torch.where(learned_queries[:, None], weights.mean(-1, keepdim=True), weights)


KINDS = (
    "none", "tokens", "tokens of an image", "tokens of a block", "blended tokens", "projections", "the MLP", "norms",
    "beside sites", "beside blocks",
    "skipped blocks", "attention", "outside", "after the blocks", "after learned tokens", "after a skipped block",
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


@pytest.mark.parametrize("kind", ["tokens of an image", "attention", "blended tokens", "after learned tokens"])
@pytest.mark.parametrize("backbone", LAST, indirect=True)
def test_what_becomes_of_learned_tokens_is_read_in_the_same_pass(
    kind: str, backbone: Backbone, request: pytest.FixtureRequest
) -> None:
    tower, seen = backbone.tower("vision"), list[Tensor]()
    asked = edits(kind, tower.width, len(tower.blocks) - 1)
    reading, learned = [*asked, Outputs(seen.append)], tensors(asked)
    found = [
        run(backbone.model, [(tower, reading)], lambda: backbone.encode_image(noise())),
        vision.encode(backbone, noise(), reading),
        vision.encode(backbone, noise(), reading, checkpointing=True),
    ]
    assert all(scaled(each, vision.encode(backbone, noise(), asked)) < 1e-5 for each in found)
    assert [each.shape for each in seen] == [(3, 2, tower.width)] * 3
    expected = torch.autograd.grad(seen[0].sin().sum(), learned, allow_unused=True)
    for outputs in seen[1:]:
        assert scaled(outputs, seen[0]) < 1e-5
        gradients = torch.autograd.grad(outputs.sin().sum(), learned, allow_unused=True)
        for one, other in zip(gradients, expected, strict=True):
            assert one is other is None or scaled(one, other) < 1e-5


def test_blocks_before_tokens_enter_are_as_ever(open_clip: Backbone) -> None:
    """They have no graph, and may be computed once for all steps; the last one computes what is read."""
    tower = open_clip.tower("vision")
    asked = [Tokens(torch.randn(5, 192), 2, enters=True), Outputs(lambda outputs: None)]
    assert vision.first_edited(tower, plan(tower, asked)) == 2
    expected = vision.encode(open_clip, noise(), asked)
    inputs = vision.block_inputs(open_clip, 2, noise())
    assert torch.equal(vision.encode(open_clip, inputs, asked, begun=2), expected)
    with Products() as counted, torch.no_grad():
        vision.encode(open_clip, noise(1), asked)
    assert counted.rows == [17] * 8 + [17 + 5] + [1 + 5] * 4 + [1]


def test_a_module_after_the_blocks_gets_all_tokens_and_begins_where_they_are_complete(open_clip: Backbone) -> None:
    tower, seen = open_clip.tower("vision"), list[Tensor]()
    mixing = Mixing(tower.width)
    mixing.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    expected = vision.encode(open_clip, noise(), [After(mixing)])
    tokens = vision.tokens(open_clip, noise(), [After(mixing)])
    assert torch.equal(tokens, vision.tokens(open_clip, noise(), []))  # those before the module
    assert [scaled(each, tokens) < 1e-6 for each in seen] == [True]
    begun = vision.first_edited(tower, plan(tower, [After(mixing)]))
    assert begun == LAST["open_clip"]
    inputs = vision.block_inputs(open_clip, begun, noise())
    assert scaled(vision.encode(open_clip, inputs, [After(mixing)], begun=begun), expected) < 1e-6


def test_a_module_after_the_blocks_gets_images_first(open_clip: Backbone) -> None:
    mixing = Mixing(192)
    expected = vision.encode(open_clip, noise(), [After(mixing)])
    turned = tiny_backbones.length_first(open_clip)
    changes = [(turned.tower("vision"), [After(mixing)])]
    assert scaled(run(turned.model, changes, lambda: turned.encode_image(noise())), expected) < 1e-5


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


@pytest.mark.parametrize("part", ["module", "norm2", "act", "mlp"])
def test_somebody_who_watches_a_block_sees_it(part: str, open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, ZeroShot(), NAMES).eval()
    expected, seen = model.image_features(noise()), []
    watched = getattr(open_clip.tower("vision").blocks[-1], part)
    handle = watched.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    assert scaled(model.image_features(noise()), expected) < 1e-5
    assert seen == [(3, 17)]
    handle.remove()
    model.image_features(noise())
    assert len(seen) == 1


def test_a_tower_that_computes_otherwise_takes_the_plain_path(open_clip: Backbone) -> None:
    assert adapt.wrap(open_clip, ZeroShot(), NAMES).vision_path == "fast"
    encode = open_clip.encode_image
    open_clip.encode_image = lambda images: encode(images).roll(1, -1)  # e.g. a fork's own forward
    assert adapt.wrap(open_clip, ZeroShot(), NAMES).vision_path == "plain"
    with pytest.raises(AdaptError, match=r"vision tower of CLIP cannot use the fast path \(its features differ"):
        adapt.wrap(open_clip, ZeroShot(), NAMES, fast=True)


def other_norm(model: nn.Module) -> None:
    model.visual.ln_post = nn.LayerNorm(192)
    nn.init.normal_(model.visual.ln_post.weight)


def wrapped_mlp(model: nn.Module) -> None:
    block = model.visual.transformer.resblocks[0]
    block.mlp = nn.Sequential(block.mlp, nn.Linear(192, 192))


def hooked(model: nn.Module) -> None:
    model.visual.transformer.register_forward_hook(lambda module, inputs, output: output.roll(1, -1))


def patched(model: nn.Module) -> None:
    block = model.visual.transformer.resblocks[1]
    block.forward = lambda x, **options: x


def wrapped_projection(model: nn.Module) -> None:
    mlp = model.visual.transformer.resblocks[1].mlp
    mlp.c_fc = nn.Sequential(mlp.c_fc, nn.Linear(768, 768))


@pytest.mark.parametrize("change", [other_norm, wrapped_mlp, hooked, patched, wrapped_projection])
def test_a_model_changed_after_it_was_wrapped_takes_the_librarys_forward(change: Any, open_clip: Backbone) -> None:
    before = adapt.wrap(open_clip, ZeroShot(), NAMES).eval()
    unchanged = before.image_features(noise())
    change(open_clip.model)
    expected = F.normalize(open_clip.encode_image(noise()), dim=-1)
    assert scaled(expected, unchanged) > 1e-3
    for model in (before, adapt.wrap(open_clip, ZeroShot(), NAMES).eval()):
        assert scaled(model.image_features(noise()), expected) < 1e-6


def test_two_images_are_compared_once_for_a_model_as_it_is(
    open_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    look = vision._agrees
    monkeypatch.setattr(vision, "_agrees", lambda *given: compared.append(1) or look(*given))
    for _ in range(2):
        adapt.wrap(open_clip, ZeroShot(), NAMES).image_features(noise())
    assert len(compared) == 1
    open_clip.model.visual.ln_post = nn.LayerNorm(192)
    adapt.wrap(open_clip, ZeroShot(), NAMES).image_features(noise())
    assert len(compared) == 2


def test_a_trunk_whose_own_head_projects(open_clip_timm: Backbone) -> None:
    model: Any = open_clip_timm.model
    model.visual.trunk.head, model.visual.head = nn.Linear(64, 48), nn.Sequential()
    other = Backbone.from_open_clip(model, open_clip.get_tokenizer("ViT-B-16"))
    features = vision.encode(other, noise(), [])
    assert features.shape == (3, 48)
    assert scaled(features, other.encode_image(noise())) < 1e-5


def test_images_that_are_not_square() -> None:
    torch.manual_seed(0)
    size = {"image_size": (32, 64), "layers": 2, "width": 128, "patch_size": 16, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    model = open_clip.model.CLIP(32, open_clip.CLIPVisionCfg(**size), open_clip.CLIPTextCfg(**text))
    backbone = Backbone.from_open_clip(model.eval(), open_clip.get_tokenizer("ViT-B-16"))
    assert adapt.wrap(backbone, ZeroShot(), NAMES).vision_path == "fast"


def test_only_the_fast_path_begins_at_a_later_block(open_clip: Backbone) -> None:
    fast, plain = (adapt.wrap(open_clip, ZeroShot(), NAMES, fast=fast) for fast in (None, False))
    begun = fast.block_inputs(noise(), 2)
    assert scaled(fast.image_features(begun), fast.image_features(noise())) < 1e-5
    for refused in (lambda: plain.block_inputs(noise(), 2), lambda: plain.image_features(begun)):
        with pytest.raises(AdaptError, match="block inputs need the fast path"):
            refused()


def test_with_checkpointing_the_first_edited_block_keeps_its_input_alone(open_clip: Backbone) -> None:
    def kept(checkpointing: bool) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            vision.encode(open_clip, noise(), [Parallel(0, "mlp", nn.Linear(192, 192))], checkpointing)
        return sum(sizes)

    assert kept(True) < 0.35 * kept(False)


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
    with pytest.raises(RuntimeError, match=r"once_differentiable|not implemented"):
        slope.square().sum().backward()
    (plain,) = torch.autograd.grad(open_clip.encode_image(images).sin().sum(), images)
    assert scaled(slope, plain) < 1e-5


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise Fault


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_error_inside_a_block_leaves_the_backbone_as_it_was(checkpointing: bool, open_clip: Backbone) -> None:
    flag(open_clip.model)
    before = snapshot(open_clip.model)
    expected = vision.encode(open_clip, noise(), [])
    with pytest.raises(Fault):
        vision.encode(
            open_clip, noise(), [Parallel(0, "mlp", nn.Linear(192, 192)), Parallel(1, "mlp", Broken())], checkpointing
        )
    assert_untouched(open_clip.model, before)
    assert torch.equal(vision.encode(open_clip, noise(), []), expected)
