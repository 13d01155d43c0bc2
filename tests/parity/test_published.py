"""Agreement with the numbers of the published implementations: both libraries, both text paths."""

from __future__ import annotations

import published
import pytest
import torch
from checks import scaled
from published import LIBRARIES, TOLERANCE

import adapt
from adapt import Backbone
from adapt.methods.base import total

pytestmark = pytest.mark.by_turns("tiny_clip", "fast")
COOP = ("coop_end16", "coop_middle4", "coop_front4", "coop_csc8", "coop_init")


@pytest.fixture(params=LIBRARIES)
def tiny_clip(request: pytest.FixtureRequest) -> Backbone:
    return published.backbone(request.param)


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def fast(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_zero_shot(tiny_clip: Backbone, fast: bool) -> None:
    settings, expected = published.case("zeroshot")
    model = adapt.wrap(tiny_clip, adapt.methods.ZeroShot(settings["template"]), settings["names"], fast)
    expected.scaled("image_features", tiny_clip.encode_image(expected["images"]))
    expected.scaled("text_features", model.class_features(), of=published.unit)
    expected.scaled("logits", model(expected["images"]))


def test_text_features_before_normalisation(tiny_clip: Backbone) -> None:
    settings, expected = published.case("zeroshot")
    prompts = [settings["template"].replace("{}", name.replace("_", " ")) for name in settings["names"]]
    expected.scaled("text_features", tiny_clip.encode_text(tiny_clip.tokenize(prompts)))


@pytest.mark.parametrize("name", COOP)
def test_coop(name: str, tiny_clip: Backbone, fast: bool) -> None:
    settings, expected = published.case(name)
    keys = ("n_ctx", "class_specific", "class_position", "ctx_init")
    method = adapt.methods.CoOp(**{key: settings[key] for key in keys})
    model = adapt.wrap(tiny_clip, method, settings["names"], fast)
    method.load_state_dict({"ctx": expected["ctx"]})

    step = model.step(expected["images"], expected["labels"])
    logits, loss = step.logits, total(model.losses(step)[0])
    method.backward({"loss": loss})
    expected.scaled("logits", logits)
    expected.scaled("loss", loss, within=TOLERANCE * max(1, float(expected["logits"].abs().max())))
    expected.relative("grad.ctx", method.ctx.grad)


def test_coop_starts_from_the_published_words(tiny_clip: Backbone) -> None:
    settings, expected = published.case("coop_init")
    method = adapt.methods.CoOp(ctx_init=settings["ctx_init"])
    adapt.wrap(tiny_clip, method, settings["names"])
    state = published.backbone("open_clip").model.state_dict()
    assert torch.equal(method.ctx, state["token_embedding.weight"][[320, 1125, 539, 320]])
    assert method.ctx.shape == expected["ctx"].shape


def test_clip_lora(tiny_clip: Backbone, fast: bool) -> None:
    settings, expected = published.case("cliplora_r2")
    config = {key: settings[key] for key in ("rank", "alpha", "projections", "template")}
    method = adapt.methods.LoRA(**config)
    model = adapt.wrap(tiny_clip, method, settings["names"], fast).eval()
    with torch.no_grad():
        for tower, block, letter in method.sites:
            for factor, side in zip(method.pair(tower, block, letter), "AB"):
                factor.copy_(expected[f"param.{tower}.{block}.{letter}.{side}"])

    step = model.step(expected["images"], expected["labels"])
    logits, loss = step.logits, total(model.losses(step)[0])
    method.backward({"loss": loss})
    expected.scaled("text_features", model.class_features(), of=published.unit)
    expected.scaled("image_features", model.image_features(expected["images"]), of=published.unit)
    expected.scaled("logits", logits)
    expected.scaled("loss", loss, within=TOLERANCE * max(1, float(expected["logits"].abs().max())))
    for site in method.sites:
        for factor, side in zip(method.pair(*site), "AB"):
            expected.relative(f"grad.{'.'.join(map(str, site))}.{side}", factor.grad)
    settings.equal("logit_scale", method.logit_scale)


def test_both_libraries_give_the_same_features() -> None:
    images = torch.randn(4, 3, 32, 32)
    texts = ["a photo of a cat.", "X X X X sea cucumber.", "word " * 70]
    ours, theirs = (published.backbone(library) for library in LIBRARIES)
    assert scaled(ours.encode_image(images), theirs.encode_image(images)) < TOLERANCE
    features = [each.encode_text(each.tokenize(texts)) for each in (ours, theirs)]
    assert scaled(*features) < TOLERANCE
