"""Native vision-language models as dual encoders: the state that is read, every door of a CLIP, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import perturb, scaled
from click.testing import CliRunner
from native_chats import KINDS
from tiny_natives import QUESTION, dual_encoder
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, methods
from adapt.backbones.embedding import pictures
from adapt.chats import Chat
from adapt.cli import main
from adapt.data import Split
from adapt.formats import merge, peft_layout
from adapt.retrieval.index import index_images, index_texts
from adapt.tasks.pairs import Pair

TEXTS = ["a dog.", "a red panda on the left of a lemon", "two"]
PAIRS: dict[str, Any] = {"batch_size": 6, "optimizer": "adamw", "augment": "none", "workers": 0}


@pytest.fixture
def squares(images: Tensor) -> Tensor:
    return images[:3].sigmoid()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "paligemma"])
def test_a_feature_is_the_state_where_an_answer_would_begin(kind: str, squares: Tensor) -> None:
    """One by one and without padding, from all states of the library's own forward."""
    embedding = dual_encoder(kind)
    native = embedding.states.native
    with torch.no_grad():
        of_texts = embedding.encode_text(embedding.tokenize(TEXTS))
        of_images = embedding.encode_image(squares)
        for text, feature in zip(TEXTS, of_texts, strict=True):
            rows = native.rows([Chat.about(f"{text} {QUESTION}", images=0)], [[]], asks=True)
            states = native.vlm(**rows.inputs, output_hidden_states=True).hidden_states[-1]
            assert scaled(feature, states[0, -1]) < 1e-5
        for picture, feature in zip(pictures(squares), of_images, strict=True):
            rows = native.rows([Chat.about(QUESTION)], [[picture]], asks=True)
            states = native.vlm(**rows.inputs, output_hidden_states=True).hidden_states[-1]
            assert scaled(feature, states[0, -1]) < 1e-5
    assert embedding.embed_dim == of_images.shape[-1] == of_texts.shape[-1]


def test_pictures_come_back_as_they_were(squares: Tensor) -> None:
    eighths = (squares * 255).round() / 255
    for picture, image in zip(pictures(eighths), eighths, strict=True):
        assert torch.equal(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*picture.size, 3),
                           (image * 255).round().to(torch.uint8).permute(1, 2, 0))  # fmt: skip


def test_a_copy_reads_with_its_own_weights(squares: Tensor) -> None:
    embedding = dual_encoder()
    other = copy.deepcopy(embedding)
    before = embedding.encode_image(squares)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(embedding.encode_image(squares), before)
    assert not torch.allclose(other.encode_image(squares), before, atol=1e-3)


@pytest.mark.parametrize(
    "method",
    [methods.ZeroShot(), methods.LinearProbe(strength=1.0), methods.LoRA(dropout=0.0, projections="qv"), methods.MRL()],
    ids=lambda method: method.name,
)
def test_what_serves_a_clip_serves_it(method: methods.Method, tiny_split: Split, tmp_path: Path) -> None:
    """Training, saving, loading, prediction, and an index."""
    model: Any = adapt.wrap(dual_encoder(), method, tiny_split.class_names)
    settings: dict[str, Any] = {"epochs": 1} | PAIRS if method.takes_steps else {}
    adapt.fit(model, tiny_split.train, tiny_split.test, progress=False, **settings)
    loaded = adapt.load(model.eval().save(tmp_path / "a.safetensors"), dual_encoder())
    paths = [item.path for item in tiny_split.test]
    expected = model.predict(paths, top_k=1)
    assert [each.label for each in loaded.predict(paths, top_k=1)] == [each.label for each in expected]
    assert isinstance(loaded, AdaptedModel)
    index = index_images(loaded, paths)
    assert index.nearest(index_texts(loaded, TEXTS).features, 2)[1].shape == (3, 2)


def test_an_update_of_shared_weights_is_not_merged(tiny_split: Split, tmp_path: Path) -> None:
    model = perturb(
        adapt.wrap(dual_encoder(), methods.LoRA(dropout=0.0, projections="qv"), tiny_split.class_names)
    ).eval()
    for write in (merge.merge, peft_layout.export):
        with pytest.raises(AdaptError, match="images and texts pass through the same weights of embed:llava, so that"):
            write(model, tmp_path / "out")
    assert peft_layout.carried(model) is None


