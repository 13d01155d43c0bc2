"""Fine-tuning: the losses, rates, shares and files of trained weights, against formulas on copies of the models."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import tiny_fusion
import torch
import torch.nn.functional as F
from checks import assert_untouched, perturb, relative, scaled, snapshot
from selection import by_turns
from stopping import assert_goes_on_exactly
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.methods.base.step import PairStep, total
from adapt.methods.finetune import FineTune, TunedWeights

NAMES = ("goldfish", "red_panda", "sea cucumber")
KINDS = ("open_clip", "open_clip_timm", "hf_clip", "hf_siglip")


def new(kind: str = "open_clip", **config: Any) -> Any:
    torch.manual_seed(0)
    return adapt.wrap(tiny_backbones.backbone(kind), methods.find("finetune")(**config), NAMES)


def held(model: Any) -> dict[str, Tensor]:
    """The trained weights by the model's own names."""
    return dict(model.method.weights.named_parameters())


def of_layers(model: Any, tower: str) -> list[set[str]]:
    """The names of the parameters in each block of a tower."""
    names = {id(parameter): name for name, parameter in model.backbone.model.named_parameters()}
    blocks = model.backbone.tower(tower).blocks
    return [{names[id(parameter)] for parameter in block.module.parameters()} for block in blocks]


def in_double(model: Any) -> Any:
    """A copy of the backbone in fp64 with the trained weights of `model` as its own."""
    other = copy.deepcopy(model.backbone)
    other.model.double()
    own = dict(other.model.named_parameters())
    for name, value in held(model).items():
        own[name].data.copy_(value)
        own[name].requires_grad_()
    return other


@by_turns("kind", KINDS)
@pytest.mark.parametrize("loss", ["cross-entropy", "contrastive"])
def test_losses_and_gradients_are_the_formulas_in_fp64(kind: str, loss: str) -> None:
    """Two images are of one class: a negative of each other in the contrastive loss, as published."""
    model = perturb(new(kind, loss=loss), size=0.02)
    model.backbone.model.double()
    model.method.double()
    labels, pixels = torch.tensor([0, 2, 2, 1]), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    computed = total(model.method.loss(model.step(pixels, labels)))
    computed.backward()

    other = in_double(model)
    texts = other.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    images, classes = (F.normalize(each, dim=-1) for each in (other.encode_image(pixels), other.encode_text(texts)))
    scale, bias = other.logit_scale, other.logit_bias
    if loss == "contrastive":
        logits, right = scale * images @ classes[labels].T + bias, torch.arange(4)
        expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    else:
        expected = F.cross_entropy(scale * images @ classes.T + bias, labels)
    expected.backward()
    # the scale of the logits, and the loss of logits, are taken in fp32
    assert abs(float(computed.detach()) - float(expected.detach())) < 1e-5 * float(expected.detach())
    gradients = {name: parameter.grad for name, parameter in other.model.named_parameters()}
    for name, value in held(model).items():
        assert scaled(value.grad, gradients[name]) < 1e-5, name


def test_captions_of_pairs_are_their_own_texts() -> None:
    model = new(loss="contrastive")
    pixels, texts = torch.randn(3, 3, 32, 32), ["a cat", "two dogs", "rain"]
    step = PairStep(model, [pixels, texts], torch.arange(3))
    logits = model.backbone.logit_scale * model.image_features(pixels) @ model.encode_texts(texts).T
    right = torch.arange(3)
    expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    assert relative(total(model.method.loss(step)), expected) < 1e-6


@by_turns("kind", KINDS)
def test_rates_fall_from_layer_to_layer_and_vectors_do_not_decay(kind: str) -> None:
    """As in BEiT: embeddings are layer 0, block i is layer i + 1, and what is behind n blocks has layer n + 1."""
    model = new(kind, layer_decay=0.5)
    groups = list(model.method.groups())
    rate = {id(parameter): group.rate for group in groups for parameter in group.parameters}
    decays = {id(parameter): group.decays for group in groups for parameter in group.parameters}
    own = held(model)
    inside = set[str]()
    for tower in ("text", "vision"):
        layers = of_layers(model, tower)
        inside |= set().union(*layers)
        for index, names in enumerate(layers):
            assert {rate[id(own[name])] for name in names} == {0.5 ** (len(layers) - index)}
    outside = {name: rate[id(value)] for name, value in own.items() if name not in inside}
    embeddings = {0.5 ** (len(model.backbone.tower(tower).blocks) + 1) for tower in ("text", "vision")}
    assert set(outside.values()) == {1.0} | embeddings
    assert all(value < 1 for name, value in outside.items() if "embed" in name or "conv1" in name)
    assert all(value == 1 for name, value in outside.items() if re.search("final|post|head|(text_|visual.)proj", name))
    assert all(decays[id(value)] == (value.ndim > 1) for value in own.values())


