"""The record of an exported model, export.json: its preprocessing, its classes, and its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from PIL import Image
from torch import Tensor

from adapt.backbones.base import Backbone
from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data import Item
from adapt.formats.adapter import versions
from adapt.formats.export.forms import INPUT, OUTPUT, ImagesToLogits
from adapt.models.base import evaluating
from adapt.models.image_model import ImageModel

RECORD, FORMAT = "export.json", 1
TOLERANCE = 1e-4  # of logits, relative to the largest, or to 1
_BATCHES = (1, 2, 5)
_AT_ONCE = 64


def described(model: ImageModel, to: str, file: str, int8: bool) -> dict[str, object]:
    """Return the content of export.json without measurements. Raises AdaptError if the preprocessing is custom code."""
    size = model.backbone.preprocess.size
    return {
        "format": FORMAT,
        "to": to,
        "file": file,
        "int8": int8,
        "input": {"name": INPUT, "type": "float32", "shape": ["batch", 3, size, size]},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", len(model.class_names)]},
        "class_names": list(model.class_names),
        "probabilities": "sigmoid" if model.answers.several else "softmax",
        "preprocess": _preprocess(model.backbone),
        "method": model.method.name,
        "backbone": model.backbone.name,
        "versions": versions(),
    }


def _preprocess(backbone: Backbone) -> dict[str, object]:
    size, noise = backbone.preprocess.size, torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2 * size + 1, 3 * size + 1, 3), dtype=torch.uint8, generator=noise)
    picture = Image.fromarray(pixels.numpy())
    own, described = backbone.transform(train=False)(picture), backbone.preprocess.evaluation()(picture)
    if own.shape != described.shape or not torch.allclose(own, described, atol=1e-6):
        raise AdaptError(
            f"{backbone.describe()} prepares images by a custom transform, which export.json cannot describe: build "
            "the backbone without the transform, or with a Resize, a CenterCrop and a Normalize"
        )
    return asdict(backbone.preprocess)


def difference(model: ImageModel, run: ImagesToLogits) -> float:
    """Return the largest difference of the export's logits from the model's logits, relative to the largest logit."""
    size = model.backbone.preprocess.size
    images = torch.randn(max(_BATCHES), 3, size, size, generator=torch.Generator().manual_seed(1))
    own = _logits(model, images)
    with torch.no_grad():
        apart = max(float((run(images[:count]) - own[:count]).abs().max()) for count in _BATCHES)
    return apart / max(1.0, float(own.abs().max()))


def check_names(model: ImageModel, data: Sequence[Item]) -> None:
    """Raise AdaptError if an image in `data` has several classes, or a class that the model does not have."""
    if many := next((item for item in data if len(item.class_names) != 1), None):
        raise AdaptError(
            f"{many.name!r} has {len(many.class_names)} classes; an export can only be measured on images of one "
            "class: leave the data out"
        )
    if unknown := {item.answer for item in data} - set(model.class_names):
        raise AdaptError(
            f"the data has the class {brief(min(unknown))}, but this {model.method.name} adapter does not have the "
            "class: give data with the adapter's classes, or another adapter"
        )


def accuracy(model: ImageModel, run: ImagesToLogits, data: Sequence[Item]) -> dict[str, float]:
    """Return the accuracies of the export and of the model, and the share of images with the same prediction."""
    exported, own = [], []
    for pixels in model.pixels_of(data, _AT_ONCE):
        exported += run(pixels).argmax(-1).tolist()
        own += _logits(model, pixels).argmax(-1).tolist()
    actual = [model.class_names.index(item.answer) for item in data]
    return {
        "images": len(data),
        "accuracy": _same(exported, actual),
        "adapter_accuracy": _same(own, actual),
        "same_labels": _same(exported, own),
    }


def _same(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def _logits(model: ImageModel, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(images)
    return logits
