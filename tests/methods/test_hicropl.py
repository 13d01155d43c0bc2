"""HiCroPL's flows: what training leaves in the prompts, what answers never change, and frozen features beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import perturb, scaled
from stopping import stopped_at
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, fit
from adapt.data import Split
from adapt.methods import IVLP, HiCroPL
from adapt.methods.base import total
from adapt.methods.hicropl import Refinement

NAMES = ("goldfish", "red_panda", "sea cucumber")
SMALL: dict[str, Any] = {"n_ctx_text": 4, "n_ctx_vision": 3, "depth_text": 3, "depth_vision": 2}
STEPS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "optimizer": "adam", "lr": 0.01, "workers": 0, "augment": "none"}


def wrapped(backbone: Backbone, flow: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return adapt.wrap(backbone, HiCroPL(**SMALL | {"flow": flow} | changes), NAMES)


def trained(backbone: Backbone, flow: str, split: Split, out: Path | None = None, **changes: Any) -> AdaptedModel:
    model = wrapped(backbone, flow)
    fit(model, split.train, out=out, progress=False, **STEPS | changes)
    return model


@pytest.mark.parametrize("flow", ["trained", "published", "none"])
def test_adapters_hold_prompts_alone(flow: str, open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    model: Any = trained(open_clip, flow, tiny_split, tmp_path / "run")
    state = model.method.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        **{f"text.{block}": (4, 128) for block in range(3)},
        **{f"vision.{block}": (3, 192) for block in range(2)},
    }
    assert not model.method.aside
    images = torch.randn(5, 3, 32, 32)
    loaded = adapt.load(tmp_path / "run" / "adapter.safetensors", open_clip)
    with torch.no_grad():
        answers = loaded(images)
        assert torch.equal(loaded(images), answers)  # answers change nothing
        assert torch.equal(model.eval()(images), answers)


def test_the_end_of_training_changes_no_answer(open_clip: Backbone, images: Tensor) -> None:
    model = wrapped(open_clip, "trained").eval()
    method = model.method
    alone = model(images)
    method.prepare(None)
    before, start = model(images), [prompt.clone() for prompt in (*method.text, *method.vision)]
    assert scaled(before, alone) > 1e-2  # the networks are read
    method.finish(None)
    assert scaled(model(images), before) < 1e-6
    same = [torch.equal(prompt, old) for prompt, old in zip((*method.text, *method.vision), start, strict=True)]
    assert same == [True, False, False, False, True]  # text from block 1 on, and vision before it


def test_networks_learn_in_the_trained_flow_alone(open_clip: Backbone, images: Tensor, labels: Tensor) -> None:
    for flow, learning in (("trained", True), ("published", False)):
        model = wrapped(open_clip, flow)
        model.method.prepare(None)
        total(model.losses(model.step(images, labels))[0]).backward()
        networks = list(model.method.aside.parameters())
        assert [parameter.grad is not None for parameter in networks] == [learning] * len(networks)
        assert len(list(model.method.trains())) == 5 + learning * len(networks)


def test_the_published_flow_refines_before_each_step_and_in_no_answer(
    open_clip: Backbone, images: Tensor, labels: Tensor
) -> None:
    model = wrapped(open_clip, "published")
    model.method.prepare(None)
    for _ in range(2):
        refined = [each.clone() for each in model.method.refined("text")]
        model.losses(model.step(images, labels))
        assert all(map(torch.equal, model.method.text, refined))
    state = {key: value.clone() for key, value in model.method.state_dict().items()}
    with torch.no_grad():
        model(images)
        model.losses(model.step(images, labels))
    assert all(torch.equal(value, state[key]) for key, value in model.method.state_dict().items())


def test_without_flow_it_is_ivlp_with_frozen_features(open_clip: Backbone, images: Tensor) -> None:
    model = perturb(wrapped(open_clip, "none")).eval()
    other = adapt.wrap(open_clip, IVLP(**SMALL, ctx_init=""), NAMES).eval()
    other.method.load_state_dict(model.method.state_dict())
    with torch.no_grad():
        seen = other.image_features(images) + other.backbone_features(images)
        texts = other.class_features() + other.frozen_class_features(["a photo of a {}."])
        expected = open_clip.logit_scale * F.normalize(seen, dim=-1) @ F.normalize(texts, dim=-1).T
        assert scaled(model(images), expected) < 1e-5


def test_distances_to_frozen_features_have_their_weight(open_clip: Backbone, images: Tensor, labels: Tensor) -> None:
    found = []
    for weight in (12.0, 3.0):
        model = perturb(wrapped(open_clip, "none", weight=weight))
        found.append(model.losses(model.step(images, labels))[0])
    for term in ("text", "image"):
        assert found[0][term].item() == pytest.approx(4 * found[1][term].item())
        assert found[0][term] > 1e-3
    assert torch.equal(found[0]["cross_entropy"], found[1]["cross_entropy"])


def test_a_resumed_run_has_the_same_networks(open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    whole = trained(open_clip, "trained", tiny_split, tmp_path / "whole")
    with stopped_at(4):
        trained(open_clip, "trained", tiny_split, tmp_path / "run")
    resumed = trained(open_clip, "trained", tiny_split, tmp_path / "run", resume=True)
    assert all(map(torch.equal, whole.method.parameters(), resumed.method.parameters()))


# texts by class


def test_frozen_class_features_are_of_each_class_own_texts(open_clip: Backbone, tmp_path: Path) -> None:
    table = {"goldfish": ["an orange fish.", "a small fish in a bowl."], "red_panda": [], "seal": ["a seal."]}
    (tmp_path / "texts.json").write_text(json.dumps(table))
    model = wrapped(open_clip, "none", descriptors=str(tmp_path / "texts.json"))
    assert model.method.config.descriptors["goldfish"] == tuple(table["goldfish"])  # no file is needed later
    other = adapt.wrap(open_clip, adapt.methods.ZeroShot(), NAMES)
    for names in (NAMES, ("seal", "goldfish")):
        found = model.with_classes(names).frozen_class_features(model.method.texts)
        for name, feature in zip(names, found, strict=True):
            texts = table.get(name) or [f"a photo of a {name.replace('_', ' ')}."]
            mean = other.text_features(texts).mean(0)
            assert scaled(feature, F.normalize(mean, dim=-1)) < 1e-5


# refusals and the network itself


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_block": 2}, r"cross_block is 2, but prompts enter 2 blocks of both towers; expected 1 to 1"),
        ({"depth_text": 1}, r"cross_block is 0, but prompts enter 1 blocks of both towers"),
    ],
)
def test_both_directions_need_a_block(open_clip: Backbone, changes: dict[str, int], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        wrapped(open_clip, "trained", **changes)
    wrapped(open_clip, "none", **changes)


def test_published_checkpoints_are_refused() -> None:
    with pytest.raises(AdaptError, match="adapt cannot read published hicropl checkpoints"):
        HiCroPL.published({}, {})


def test_refined_prompts_do_not_depend_on_the_order_of_a_blocks_source_prompts() -> None:
    torch.manual_seed(1)
    network = Refinement(2, source=32, target=64)
    prompts, sources = torch.randn(3, 5, 64).unbind(), torch.randn(2, 4, 32)
    refined = network(prompts, sources.unbind())
    assert [each.shape for each in refined] == [(5, 64)] * 3
    assert scaled(torch.stack(network(prompts, sources.flip(1).unbind())), torch.stack(refined)) < 1e-6
    assert scaled(torch.stack(network(prompts, sources.flip(0).unbind())), torch.stack(refined)) > 1e-3
