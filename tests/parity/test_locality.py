"""Locality alignment against the published MaskEmbed: masks, the teacher's targets, rebuilt tokens and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import published
import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor, nn

import adapt
from adapt import AdaptError, methods
from adapt.methods.base import ImageStep
from adapt.methods.locality import Rebuilder, hidden, masks_of

MLP = {"1.0": ["fc1"], "1.2": ["fc2"]}  # our numbers of a head's layers, and its names


def built(library: str, settings: Any) -> Any:
    decoder = settings["decoder"]
    method = methods.Locality(
        decoder_width=decoder["width"], decoder_layers=decoder["layers"], skip_blocks=settings["skip_blocks"]
    )
    return adapt.wrap(published.backbone(library), method, ()).train()


def load(rebuilder: Rebuilder, expected: Any) -> None:
    """The published weights under our names: the student's head, and the decoder with its last map."""
    own = {key.replace("head.", "out."): value for key, value in expected.under("param.decoder.").items()}
    head = expected.under("param.encoder.head.")
    for key, value in rebuilder.head.state_dict().items():
        *layer, kind = key.split(".")
        own[f"head.{key}"] = value if layer == ["0"] else head[".".join([*MLP.get(".".join(layer), []), kind])]
    rebuilder.load_state_dict(own)


def compare(rebuilder: Rebuilder, expected: Any) -> None:
    """The gradients of all that a decoder trains."""
    for key, parameter in rebuilder.named_parameters():
        *layer, kind = key.removeprefix("head.").split(".")
        name = f"decoder.{key.replace('out.', 'head.')}"
        if key.startswith("head."):
            name = ".".join(
                ["encoder", *(["norm"] if layer == ["0"] else ["head", *MLP.get(".".join(layer), [])]), kind]
            )
        expected.relative(f"grad.{name}", parameter.grad)


