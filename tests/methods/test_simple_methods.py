"""Zero-shot classification, tuning in place, and how methods are found."""

from __future__ import annotations

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from checks import perturb, scaled
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.backbones.base import DualEncoder

NORMS = ("ln_1", "ln_2")  # of the blocks of a CLIP of open_clip
NAMES = ("goldfish", "red_panda", "sea cucumber")


def test_methods_are_the_files_of_the_package() -> None:
    assert {"coop", "linear_probe", "lora", "zero_shot"} <= set(methods.names())
    assert [methods.find(name).name for name in methods.names()] == methods.names()
    assert methods.find("coop") is methods.CoOp


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(AdaptError, match="unknown method 'lorra'; did you mean 'lora'"):
        methods.find("lorra")


def test_an_ensemble_averages_unit_features(open_clip: Backbone) -> None:
    templates = ("a photo of a {}.", "{}", "art of the {}, drawn by hand.")
    parts = [adapt.wrap(open_clip, methods.ZeroShot(each), NAMES).class_features() for each in templates]
    together = adapt.wrap(open_clip, methods.ZeroShot(templates), NAMES).class_features()
    assert scaled(together, F.normalize(torch.stack(parts).mean(0), dim=-1)) < 1e-6


def test_a_template_needs_a_place_for_the_name() -> None:
    for make in (methods.ZeroShot, lambda template: methods.LoRA(template=template)):
        with pytest.raises(AdaptError, match=r"must contain .* where the class name goes"):
            make("a photo")


@pytest.mark.parametrize(
    ("name", "endings", "left_out"),
    [
        ("bitfit", ("bias",), ("in_proj_bias",)),
        ("ln_tuning", tuple(f"{norm}.{part}" for norm in NORMS for part in ("weight", "bias")), ("nothing",)),
    ],
)
def test_what_is_tuned_in_place_is_all_of_its_kind_and_acts_as_the_backbones_own(
    images: Tensor, name: str, endings: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    """The adapted model answers as a CLIP whose own biases, or norms, have the tuned values."""
    backbone = tiny_backbones.backbone("open_clip")
    assert isinstance(backbone, DualEncoder)
    model = perturb(adapt.wrap(backbone, methods.find(name)(), NAMES)).eval()
    tuned, own = dict(model.method.state_dict()), dict(backbone.model.named_parameters())
    assert tuned.keys() == {each for each in own if each.endswith(endings) and not each.endswith(left_out)}
    with torch.no_grad():
        adapted = model(images)
        for each, value in tuned.items():
            own[each].copy_(value)
        frozen = adapt.wrap(backbone, methods.ZeroShot(), NAMES).eval()
        assert scaled(adapted, frozen(images)) < 1e-4
