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
from adapt.formats.export.forms import INPUT, LOGITS, NUMBER, PRECISE, Graph
from adapt.methods.base.traits import Grades, has_trait
from adapt.models.base import evaluating
from adapt.models.image_model import ImageModel

RECORD, FORMAT = "export.json", 1
TOLERANCE = 1e-4  # of logits, relative to the largest, or to 1
_BATCHES = (1, 2, 5)
_AT_ONCE = 64


def described(model: ImageModel, to: str, file: str, int8: bool) -> dict[str, object]:
    """Return the content of export.json without measurements. Raises AdaptError if the preprocessing is custom code."""
    size = model.backbone.preprocess.size
    number = {"name": NUMBER, "type": "float32", "shape": ["batch"]}
    return {
        "format": FORMAT,
        "to": to,
        "file": file,
        "int8": int8,
        **({"compile": PRECISE} if to == "openvino" else {}),
        "input": {"name": INPUT, "type": "float32", "shape": ["batch", 3, size, size]},
        "output": {"name": LOGITS, "type": "float32", "shape": ["batch", len(model.class_names)]},
        **({"number": number} if has_trait(model.method, Grades) else {}),
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


def difference(model: ImageModel, run: Graph) -> float:
    """Return the largest difference of an output of the export from the model's, relative to the output's largest."""
    size = model.backbone.preprocess.size
    images = torch.randn(max(_BATCHES), 3, size, size, generator=torch.Generator().manual_seed(1))
    own = _outputs(model, images)
    with torch.no_grad():
        return max(
            float((output - own[name][:count]).abs().max()) / max(1.0, float(own[name].abs().max()))
            for count in _BATCHES
            for name, output in run(images[:count]).items()
        )


def check_names(model: ImageModel, data: Sequence[Item]) -> None:
    """Raise AdaptError if an image in `data` has several classes, or a class that the model does not have."""
    if many := next((item for item in data if len(item.class_names) != 1), None):
        raise AdaptError(
            f"{many.name!r} has {len(many.class_names)} classes; an export can only be measured on images of one "
            "class: leave the data out"
        )
    if unknown := {item.class_names[0] for item in data} - set(model.class_names):
        raise AdaptError(
            f"the data has the class {brief(min(unknown))}, but this {model.method.name} adapter does not have the "
            "class: give data with the adapter's classes, or another adapter"
        )


@torch.no_grad()
def measured(model: ImageModel, run: Graph, data: Sequence[Item]) -> dict[str, float]:
    """Return the accuracies of the export and of the model, and the share of images with the same prediction.

    If the images have numbers, the mean absolute errors of the predicted numbers are returned as well.
    """
    batches = [(run(pixels), _outputs(model, pixels)) for pixels in model.pixels_of(data, _AT_ONCE)]
    exported, own = ({name: torch.cat([batch[name] for batch in each]) for name in each[0]} for each in zip(*batches))
    labels, own_labels = exported[LOGITS].argmax(-1), own[LOGITS].argmax(-1)
    actual = torch.tensor([model.class_names.index(item.class_names[0]) for item in data])
    result = {
        "images": len(data),
        "accuracy": _same(labels, actual),
        "adapter_accuracy": _same(own_labels, actual),
        "same_labels": _same(labels, own_labels),
    }
    values = data[0].task.values(data)
    if NUMBER in own and values is not None:
        result["mean_absolute_error"] = float((exported[NUMBER] - values).abs().mean())
        result["adapter_mean_absolute_error"] = float((own[NUMBER] - values).abs().mean())
    return result


def _same(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean())


def _outputs(model: ImageModel, images: Tensor) -> dict[str, Tensor]:
    """Return what the exported graph of `model` computes, by the model itself."""
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(images)
        numbers = model.grades(logits)
    return {LOGITS: logits} if numbers is None else {LOGITS: logits, NUMBER: numbers}