@by_turns("kind", KINDS)
def test_all_weights_of_the_features_train_and_the_logit_scale_does_not(kind: str) -> None:
    model = new(kind)
    assert set(dict(model.backbone.model.named_parameters())) - set(held(model)) <= {"logit_scale", "logit_bias"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"blocks": 1, "towers": ("vision",)}, {"visual.transformer.resblocks.2.", "visual.ln_post.", "visual.proj"}),
        ({"blocks": 1, "parts": ("*.attn.*",)}, {
            "visual.transformer.resblocks.2.attn.", "transformer.resblocks.2.attn.",
        }),
        ({"towers": ("text",), "parts": ("*ln_*",)}, {
            "ln_final.", *(f"transformer.resblocks.{i}.ln_{j}." for i in range(3) for j in (1, 2)),
        }),
    ],
)  # fmt: skip
def test_only_the_chosen_parts_move_and_are_in_the_file(
    config: dict[str, Any], expected: set[str], train: Callable[..., Any], class_names: tuple[str, ...], tmp_path: Path
) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), FineTune(**config), class_names)
    before = snapshot(model.backbone.model)
    train(model, lr=0.001, optimizer="adamw", out=tmp_path / "run")
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "run" / "adapter.safetensors")
    names = {name.removeprefix("weights.") for name in tensors if not name.startswith("watch.")}
    frozen = dict(model.backbone.model.named_parameters())
    assert names == {name for name in frozen if any(name.startswith(each) for each in expected)}
    assert all(
        tensors[f"weights.{name}"].any() and tensors[f"weights.{name}"].dtype == torch.bfloat16 for name in names
    )
    assert_untouched(model.backbone.model, before)


def test_a_share_mixes_trained_and_frozen_weights(train: Callable[..., Any], class_names: tuple[str, ...]) -> None:
    found = []
    for alpha in (1.0, 0.25):
        model = adapt.wrap(tiny_backbones.backbone("open_clip"), FineTune(alpha=alpha), class_names)
        train(model, lr=0.001, optimizer="adamw")
        found.append(held(model))
    frozen = dict(model.backbone.model.named_parameters())
    for name, value in found[0].items():
        start = frozen[name].detach()
        expected = (start + 0.25 * (value - start)).detach()
        assert float((found[1][name].detach() - expected).abs().max()) <= 2**-7 * float(
            (value - start).detach().abs().max()
        )


@pytest.mark.parametrize("with_validation", [True, False])
def test_a_share_is_chosen_on_held_out_images(
    with_validation: bool, tiny_split: Any, train: Callable[..., Any], class_names: tuple[str, ...]
) -> None:
    """After a training that does harm, the share is 0: the frozen model; without validation images also by folds."""
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), FineTune(alpha=None), class_names)
    val = {"val_set": tiny_split.val} if with_validation else {}
    start = {name: value.detach().clone() for name, value in held(model).items()}
    result = train(model, lr=0.01, optimizer="adamw", epochs=2, **val)
    chosen = result.metrics["chosen"]
    alpha = chosen["settings"]["alpha"]
    assert model.method.config.alpha == alpha
    assert chosen["among"]["alpha"] == [k / 10 for k in range(11)]
    assert ("validation" if with_validation else "cross-validation") in chosen["how"]
    moved = any(not torch.equal(value, start[name]) for name, value in held(model).items())
    assert moved == (alpha > 0)


