"""Zero-shot classification, the linear probe, and how methods are found."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import scaled

import adapt
from adapt import AdaptError, Backbone, methods

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
