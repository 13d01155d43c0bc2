"""Answers less what would be said without the image: by hand token by token, in batches, by beams, and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checks import perturb
from native_chats import CHATS, KINDS, lora, model_of, pictures, seen
from PIL import Image
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptError
from adapt.chats import Chat
from adapt.models.debiasing import NOISED, Mode, debiased, noised, share_kept, without_images
from adapt.models.native_vlm import ChatModel

ASKED = [chat.question for chat in CHATS[:2]]
OPTIONS = ["yes.", "no.", "a red circle"]


def chatting(kind: str) -> ChatModel:
    model = model_of(kind, lora("decoder"))
    model.backbone.tokenizer.unk_token = "<unk>"
    return perturb(model)


def by_hand(model: ChatModel, mode: Mode, image: Any, chat: Chat, count: int, alpha: float, beta: float) -> list[int]:
    """The tokens of an answer, each the most probable after all rows were read again as a whole."""
    rows = [(image, chat), *((own[0], each[0]) for own, each in without_images(mode, [image], [chat], "<unk>"))]
    inputs = [model.backbone.rows([each], [own], left=True, asks=True).inputs for own, each in rows]
    tokens: list[int] = []

    def next_scores(given: dict[str, Any]) -> Tensor:
        more = torch.tensor([tokens], dtype=torch.long)
        longer = {
            "input_ids": torch.cat([given["input_ids"], more], dim=-1),
            "attention_mask": torch.cat([given["attention_mask"], torch.ones_like(more)], dim=-1),
        }
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in given:
                longer[name] = torch.cat([given[name], torch.zeros_like(more)], dim=-1)
        scores: Tensor = model._edited(lambda: model.backbone.vlm(**given | longer, use_cache=False)).logits[0, -1]
        return scores

    with torch.no_grad():
        for _ in range(count):
            own, *others = (next_scores(each) for each in inputs)
            tokens.append(int(debiased(own, torch.stack(others).mean(0), alpha, beta).argmax()))
    return tokens


def generated(model: ChatModel, images: Any, chats: Any, **settings: Any) -> list[str]:
    return [answer.text for answer in model.generate(images, chats, max_new_tokens=5, **settings)]


@by_turns("kind", [kind for kind in KINDS if kind != "paligemma"], take=3)
@pytest.mark.parametrize("mode", ["none", "unk", "both"])
def test_each_token_is_debiased(kind: str, mode: Mode) -> None:
    model, images = chatting(kind), seen()[:2]
    expected = [
        model.backbone.tokenizer.decode(by_hand(model, mode, image, chat, 5, 0.5, 0.2), skip_special_tokens=True)
        for image, chat in zip(images, ASKED, strict=True)
    ]
    found = generated(model, images, ASKED, debias=mode, alpha=0.5, beta=0.2, eos_token_id=[10**6])
    assert found == [text.strip() for text in expected]
    assert generated(model, images[1:], ASKED[1:], debias=mode, alpha=0.5, beta=0.2, eos_token_id=[10**6]) == found[1:]


def test_it_changes_answers_and_alpha_zero_does_not() -> None:
    model, images = chatting("smolvlm"), seen()[:2]
    plain = generated(model, images, ASKED)
    assert generated(model, images, ASKED, debias="none", alpha=0.0) == plain
    assert generated(model, images, ASKED, debias="none", alpha=5.0, beta=1e-6) != plain
    model.set_at_use(debias="none", alpha=5.0, beta=1e-6)
    assert generated(model, images, ASKED) == generated(model, images, ASKED, debias="none", alpha=5.0, beta=1e-6)
    model.set_at_use(debias=None)
    assert generated(model, images, ASKED) == plain


def test_several_answers_are_all_returned() -> None:
    model, images = chatting("smolvlm"), seen()[:2]
    for debias in (None, "none"):
        settings: dict[str, Any] = {"debias": debias, "num_beams": 3, "num_return_sequences": 2}
        assert len(generated(model, images, ASKED, **settings)) == 4


def test_beams_go_on_together() -> None:
    model, images = chatting("qwen2_5_vl"), seen()[:2]
    settings: dict[str, Any] = {"debias": "none", "num_beams": 3}
    together = generated(model, images, ASKED, **settings)
    alone = [generated(model, [image], [chat], merge=False, **settings)[0] for image, chat in zip(images, ASKED)]
    assert together == alone


@pytest.mark.parametrize("fast", [None, False])
@pytest.mark.parametrize("mode", ["none", "unk", "both"])
def test_options_are_divided_by_their_probability_without_the_image(fast: bool | None, mode: Mode) -> None:
    model = chatting("smolvlm")
    if fast is False:
        model = adapt.wrap(model.backbone, lora("decoder"), fast=False).eval()
        perturb(model)
    images = seen()[:2]
    plain = model.choose(images, ASKED, OPTIONS).double()
    shares = []
    for no_images, chats in without_images(mode, images, ASKED, "<unk>"):
        assert all(chat.images == 0 for chat in chats)
        shares.append(model.choose(no_images, chats, OPTIONS).double().softmax(-1))
    expected = plain.softmax(-1) / (torch.stack(shares).mean(0) + 1e-4)
    found = model.choose(images, ASKED, OPTIONS, calibrate=mode).double().softmax(-1)
    assert torch.allclose(found, expected / expected.sum(-1, keepdim=True), atol=1e-5)
    assert not torch.allclose(found, plain.softmax(-1), atol=1e-3)


def test_what_says_nothing_about_an_image_is_even() -> None:
    model = chatting("smolvlm")
    model.set_at_use(calibrate="none")
    found = model.choose([[]], [Chat.about("why?", images=0)], OPTIONS).softmax(-1)
    assert torch.allclose(found, torch.full((1, 3), 1 / 3), atol=1e-3)


def test_classes_are_calibrated_as_set_at_use() -> None:
    model = chatting("smolvlm").with_classes(OPTIONS)
    picture = pictures()[0]
    plain = model.probabilities(picture)
    model.set_at_use(calibrate="none")
    expected = model.choose([[picture]], [model.backbone.question], OPTIONS, calibrate="none").softmax(-1)
    assert torch.allclose(model.probabilities(picture), expected.cpu(), atol=1e-5)
    assert not torch.allclose(model.probabilities(picture), plain, atol=1e-3)
    assert model.predict(picture, top_k=1)[0].probability == pytest.approx(float(expected.max()), abs=1e-5)


def test_noise_is_that_of_half_a_diffusion() -> None:
    """A picture of one colour: the mean shrinks by the root of what is kept, and noise makes up the variance."""
    kept = share_kept(NOISED)
    assert share_kept(0) == pytest.approx(1, abs=1e-4)
    assert share_kept(999) < 0.1 < kept < share_kept(100)
    grey = Image.fromarray(np.full((200, 200, 3), 140, dtype=np.uint8))
    found = np.asarray(noised(grey), dtype=np.float64) / 127.5 - 1
    inside = found[np.abs(found) < 1]
    assert np.median(found) == pytest.approx(kept**0.5 * (140 / 127.5 - 1), abs=0.02)
    assert np.quantile(inside, 0.5) - np.quantile(inside, 0.3) > 0.1
    torch.manual_seed(3)
    once = np.asarray(noised(grey))
    torch.manual_seed(3)
    assert (np.asarray(noised(grey)) == once).all()
    model = chatting("smolvlm")
    assert generated(model, seen()[:1], ASKED[:1], debias="noise")
    assert model.choose(seen()[:1], ASKED[:1], OPTIONS, calibrate="noise").isfinite().all()


def test_what_cannot_be_debiased_is_refused() -> None:
    model, images = model_of("smolvlm"), seen()[:1]
    with pytest.raises(AdaptError, match="debiased answers cannot be sampled: leave out do_sample, or debias"):
        generated(model, images, ASKED[:1], debias="none", do_sample=True)
    model.backbone.tokenizer.unk_token = None
    with pytest.raises(AdaptError, match="the tokenizer has no unknown token to put in an image's place"):
        generated(model, images, ASKED[:1], debias="unk")
    with pytest.raises(AdaptError, match="noise is added to pictures, and these are encoded already"):
        model.choose(model.encoded(images), ASKED[:1], OPTIONS, calibrate="noise")
    with pytest.raises(AdaptError, match="debias is 'all'"):
        generated(model, images, ASKED[:1], debias="all")
    with pytest.raises(AdaptError, match="beta is 0"):
        generated(model, images, ASKED[:1], debias="none", beta=0)
    with pytest.raises(AdaptError, match="calibrate is 'all'"):
        model.choose(images, ASKED[:1], OPTIONS, calibrate="all")  # type: ignore[arg-type]
    with pytest.raises(AdaptError, match="debias is 'all': Input should be 'none', 'unk', 'both' or 'noise'"):
        model.set_at_use(debias="all")
    with pytest.raises(AdaptError, match="zero_shot has no settings at use: leave tokens out"):
        model.set_at_use(tokens=4)