def test_learned_tokens_are_refused_by_name(tiny_split: Split) -> None:
    refused = (
        "learned tokens cannot be added to the {} tower, which is the decoder of a vision-language model: use anot"
    )
    with pytest.raises(AdaptError, match=refused.format("text")):
        adapt.wrap(dual_encoder(), methods.CoOp(ctx_init="two"), tiny_split.class_names)
    with pytest.raises(AdaptError, match=refused.format("vision")):
        adapt.wrap(dual_encoder(), methods.IVLP(n_ctx_text=0, depth_vision=1), tiny_split.class_names)
    with pytest.raises(AdaptError, match="mini-clip is a dual encoder; expected a native vision-language model after"):
        adapt.load_backbone("embed:mini-clip")


def pairs(split: Split) -> Any:
    return tuple(
        replace(item, label=Pair("a long story" if place % 2 else ""), text=f"{item.answer} {place}")
        for place, item in enumerate(split.train)
    )


def vladva(**settings: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(dual_encoder(), methods.VladVA(rank=2, **settings), ())


def test_one_update_serves_both_sides(squares: Tensor) -> None:
    model = vladva()
    assert {key.split(".")[1] for key in model.state_dict()} == {"text"}
    before = model.image_features(squares), model.encode_texts(TEXTS)
    perturb(model)
    for old, new in zip(before, (model.image_features(squares), model.encode_texts(TEXTS)), strict=True):
        assert not torch.allclose(old, new, atol=1e-3)


def test_the_loss_contrasts_and_describes(tiny_split: Split, squares: Tensor) -> None:
    model = perturb(vladva(describes=0.5, asked="what?"))
    items = pairs(tiny_split)[:3]
    step: Any = items[0].task.step(model, items, squares)
    terms = model.losses(step)[0]
    images, texts = model.image_features(squares), model.encode_texts([item.text for item in items])
    logits, right = model.backbone.logit_scale * images @ texts.T, torch.arange(3)
    expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    torch.testing.assert_close(terms["cross_entropy"], expected, rtol=1e-4, atol=1e-4)
    native = model.backbone.states.native  # type: ignore[attr-defined]
    long = [item.text if not number % 2 else "a long story" for number, item in enumerate(items)]
    rows = native.rows([Chat.about("what?", text) for text in long], [[picture] for picture in pictures(squares)])
    whole = model.under_edits("vision", lambda: native.vlm(**rows.inputs).logits)
    found = F.cross_entropy(whole[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(terms["captions"], 0.5 * found, rtol=1e-4, atol=1e-4)


def test_parts_of_a_batch_give_the_same_gradients(tiny_split: Split, images: Tensor) -> None:
    items, squares = pairs(tiny_split)[:6], images[:6].sigmoid()
    found = []
    for at_once in (None, 4):
        model = perturb(vladva(at_once=at_once))
        step: Any = items[0].task.step(model, items, squares)
        sum(model.losses(step)[0].values()).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert found[0].norm() > 0
    assert scaled(found[1], found[0]) < 1e-5


def test_training_lowers_both_losses(tiny_split: Split) -> None:
    model, items = vladva(), pairs(tiny_split)
    result = adapt.fit(model, items, progress=False, epochs=15, **PAIRS | {"lr": 0.01})
    for term in ("cross_entropy", "captions"):
        values = [entry["terms"][term] for entry in result.history]
        assert sum(values[-4:]) < 0.85 * sum(values[:4])


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(AdaptError, match=r"towers is .*: expected \[text\]"):
        methods.VladVA(towers=("vision",))
    with pytest.raises(AdaptError, match="vladva adapts a vision-language model that serves as a dual encoder, and"):
        adapt.wrap(adapt.load_backbone("mini-clip"), methods.VladVA(), ())


def test_the_bundled_model_is_a_dual_encoder_by_its_name(tmp_path: Path) -> None:
    """Words that it knows find the drawing of what they say, before any training."""
    result = CliRunner().invoke(
        main,
        [
            "index",
            str(Path(__file__).resolve().parents[2] / "notebooks"),
            "--backbone",
            "embed:mini-vlm",
            "--out",
            f"{tmp_path}/a.safetensors",
        ],
    )
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ["search", f"{tmp_path}/a.safetensors", "a flower", "--json"])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["found"]) > 1
