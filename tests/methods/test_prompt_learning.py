"""CoCoOp, MaPLe and IVLP: where learned tokens stand, who sees them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from checks import flat, perturb, relative, scaled
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods

NAMES = ("goldfish", "red_panda", "sea cucumber")


def read(backbone: Backbone, method: methods.Method) -> list[str | int]:
    """The prompt of "red_panda" as words and slots."""
    adapt.wrap(backbone, method, NAMES, fast=False)
    prompt = method.prompts(backbone.tokenizer, "red_panda")[0]
    assert [backbone.tokenizer.token(prompt.ids[at]) for at in prompt.name] == ["red", "panda"]
    return [backbone.tokenizer.token(i) if slot is None else slot for i, slot in zip(prompt.ids, prompt.slots)][1:-1]


@pytest.mark.parametrize("cls", [methods.MaPLe, methods.IVLP])
def test_words_that_are_not_learned_stay_in_the_prompt(cls: Any, open_clip: Backbone) -> None:
    depth = {"depth": 2} if cls is methods.MaPLe else {"depth_text": 2, "depth_vision": 2}
    method = cls(**depth)
    assert read(open_clip, method) == [0, 1, "of", "a", "red", "panda", "."]
    words = open_clip.tower("text").text.embedding.weight[open_clip.tokenizer.pieces("a photo")]
    assert torch.equal(next(iter(method.learned_tokens.values())), words)


def test_vpt_reads_the_published_sentence_and_encodes_it_once(
    open_clip: Backbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = methods.IVLP(n_ctx_text=0, n_ctx_vision=4, depth_vision=2)
    assert read(open_clip, method) == ["a", "photo", "of", "a", "red", "panda", "."]
    assert {name: tuple(x.shape) for name, x in method.named_parameters()} == {
        "vision.0": (4, 192),
        "vision.1": (4, 192),
    }
    model = adapt.wrap(open_clip, methods.IVLP(n_ctx_text=0, depth_vision=2), NAMES).train()
    encoded = []
    encode = model._texts._encoded
    monkeypatch.setattr(model._texts, "_encoded", lambda *args: encoded.append(1) or encode(*args))
    for _ in range(3):
        model(images).sum().backward()
    assert len(encoded) == 1
    zero_shot = adapt.wrap(open_clip, methods.ZeroShot(), NAMES)
    assert torch.equal(model.class_features(), zero_shot.class_features())


def test_maples_vision_prompts_are_projections_of_its_text_prompts(open_clip: Backbone) -> None:
    method = methods.MaPLe(depth=3)
    adapt.wrap(open_clip, method, NAMES)
    text, vision = (method.edits(open_clip.tower(name), methods.base.Context()) for name in ("text", "vision"))
    assert [edit.block for edit in text] == [edit.block for edit in vision] == [None, 1, 2]
    assert torch.equal(vision[0].values, method.proj(method.ctx))
    for text_edit, vision_edit, coupling in zip(text[1:], vision[1:], method.compound_prompt_projections):
        assert torch.equal(vision_edit.values, coupling(text_edit.values))
    first, second = method.compound_prompt_projections
    assert torch.equal(first.weight, second.weight)
    assert first.weight is not second.weight


@by_turns("backbone", tiny_backbones.WITH_VISION_BLOCKS, indirect=True)
def test_no_pooling_sees_vision_prompts(backbone: Backbone, images: Tensor) -> None:
    """Prompts that no patch attends to change nothing, whatever the tower pools."""
    deaf = {"mix": "constant", "share": 0.5, "x_to_x": 2.0, "x_to_p": 0.0, "p_to_x": 1.0}
    model = adapt.wrap(backbone, methods.DPL(n_ctx_text=0, n_ctx_vision=3, depth_vision=2, **deaf), NAMES)
    frozen = F.normalize(backbone.encode_image(images), dim=-1)
    assert scaled(model.image_features(images), frozen) < 1e-5


def test_vision_prompts_stand_after_the_patches_and_before_the_pre_norm(open_clip: Backbone, images: Tensor) -> None:
    model = adapt.wrap(open_clip, methods.IVLP(n_ctx_text=0, n_ctx_vision=3, depth_vision=1), NAMES)
    seen: list[Tensor] = []
    handle = open_clip.model.visual.ln_pre.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    open_clip.encode_image(images)
    model.image_features(images)
    handle.remove()
    assert torch.equal(seen[1][:, :-3], seen[0])
    assert torch.equal(seen[1][:, -3:], model.method.vision[0].expand(len(images), -1, -1))


@pytest.mark.parametrize("fast", [True, False])
def test_every_image_has_its_own_context(fast: bool, open_clip: Backbone, images: Tensor) -> None:
    model = perturb(adapt.wrap(open_clip, methods.CoCoOp(), NAMES, fast))
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    assert scaled(together, alone) < 1e-5
    features = model.class_features(model.image_features(images))
    assert features.shape == (len(images), len(NAMES), 64)
    assert relative(features[0], features[1]) > 1e-3


def test_class_features_of_cocoop_need_an_image(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, methods.CoCoOp(), NAMES)
    with pytest.raises(AdaptError, match="reads features of the vision tower, which this call does not compute"):
        model.class_features()


@pytest.mark.parametrize("fast", [True, False])
def test_a_batch_gives_cocoops_gradients_of_its_images(fast: bool, open_clip: Backbone, images: Tensor) -> None:
    model = perturb(adapt.wrap(open_clip, methods.CoCoOp(), NAMES, fast))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    parameters = list(model.method.parameters())
    losses = (
        F.cross_entropy(model(images), labels, reduction="sum"),
        sum(F.cross_entropy(model(image[None]), label[None]) for image, label in zip(images, labels)),
    )
    together, alone = (flat(torch.autograd.grad(loss, parameters)) for loss in losses)  # type: ignore[arg-type]
    assert relative(together, alone) < 1e-5


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (methods.MaPLe(depth=4), "maple: depth is 4, but the text tower has 3 blocks: set method.depth to 1 to 3"),
        (methods.IVLP(n_ctx_text=0, depth_vision=4), "ivlp: depth_vision is 4, but the vision tower has 3"),
        (methods.IVLP(n_ctx_vision=0, depth_text=4), "ivlp: depth_text is 4, but the text tower has 3"),
        (methods.MaPLe(n_ctx=5, depth=2), "has 4 tokens but n_ctx is 5"),
        (methods.CoCoOp(n_ctx=5), "has 4 tokens but n_ctx is 5"),
        (methods.MaPLe(n_ctx=73, depth=2, ctx_init=""), "has 79 tokens but the text tower reads 77"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_towers_is_refused(method: methods.Method, message: str, open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=message):
        adapt.wrap(open_clip, method, ("red panda cub",))


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(AdaptError, match="are both 0; expected at least one above 0"):
        methods.IVLP(n_ctx_text=0, n_ctx_vision=0)


def test_text_prompts_alone_serve_a_model_without_vision_blocks(open_clip_resnet: Backbone, images: Tensor) -> None:
    model = adapt.wrap(open_clip_resnet, methods.IVLP(n_ctx_vision=0, depth_text=2), NAMES)
    assert model(images).shape == (len(images), len(NAMES))


@pytest.mark.parametrize("method", [methods.IVLP, methods.DPL])
def test_towers_that_hand_blocks_the_length_first(method: Any, open_clip: Backbone, images: Tensor) -> None:
    """open_clip's transformers may run `(l, b, d)`: the same weights, the same prompts, the same logits."""
    settings = {"depth_text": 2, "depth_vision": 2}
    torch.manual_seed(1)
    expected = perturb(adapt.wrap(open_clip, method(**settings), NAMES, fast=False))(images)
    torch.manual_seed(1)
    turned = tiny_backbones.length_first(open_clip)
    actual = perturb(adapt.wrap(turned, method(**settings), NAMES, fast=False))(images)
    assert scaled(actual, expected) < 1e-5
