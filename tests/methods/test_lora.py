"""LoRA and peft's other tuners: where they act, what they train, and whether the gradient is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
from checks import gradient, loss_of, perturb, relative
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone

EXAMPLE = Path(__file__).resolve().parents[2] / "notebooks/example.png"

NAMES = ("goldfish", "red_panda", "sea cucumber")
LoRA = adapt.methods.LoRA


def lora(backbone: Backbone, fast: bool | None = None, **config: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return perturb(adapt.wrap(backbone, LoRA(**config), NAMES, fast))


def count(model: AdaptedModel) -> int:
    return sum(parameter.numel() for parameter in model.method.parameters())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["open_clip", "hf_clip"])
def test_whole_gradients_agree_with_finite_differences(kind: str, fast: bool, images: Tensor, labels: Tensor) -> None:
    model = lora(tiny_backbones.backbone(kind), fast, projections="qkvo", input_gradient=True, logit_scale=10.0)
    model.double().eval()
    images = images.double()
    analytic = gradient(model, images, labels)
    direction = torch.randn(analytic.shape, dtype=torch.float64)
    parameters = list(model.method.parameters())
    steps = direction.split([parameter.numel() for parameter in parameters])

    def along(size: float) -> float:
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.add_(size * step.view_as(parameter))
            loss = loss_of(model, images, labels).item()
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.sub_(size * step.view_as(parameter))
        return loss

    numeric = (along(1e-5) - along(-1e-5)) / 2e-5
    assert numeric == pytest.approx(float(analytic @ direction), rel=1e-5)


def test_dropout_decides_whether_the_gradient_is_whole(open_clip: Backbone, images: Tensor, labels: Tensor) -> None:
    """With dropout on it is, as in the reference; a rate that never drops shows the rule without the noise."""
    whole, stopped = (gradient(lora(open_clip, dropout=0.0, input_gradient=on), images, labels) for on in (True, False))
    never = lora(open_clip, dropout=1e-12)
    assert relative(stopped, whole) > 1e-3
    assert relative(gradient(never.train(), images, labels), whole) < 1e-5
    assert relative(gradient(never.eval(), images, labels), stopped) < 1e-5
    assert relative(gradient(lora(open_clip, dropout=0.0), images, labels), stopped) < 1e-6


def test_dropout_acts_in_training_only(open_clip: Backbone) -> None:
    model = lora(open_clip, dropout=0.5)
    assert not torch.equal(model.train().class_features(), model.class_features())
    assert torch.equal(model.eval().class_features(), model.class_features())


def test_it_starts_as_the_frozen_model(open_clip: Backbone, images: Tensor) -> None:
    model = adapt.wrap(open_clip, LoRA(), NAMES).eval()
    zero_shot = adapt.wrap(open_clip, adapt.methods.ZeroShot(), NAMES)
    assert torch.allclose(model.image_features(images), zero_shot.image_features(images), atol=1e-6)
    assert torch.allclose(model.class_features(), zero_shot.class_features(), atol=1e-6)


def test_the_default_trains_rank_2_on_q_k_and_v_of_both_towers(open_clip: Backbone) -> None:
    model = lora(open_clip)
    assert count(model) == sum(2 * len(t.blocks) * 3 * 2 * t.width for t in open_clip.towers.values())
    assert {site[2] for site in model.method.sites} == {"q", "k", "v"}
    assert "text.0.q.lora_A.weight" in model.method.state_dict()


@pytest.mark.parametrize("backbone", ["open_clip", "open_clip_timm", "hf_clip"], indirect=True)
@pytest.mark.parametrize("projection", ["q", "k", "v", "out", "fc1", "fc2"])
def test_the_update_is_the_product_of_the_pair(backbone: Backbone, projection: str) -> None:
    """Every projection computes `W + scale * B A`, in both towers: checked by writing that weight into a copy."""
    model = lora(backbone, projections=(projection,), blocks=(1, 2), rank=3, alpha=2.0)
    for tower in ("text", "vision"):
        down, up = model.method.pair(tower, 1, projection)
        frozen = backbone.tower(tower).blocks[1].projections[projection].weight
        merged = model.method.merged()[(tower, 1, projection)]
        assert torch.allclose(merged, frozen + 2.0 / 3**0.5 * up @ down, atol=1e-6)


@pytest.mark.parametrize("projection", ["q", "k", "v", "out", "fc1", "fc2"])
@pytest.mark.parametrize("fast", [None, False])
def test_every_projection_learns(projection: str, fast: bool | None, open_clip: Backbone, images: Tensor) -> None:
    model = lora(open_clip, fast, projections=(projection,), dropout=0.0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    loss_of(model, images, labels).backward()
    assert all(parameter.grad.norm() > 0 for parameter in model.method.parameters())


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_one_tower_leaves_the_other_alone(tower: str, open_clip: Backbone, images: Tensor) -> None:
    model = lora(open_clip, towers=(tower,)).eval()
    frozen = adapt.wrap(open_clip, adapt.methods.ZeroShot(), NAMES)
    same = {
        "vision": torch.equal(model.image_features(images), frozen.image_features(images)),
        "text": torch.allclose(model.class_features(), frozen.class_features(), atol=1e-6),
    }
    assert same == {"vision": tower == "text", "text": tower == "vision"}


def test_a_range_of_blocks(open_clip: Backbone) -> None:
    assert {site[1] for site in lora(open_clip, blocks=(1, 3)).method.sites} == {1, 2}


@pytest.mark.parametrize("blocks", [(0, 4), (2, 2), (-1, 2)])
def test_a_range_outside_the_tower(blocks: tuple[int, int], open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match="but the text tower has 3"):
        adapt.wrap(open_clip, LoRA(blocks=blocks), NAMES)


def test_a_pair_that_is_not_adapted_is_named(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=r"no factors for .*'fc1'.*expected one of text_0_q"):
        lora(open_clip).method.pair("text", 0, "fc1")


OTHERS = [
    ("lora", {"use_dora": True}),
    ("loha", {"r": 2, "alpha": 2}),
    ("ia3", {"feedforward_modules": []}),
    ("oft", {"oft_block_size": 16}),
]


@pytest.mark.parametrize(("tuner", "options"), OTHERS, ids=["dora", "loha", "ia3", "oft"])
@pytest.mark.parametrize("backbone", ["open_clip"], indirect=True)
def test_other_tuners_train_save_and_reload(
    tuner: str, options: dict[str, Any], backbone: Backbone, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    before = [parameter.clone() for parameter in backbone.model.parameters()]
    model = adapt.wrap(backbone, LoRA(tuner=tuner, options=options, dropout=0.0), NAMES)
    optimizer = torch.optim.AdamW(model.method.parameters(), lr=3e-3)
    start = loss_of(model, images, labels).item()
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(model, images, labels).backward()
        optimizer.step()
    assert loss_of(model, images, labels).item() < start
    loaded = adapt.load(model.eval().save(tmp_path / "a.safetensors"), backbone)
    assert torch.equal(loaded(images), model(images))
    assert all(torch.equal(now, then) for now, then in zip(backbone.model.parameters(), before, strict=True))


def test_a_tuner_that_shares_state_is_refused(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=r"peft's vera .*share[sd] state"):
        adapt.wrap(open_clip, LoRA(tuner="vera", towers=("text",)), NAMES)


def test_an_unknown_tuner_is_refused_with_the_nearest(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match="lora: tuner is 'lohaa', which peft does not have; did you mean 'loha'"):
        adapt.wrap(open_clip, LoRA(tuner="lohaa"), NAMES)


def test_options_that_the_tuner_does_not_have(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=r"do not fit peft's tuner lora.*shoe_size"):
        adapt.wrap(open_clip, LoRA(options={"shoe_size": 43}), NAMES)


def test_stopping_the_gradient_needs_the_plain_tuner() -> None:
    with pytest.raises(AdaptError, match="input_gradient is false, which needs lora without options"):
        LoRA(tuner="loha", input_gradient=False)


@pytest.mark.parametrize("options", [{"checkpointing": True}, {"text_memory": 1}], ids=["checkpointed", "in parts"])
def test_a_prediction_before_the_backward_pass_leaves_its_dropout(
    options: dict[str, Any], open_clip: Backbone, images: Tensor, labels: Tensor
) -> None:
    """What is computed again in the backward pass draws the dropout of the forward pass."""
    model = perturb(adapt.wrap(open_clip, LoRA(dropout=0.5), NAMES, **options)).train()

    def gradients(predicting: bool) -> Tensor:
        torch.manual_seed(0)
        loss = loss_of(model, images, labels)
        if predicting:
            model.predict([EXAMPLE])
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(model.method.parameters()))])

    assert torch.equal(gradients(True), gradients(False))


def test_blocks_are_two_numbers_and_the_message_says_which() -> None:
    told = r"blocks is \[5\]: expected 2 values \(The first block and the one after the last; by default all blocks\.\)"
    with pytest.raises(AdaptError, match=told):
        LoRA(blocks=[5])
    with pytest.raises(AdaptError, match=r"blocks is \[\]: expected 2 values"):
        LoRA(blocks=[])
