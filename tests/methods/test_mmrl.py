"""MMRL and MMRL++: where tokens enter, which of two features answers about which classes, and what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from checks import perturb, scaled
from small_trainings import SETTINGS
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, fit, methods
from adapt.data import Split
from adapt.methods import MMRL, MMRLPP, Compose, LoRA
from adapt.methods.base import Context
from adapt.training.start import start_from

NAMES = ("goldfish", "red_panda", "sea cucumber")
BOTH = pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])


def wrapped(name: str, backbone: Backbone, **settings: Any) -> AdaptedModel:
    method = methods.find(name)(**{"tokens": 4, "width": 8} | settings)
    return perturb(adapt.wrap(backbone, method, NAMES)).eval()


def answers(model: AdaptedModel, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By the tokens, by the class token, and what the model says."""
    with torch.no_grad():
        return *model.method._both(model.step(images)), model(images)


@BOTH
def test_both_features_answer_about_trained_classes_and_the_class_token_about_new_ones(
    name: str, open_clip: Backbone, images: Tensor, tmp_path: Path
) -> None:
    model = wrapped(name, open_clip, weight=0.6)
    of_tokens, of_class_token, said = answers(model, images)
    assert scaled(said, 0.6 * of_class_token + 0.4 * of_tokens) < 3e-6
    assert scaled(said, of_class_token) > 0.01
    assert scaled(model.with_classes(NAMES[:2])(images), said[:, :2]) < 3e-6  # some of the trained
    mixed = model.with_classes(("goldfish", "toy", "red_panda"))
    assert scaled(mixed(images)[:, [0, 2]], of_class_token[:, :2]) < 3e-6
    for saved in (model, mixed):  # under whichever names: which classes were trained stands in the settings
        loaded = adapt.load(saved.save(tmp_path / "a.safetensors"), open_clip)
        assert loaded.method.config.classes == NAMES
        assert torch.equal(loaded(images), saved(images))
        assert torch.equal(loaded.with_classes(NAMES)(images), said)