def of_the_encoder(model: Any, images: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Gradients of open_clip's own tensors, from that of the tokens behind its last block, in timm's names."""
    visual: Any = model.backbone.model.visual
    own = {
        "blocks.0.attn.qkv.weight": visual.transformer.resblocks[0].attn.in_proj_weight,
        "blocks.1.attn.proj.weight": visual.transformer.resblocks[1].attn.out_proj.weight,
        "blocks.1.norm1.weight": visual.transformer.resblocks[1].ln_1.weight,
        "blocks.2.norm2.bias": visual.transformer.resblocks[2].ln_2.bias,
        "norm_pre.weight": visual.ln_pre.weight,
        "cls_token": visual.class_embedding,
        "pos_embed": visual.positional_embedding,
    }
    tokens: list[Tensor] = []
    handle = visual.transformer.resblocks[-1].register_forward_hook(lambda *each: tokens.append(each[-1]))
    flags = {parameter: parameter.requires_grad for parameter in visual.parameters()}
    visual.requires_grad_(True)
    visual(images)
    handle.remove()
    found = torch.autograd.grad(tokens[0], list(own.values()), gradient)
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)
    return dict(zip(own, found, strict=True))


@pytest.mark.parametrize("library", published.LIBRARIES)
def test_maskembed(library: str) -> None:
    settings, expected = published.case("maskembed")
    model = built(library, settings)
    method, step = model.method, ImageStep(model, expected["images"])
    rebuilder = method.aside["locality"]
    load(rebuilder, expected)
    method._scale.copy_(expected["scale"])
    masks = expected["mask"].bool().unflatten(0, (-1, settings["mask"]["per_image"]))
    frozen, targets = method.targets(step, masks)
    expected.scaled("target", targets.flatten(0, 1))
    tokens = model.vision_tokens(expected["images"])
    torch.testing.assert_close(tokens, frozen, rtol=0, atol=1e-5)  # at its start, LoRA changes nothing
    expected.scaled("tokens", rebuilder.head(tokens))
    expected.scaled("reconstruction", rebuilder(tokens, method.seen(masks)).flatten(0, 1))
    tokens = tokens.detach().requires_grad_()
    loss = F.mse_loss(rebuilder(tokens, method.seen(masks)), targets)
    expected.scaled("loss", loss)
    torch.testing.assert_close(method.errors(step, masks)["locality"], loss)
    loss.backward()
    compare(rebuilder, expected)


def test_gradients_of_the_tower_of_maskembed() -> None:
    settings, expected = published.case("maskembed")
    model = built("open_clip", settings)
    method, step = model.method, ImageStep(model, expected["images"])
    rebuilder = method.aside["locality"]
    load(rebuilder, expected)
    method._scale.copy_(expected["scale"])
    masks = expected["mask"].bool().unflatten(0, (-1, settings["mask"]["per_image"]))
    tokens = model.vision_tokens(expected["images"]).detach().requires_grad_()
    F.mse_loss(rebuilder(tokens, method.seen(masks)), method.targets(step, masks)[1]).backward()
    for key, gradient in of_the_encoder(model, expected["images"], tokens.grad).items():
        expected.relative(f"grad.encoder.{key}", gradient.view_as(expected[f"grad.encoder.{key}"]))


def test_the_start_of_maskembed() -> None:
    """The head is zero, so that the first gradients reach the head alone, and not the tokens."""
    settings, expected = published.case("maskembed_start")
    model = built("open_clip", settings)
    method, step = model.method, ImageStep(model, expected["images"])
    rebuilder = method.aside["locality"]
    assert all(not parameter.any() for parameter in rebuilder.head[1].parameters())
    load(rebuilder, expected)
    method._scale.copy_(expected["scale"])
    masks = expected["mask"].bool().unflatten(0, (-1, settings["mask"]["per_image"]))
    expected.scaled("target", method.targets(step, masks)[1].flatten(0, 1))
    loss = method.errors(step, masks)["locality"]
    expected.scaled("loss", loss)
    loss.backward()
    assert all(not parameter.grad.any() for parameter in method.parameters())
    norms = {}
    for key, parameter in rebuilder.named_parameters():
        name = f"decoder.{key.replace('out.', 'head.')}" if key[:5] != "head." else f"encoder.head{key[6:]}"
        if key.startswith("head.0"):
            assert not parameter.grad.any()
        else:
            norms[name] = parameter.grad.norm().item()
    expected_norms = {key: value for key, value in settings["grad_norms"].items() if value}
    assert norms == pytest.approx(expected_norms, rel=1e-4)


def test_maskembed_of_the_class_token() -> None:
    """The ablation with a perceptron as head, whose code compares each reconstruction with all targets."""
    settings, expected = published.case("maskembed_class")
    decoder = settings["decoder"]
    tower = published.backbone("open_clip").tower("vision")
    act = type(tower.blocks[0].act)
    rebuilder = Rebuilder(tower.width, 17, decoder["width"], decoder["heads"], decoder["layers"], act)
    hidden_width = len(expected["param.encoder.head.fc1.weight"])
    rebuilder.head[1] = nn.Sequential(
        nn.Linear(tower.width, hidden_width), act(), nn.Linear(hidden_width, decoder["width"])
    )
    load(rebuilder, expected)
    model: Any = adapt.wrap(published.backbone("open_clip"), methods.ZeroShot(), ())
    tokens = model.image_tokens(expected["images"])
    expected.scaled("tokens", rebuilder.head(tokens))
    masks = expected["mask"].bool().unflatten(0, (-1, settings["mask"]["per_image"]))
    of_masked = model.image_tokens(hidden(expected["images"], masks).flatten(0, 1))
    norm: Any = model.backbone.tower("vision").final_norm
    expected.scaled("target", expected["scale"] * norm(of_masked)[:, 0])
    rebuilt = rebuilder(tokens, F.pad(masks, (1, 0))).flatten(0, 1)[:, :1]
    expected.scaled("reconstruction", rebuilt)
    loss = 1 - F.cosine_similarity(rebuilt, expected["target"], dim=-1).mean()
    expected.scaled("loss", loss)
    loss.backward()
    compare(rebuilder, expected)


def test_masks_of_maskembed() -> None:
    """From numpy's draws as the published sampler makes them: for three rows an image, of which it uses the first."""
    settings, expected = published.case("maskembed_masks")
    for seed in (0, 1):
        draws = np.random.default_rng(seed).uniform(size=(settings["images"], 3, 1 + settings["patches"]))
        expected.equal(f"mask.{seed}", masks_of(torch.from_numpy(draws[:, 0])).flatten(0, 1).float())
        alone = masks_of(torch.from_numpy(draws[:, 0]), antithetical=False)
        expected.equal(f"mask.{seed}", alone.float(), of=lambda stored: stored.unflatten(0, (-1, 3))[:, ::2])
        draws = np.random.default_rng(seed).uniform(size=(settings["images"], 3, settings["patches"]))
        padded = F.pad(torch.from_numpy(draws[:, 0]), (1, 0))  # our draw for the number of patches, not read here
        expected.equal(f"bernoulli.{seed}", masks_of(padded, share=0.5).flatten(0, 1).float())


@pytest.mark.parametrize("skipped", [0, 2])
def test_teachers_without_other_numbers_of_blocks(skipped: int) -> None:
    """The targets are what a tower that ends earlier gives; without blocks left out, the published class token's."""
    _, expected = published.case("maskembed_class" if skipped == 0 else "maskembed")
    method = methods.Locality(skip_blocks=skipped, antithetical=False, decoder_width=12, decoder_layers=1)
    model: Any = adapt.wrap(published.backbone("open_clip"), method, ()).train()
    masks = expected["mask"].bool().unflatten(0, (-1, 3))
    method._scale.copy_(expected["scale"])
    frozen, targets = method.targets(ImageStep(model, expected["images"]), masks)
    if skipped == 0:
        expected.scaled("target", targets.flatten(0, 1)[:, 0])
    visual: Any = model.backbone.model.visual
    tokens: list[Tensor] = []
    block = visual.transformer.resblocks[-1 - skipped]
    handle = block.register_forward_hook(lambda *each: tokens.append(each[-1]))
    with torch.no_grad():
        visual(hidden(expected["images"], masks).flatten(0, 1))
        handle.remove()
        right = expected["scale"] * visual.ln_post(tokens[0])
    assert scaled(targets.flatten(0, 1), right) < published.TOLERANCE
    assert scaled(frozen, model.image_tokens(expected["images"])) < published.TOLERANCE
    assert set(method.loss(ImageStep(model, expected["images"]))) == {"locality", "control"}
    with pytest.raises(AdaptError, match="expected 4 blocks or more"):
        adapt.wrap(published.backbone("open_clip"), methods.Locality(skip_blocks=3), ())
