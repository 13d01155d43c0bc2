"""Pictures become the pixels that the model's own image processor gives, or the processor is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_backbones
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPImageProcessorPil, SiglipImageProcessor

from adapt import AdaptError
from adapt.backbones.hf import preprocess_of
from adapt.backbones.preprocess import Preprocess

SIZES = ((71, 53), (53, 71), (131, 200), (39, 82), (33, 32), (20, 90), (32, 32))
CROP = {"height": 32, "width": 32}
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
SETTINGS: list[dict[str, Any]] = [
    {"size": {"shortest_edge": 32}, "crop_size": CROP},
    {"size": {"shortest_edge": 40}, "crop_size": CROP},
    {"size": {"shortest_edge": 37}, "crop_size": CROP},
    {"size": {"shortest_edge": 24}, "crop_size": CROP},  # padded with black
    {"size": CROP, "crop_size": CROP},
    {"size": CROP, "do_center_crop": False},
    {"size": CROP, "do_center_crop": False, "do_normalize": False},
]


def pictures() -> list[Image.Image]:
    """Random squares of four pixels, in frames of odd and even margins."""
    drawn = np.random.default_rng(0)
    blocks = [drawn.integers(0, 256, (h // 4 + 1, w // 4 + 1, 3), dtype=np.uint8) for w, h in SIZES]
    return [
        Image.fromarray(np.kron(block, np.ones((4, 4, 1), np.uint8))[:h, :w]) for block, (w, h) in zip(blocks, SIZES)
    ]


def levels(pixels: Tensor, read: Preprocess) -> Tensor:
    """Back to 0 to 255."""
    return 255 * (pixels * torch.tensor(read.std)[:, None, None] + torch.tensor(read.mean)[:, None, None])


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pixels_are_the_processors(settings: dict[str, Any], resample: str) -> None:
    processor = CLIPImageProcessor(resample=RESAMPLE[resample], **settings)
    read = preprocess_of(processor, 32)
    assert read.on_tensors or resample == "lanczos"
    if not read.on_tensors:  # torch has none, and transformers would take bicubic, 20 of 255 away
        processor = CLIPImageProcessorPil(resample=RESAMPLE[resample], **settings)
    for picture in pictures():
        expected = processor(picture, return_tensors="pt")["pixel_values"][0]
        difference = (levels(read.evaluation()(picture), read) - levels(expected, read)).abs()
        assert difference.max() < 0.01


@pytest.mark.parametrize("number", range(6))
def test_processors_of_pillow_and_filters_that_torch_does_not_have(number: int) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=CROP, resample=number)
    read = preprocess_of(processor, 32)
    for picture in pictures():
        expected = torch.as_tensor(np.array(processor(picture)["pixel_values"][0]))
        assert (levels(read.evaluation()(picture), read) - levels(expected, read)).abs().max() < 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": {"height": 24, "width": 24}}, r"crops them to \{'height': 24.*32 x 32"),
        ({"do_center_crop": False}, r"resizes images to \{'shortest_edge': 32\}, but the model needs"),
        ({"size": {"height": 32, "width": 48}, "do_center_crop": False}, r"\{'height': 32, 'width': 48\}"),
        ({"do_resize": False}, "do_resize = False; expected True"),
        ({"do_rescale": False}, "do_rescale = False; expected True"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor = 0.0078.*expected 1/255"),
        ({"resample": 9}, r"resample = 9; expected 0 \(nearest\), 1 \(lanczos\)"),
        ({"do_pad": True}, "do_pad = True; expected False"),
        ({"image_mean": [0.5]}, r"image_mean = .*0.5.*; expected three numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, r"image_std = .*; expected three numbers, above 0"),
    ],
)  # fmt: skip
def test_what_gives_other_pixels_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        preprocess_of(CLIPImageProcessor(**{"size": {"shortest_edge": 32}, "crop_size": CROP} | settings), 32)


def test_an_adapter_records_the_edge_where_it_is_not_the_size() -> None:
    plain = preprocess_of(SiglipImageProcessor(size=CROP), 32)
    assert plain.to_dict().keys() == {"size", "mean", "std", "interpolation", "resize", "turned"}
    larger = preprocess_of(CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=CROP), 32)
    assert larger.to_dict() == preprocess_of(tiny_backbones.hf_clip_processor().image_processor, 32).to_dict() | {
        "edge": 40
    }


def test_a_language_model_sees_by_its_eyes_own_transform() -> None:
    import open_clip
    import tiny_llms

    from adapt import Backbone
    from adapt.backbones.vision_llm import VisionLLM

    own = open_clip.image_transform(32, is_train=False, resize_mode="longest", fill_color=255)
    eyes = Backbone.from_open_clip(tiny_backbones.native_clip(), tiny_backbones.clip_tokenizer(), own)
    assert VisionLLM(eyes, tiny_llms.llm("llama"), tiny_llms.tokenizer()).transform(train=False) is own