def test_training_says_which_classes_are_trained(open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    """Whether it goes on with the model of other classes, or starts from their adapter."""
    model = adapt.wrap(open_clip, MMRL(tokens=4, width=8), ("toy", "apple pie"))
    file, names = model.save(tmp_path / "old.safetensors"), tiny_split.class_names
    fit(model.with_classes(names), tiny_split.train, progress=False, **SETTINGS)
    assert model.method.config.classes == names
    started = adapt.wrap(open_clip, MMRL(tokens=4, width=8), names)
    start_from(started, file)
    assert started.method.config.classes == names
    with pytest.raises(AdaptError, match=r"was trained with pull set to 0.5, but this training has 1.0"):
        start_from(adapt.wrap(open_clip, MMRL(tokens=4, width=8, pull=1.0), names), file)


@BOTH
@pytest.mark.parametrize(("first", "text", "vision"), [(None, 2, 3), (1, 2, 3), (2, 1, 2)])
def test_tokens_enter_halfway_up_or_at_the_block_that_is_named(
    name: str, first: int | None, text: int, vision: int
) -> None:
    backbone = tiny_backbones.backbone("open_clip_timm" if first is None else "open_clip")
    model = wrapped(name, backbone, first_block=first)
    for tower in backbone.towers.values():
        edits: Any = model.method.edits(tower, Context())
        start = max(1, len(tower.blocks) // 2) if first is None else first
        assert [edit.block for edit in edits] == list(range(start - 1, len(tower.blocks)))
        assert [edit.enters for edit in edits] == [True] + [False] * (len(edits) - 1)
        assert all(edit.values.shape == (4, tower.width) for edit in edits)
    assert model.unedited_blocks == (0 if first is None else first - 1)


def test_a_block_that_a_tower_lacks_is_refused(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=r"mmrl: first_block is 4, but the text tower has 3 blocks: set .* to 1 to 3"):
        wrapped("mmrl", open_clip, first_block=4)


@BOTH
def test_backbones_that_cannot_take_it_are_refused_by_name(name: str) -> None:
    with pytest.raises(AdaptError, match=r"cannot enter at a block of the text tower; expected .* a causal text tower"):
        wrapped("mmrl", tiny_backbones.backbone("hf_siglip"))
    with pytest.raises(AdaptError, match="vision tower"):
        wrapped(name, tiny_backbones.backbone("open_clip_resnet"))
    with pytest.raises(AdaptError, match=r"mmrlpp changes the vision tower's projection, and .* has none"):
        wrapped("mmrlpp", tiny_backbones.backbone("hf_siglip"))
    with pytest.raises(AdaptError, match=f"{name} cannot be part of a composition"):
        Compose([methods.find(name)(), LoRA()])


def test_texts_without_a_start_token_are_refused(open_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    row = open_clip.tokenizer.row
    monkeypatch.setattr(open_clip.tokenizer, "row", lambda text: row(text)[1:])
    with pytest.raises(AdaptError, match="learned tokens enter behind a text's start token, which this tokenizer does"):
        wrapped("mmrl", open_clip)


@BOTH
def test_cached_features_serve_new_classes_alone(name: str, open_clip: Backbone, images: Tensor) -> None:
    model = wrapped(name, open_clip)
    features = model.image_features(images)
    new = model.with_classes(("toy", "apple pie"))
    assert scaled(new.logits(features), new(images)) < 1e-6
    with pytest.raises(AdaptError, match=f"{name} reads images, but this batch has only image features"):
        model.logits(features)


@BOTH
def test_the_loss_weighs_both_answers_and_the_distances_to_the_frozen_model(
    name: str, open_clip: Backbone, images: Tensor, labels: Tensor
) -> None:
    model = wrapped(name, open_clip, weight=0.6, pull=2.0)
    of_tokens, of_class_token, _ = answers(model, images)
    terms, _ = model.losses(model.step(images, labels))
    plain = adapt.wrap(open_clip, methods.ZeroShot(), NAMES).eval()
    image = 1 - (model.image_features(images) * plain.image_features(images)).sum(-1).mean()
    text = 1 - (model.class_features() * plain.class_features()).sum(-1).mean()
    expected = {
        "class_token": 0.6 * F.cross_entropy(of_class_token, labels),
        "tokens": 0.4 * F.cross_entropy(of_tokens, labels),
        "image": 2 * image,
        "text": 2 * text,
    }
    assert terms.keys() == expected.keys()
    assert all(scaled(terms[key], expected[key]) < 1e-5 for key in terms)


@BOTH
def test_one_pass_through_the_tower_gives_both_features(
    name: str, open_clip: Backbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wrapped(name, open_clip)
    passes = []
    through = model._image_features
    monkeypatch.setattr(model, "_image_features", lambda *given: passes.append(1) or through(*given))
    step = model.step(images)
    read = step.logits, step.features
    assert len(passes) == 1
    assert all(scaled(one, other) < 1e-5 for one, other in zip(read, (model(images), model.image_features(images))))
    assert step.learned_outputs.shape == (len(images), 4, 192)


def test_the_towers_widths_say_how_much_trains(open_clip: Backbone) -> None:
    """The published formula: R, two maps a block and a projection; ++: two maps, low-rank parts and biases a block."""
    r, blocks, towers = 8, 3, (128, 192)
    sizes = {name: sum(p.numel() for p in wrapped(name, open_clip).method.parameters()) for name in ("mmrl", "mmrlpp")}
    assert sizes["mmrl"] == 4 * r + blocks * sum(width * (r + 1) for width in towers) + 192 * 64
    own = sum(width * r + blocks * (4 * (width + r) + width) for width in towers)
    assert sizes["mmrlpp"] == 4 * r + own + 64 * (192 + 64)


def test_untrained_mmrlpp_projects_as_the_frozen_model(open_clip: Backbone, images: Tensor) -> None:
    model = adapt.wrap(open_clip, MMRLPP(tokens=4, width=8), NAMES)
    projection = model.method._projection(model.step(images))
    assert torch.equal(projection, open_clip.tower("vision").projection.weight.T)
    values = model.method._values("vision")
    assert all(scaled(each - own.bias, values[0] - model.method.srra_r2vproj.srra[0].bias) < 1e-6
               for each, own in zip(values, model.method.srra_r2vproj.srra))  # fmt: skip


def test_with_a_share_of_one_mmrlpp_is_mmrl(open_clip: Backbone, images: Tensor) -> None:
    """With the same maps and the same projection; a smaller share lets tokens keep what they have read."""
    plus: Any = wrapped("mmrlpp", open_clip, share=1.0)
    plain: Any = adapt.wrap(open_clip, MMRL(tokens=4, width=8), NAMES).eval()
    with torch.no_grad():
        plain.method.compound_rep_tokens.copy_(plus.method.compound_rep_tokens)
        plain.method.proj_rep.copy_(plus.method._projection(plus.step(images)))
        for letter in "tv":
            shared = getattr(plus.method, f"srra_r2{letter}proj")
            for linear, own in zip(getattr(plain.method, f"compound_rep_tokens_r2{letter}proj"), shared.srra):
                linear.weight.copy_(shared.weight + own.A @ own.B)
                linear.bias.copy_(own.bias)
        assert scaled(plus(images), plain(images)) < 1e-5
        blended: Any = adapt.wrap(open_clip, MMRLPP(tokens=4, width=8, share=0.5), NAMES).eval()
        blended.method.load_state_dict(plus.method.state_dict())
        assert scaled(blended(images), plain(images)) > 1e-3