def test_the_weights_before_a_choice_by_folds_are_those_of_the_start(
    training_of: Callable[..., Any], class_names: tuple[str, ...]
) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), FineTune(alpha=None), class_names)
    before = {name: value.detach().clone() for name, value in held(model).items()}
    fold = training_of(model, lr=0.01, optimizer="adamw").folds(2)[0]
    logits = [own for _, own in model.method.trials(fold, model.method.grid(fold))]
    assert len(logits) == 11
    assert not torch.equal(logits[0], logits[-1])
    assert all(torch.equal(value, before[name]) for name, value in held(model).items())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_what_is_measured_is_what_a_file_holds(dtype: str, images: Tensor, tmp_path: Path) -> None:
    model = perturb(new(dtype=dtype)).eval()
    expected = model(images)
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), tiny_backbones.backbone("open_clip"))
    assert torch.equal(loaded(images), expected)
    again = loaded.save(tmp_path / "b.safetensors")
    assert again.read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    model.train()
    assert not torch.equal(model(images), expected)  # the weights that train are not rounded


@pytest.mark.parametrize("seed", range(20))
def test_differences_survive_loading_and_saving(seed: int) -> None:
    """Of weights of any size, and changes from far below their last bit to far above them, zeros included."""
    random = torch.Generator().manual_seed(seed)

    def drawn() -> Tensor:
        size = 10 ** torch.empty(4000).uniform_(-9, 3, generator=random)
        return size * torch.randn(4000, generator=random) * (torch.rand(4000, generator=random) > 0.1)

    frozen = torch.nn.Parameter(drawn())
    weights, loaded = TunedWeights(torch.bfloat16), TunedWeights(torch.bfloat16)
    for each in (weights, loaded):
        each.hold_weight("w", frozen)
    with torch.no_grad():
        weights.get_parameter("w").add_(
            drawn() * torch.where(torch.rand(4000, generator=random) > 0.5, frozen.abs(), 1.0)
        )
    state = weights.state_dict()
    loaded.load_state_dict(state)
    assert torch.equal(loaded.state_dict()["w"], state["w"])
    assert torch.equal(loaded.get_parameter("w"), weights.weight_of("w", 1.0))


def test_a_resumed_run_ends_as_one_that_was_never_stopped(
    train: Callable[..., Any], class_names: tuple[str, ...], tmp_path: Path
) -> None:
    def fresh() -> Any:
        return adapt.wrap(tiny_backbones.small(), FineTune(layer_decay=0.7, loss="contrastive"), class_names)

    assert_goes_on_exactly(fresh, partial(train, lr=0.001, optimizer="adamw"), tmp_path / "run", 4)


@pytest.mark.parametrize("kind", ["vilt", "bridgetower"])
def test_a_fusion_encoder_trains_whole(kind: str, tmp_path: Path) -> None:
    backbone = getattr(tiny_fusion, kind)()
    model = perturb(adapt.wrap(backbone, FineTune(), tiny_fusion.ANSWERS))
    size = backbone.preprocess.size
    images, questions = torch.randn(2, 3, size, size), ["what is it?", "how many?"]
    model(images, questions).sum().backward()
    assert all(parameter.grad is not None for parameter in model.method.parameters())
    expected = model.eval()(images, questions)
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), getattr(tiny_fusion, kind)())
    assert torch.equal(loaded(images, questions), expected)


def test_refusals() -> None:
    def refused(match: str, kind: str = "open_clip", **config: Any) -> None:
        with pytest.raises(AdaptError, match=match):
            new(kind, **config)

    refused("blocks is 4, but the vision tower has 3", blocks=4)
    refused(r"no weight of the vision tower that trains is called '\*.atn.\*'", parts=("*.atn.*",))
    refused("the vision tower of CLIP has no transformer blocks", kind="open_clip_resnet")
    with pytest.raises(AdaptError, match="loss is contrastive, which compares images with texts"):
        adapt.wrap(tiny_fusion.vilt(), FineTune(loss="contrastive"), tiny_fusion.ANSWERS)
    with pytest.raises(AdaptError, match=r"has one output of its towers: leave method\.towers out"):
        adapt.wrap(tiny_fusion.bridgetower(), FineTune(towers=("text_fusion",)), tiny_fusion.ANSWERS)
    quantised = tiny_backbones.backbone("open_clip")
    quantised.quantization = "int8"
    with pytest.raises(AdaptError, match="those of CLIP are quantised"):
        adapt.wrap(quantised, FineTune(), NAMES)
    model = new(loss="contrastive")
    with pytest.raises(AdaptError, match="needs the one class of each image"):
        model.method.loss(model.step(torch.randn(2, 3, 32, 32), torch.rand(2, 3)))
