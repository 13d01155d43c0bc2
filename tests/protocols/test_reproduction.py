"""What is compared of a backbone and of data, apart from figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_fusion
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from adapt import AdaptError, Backbone
from adapt.backbones.preprocess import Preprocess
from adapt.data.readers import published
from adapt.data.split import Split
from adapt.protocols import papers
from adapt.protocols.reproduction import reproduce

CLIPS = Preprocess(224, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


@pytest.fixture
def data(tiny_split: Split, tmp_path: Path) -> published.Published:
    """EuroSAT's entry, as if it had as many images and such names as `tiny_split`, and its list under `tmp_path`."""
    entry = published.find("eurosat")
    assert entry is not None
    (tmp_path / entry.folder).mkdir()
    (tmp_path / entry.folder / entry.lists[0]).write_text("{}")
    sizes = tuple(len(part) for part in (tiny_split.train, tiny_split.val, tiny_split.test))
    return replace(entry, sizes=sizes, names=("goldfish",))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, {}),
        ({"resize": "squash"}, {"resizing": "both edges"}),
        ({"edge": 256}, {"resizing": "the shorter edge to 256"}),
        ({"interpolation": "bilinear"}, {"interpolation": "bilinear"}),
        ({"on_tensors": True}, {"resized by": "torch"}),
        ({"std": (0.5, 0.5, 0.5)}, {"std": "0.5000 0.5000 0.5000"}),
        ({"mean": tuple(value + 1e-6 for value in CLIPS.mean)}, {}),
    ],
)
def test_each_part_of_the_transform_is_compared(
    open_clip: Backbone, tiny_split: Split, data, tmp_path: Path, change: dict[str, Any], differs: dict[str, str]
) -> None:
    open_clip.eval_transform = open_clip.preprocess.evaluation()  # measured as the tiny model reads
    open_clip.preprocess = replace(CLIPS, **change)
    open_clip.name = "open_clip:RN50-quickgelu/openai"
    found = reproduce(open_clip, tiny_split, data, str(tmp_path), "RN50")
    assert {each.what: each.here for each in found.conditions if not each.same} == differs


def test_what_is_compared_by_default(open_clip: Backbone, tiny_split: Split, data, tmp_path: Path) -> None:
    found = reproduce(open_clip, tiny_split, data, str(tmp_path), None)
    assert (found.published_backbone, found.compared, found.verdict) == (None, (), "no official figure")
    assert list(found.measured) == ["CLIP zero-shot"]
    assert found.class_names == tiny_split.class_names
    assert found.environment["precision"] == "torch.float32"
    assert found.fingerprint == open_clip.fingerprint.short()


def test_only_dual_encoders_have_figures(tiny_split: Split, data, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="is a fusion encoder; published figures exist for dual encoders only"):
        reproduce(tiny_fusion.vilt(), tiny_split, data, str(tmp_path), None)


def test_data_without_test_images(open_clip: Backbone, tiny_split: Split, data, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="eurosat has no test images here"):
        reproduce(open_clip, replace(tiny_split, test=()), data, str(tmp_path), None)


def test_templates_of_the_rows() -> None:
    by_method = {row["method"]: row["templates"] for row in papers.zero_shot_of("imagenet", "RN50")}
    assert {method: len(templates) for method, templates in by_method.items()} == {
        "CLIP zero-shot": 1,
        "CLIP zero-shot, 7 templates": 7,
        "CLIP zero-shot, 80 templates": 80,
    }
    assert by_method["CLIP zero-shot, 80 templates"][0] == "a bad photo of a {}."
    assert all(template.count("{}") == 1 for templates in by_method.values() for template in templates)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("open_clip:RN50-quickgelu/openai", "RN50"),
        ("hf:openai/clip-vit-base-patch16", "ViT-B/16"),
        ("open_clip:RN50/openai", None),  # another activation
        ("mini-clip", None),
    ],
)
def test_published_backbones_by_name(spec: str, name: str | None) -> None:
    assert papers.published_backbone(spec) == name


def test_figures_read_off_a_plot_and_recalled_ones_are_not_compared() -> None:
    assert [row["values"]["16"] for row in papers.few_shot_of("lora/few_shot", 16, "eurosat", "ViT-B/16")] == ["92.1"]
    assert papers.few_shot_of("lora/few_shot", 8, "eurosat", "ViT-B/16") == []
    assert papers.few_shot_of("coop/few_shot", 1, "caltech101", "RN50") == []
    assert [row["from"] for row in papers.few_shot_of("coop/few_shot", 16, "caltech101", "RN50")] == ["F"]
