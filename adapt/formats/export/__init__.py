"""Export of a dual encoder with its adapter as one model from images to logits of fixed classes.

Its record, export.json, has the preprocessing, the classes and the accuracy.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from adapt.backbones.base import Backbone
from adapt.common.disk import new_folder, write_json
from adapt.common.errors import AdaptError, check_installed, nearest
from adapt.common.shown import brief
from adapt.data import Item
from adapt.data.bags import singles
from adapt.evaluation.intervals import of_share
from adapt.evaluation.maps import pixel_threshold
from adapt.formats.adapter import versions
from adapt.formats.export import forms, tracing
from adapt.formats.export.forms import INPUT, LOGITS, MAP, NUMBER, PRECISE, Graph
from adapt.methods.base import ImageStep
from adapt.methods.base.traits import Grades, has_trait
from adapt.models.base import Adapted, evaluating
from adapt.models.image_model import ImageModel
from adapt.models.sets import RAPS

logger = logging.getLogger("adapt")
RECORD, FORMAT = "export.json", 1
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)  # of sets of classes and intervals of numbers
TOLERANCE = 1e-4  # of logits, relative to the largest, or to 1
_BATCHES = (1, 2, 5)
_AT_ONCE = 64
FORMS = {"onnx": forms.ONNX, "torch": forms.TORCH, "openvino": forms.OPENVINO, "html": forms.PAGE}


def export(
    model: Adapted,
    folder: str | Path,
    to: str = "onnx",
    *,
    int8: bool = False,
    data: Sequence[Item] = (),
    runtime: str | Path | None = None,
) -> Path:
    """Write `model` to the new `folder` as a graph from images `(b, 3, h, w)` to logits `(b, n)`, for any b.

    For a regression method, the graph also has an output `number` `(b,)`, and for a method that draws maps an output
    `map` `(b, h, w)`, which the page does not show.
    `to` is the format: `onnx` (model.onnx), `torch` (model.pt2, by torch.export), `openvino` (model.xml) or `html`.
    With `html`, a page is written that classifies images offline in a browser; `runtime` must then be a folder with the
    unpacked npm package onnxruntime-web. `int8` quantises the weights (only for `onnx` and `html`). export.json records
    the class names, the preprocessing and, if labelled images are given as `data`, the accuracy of the exported model.

    Raises AdaptError, with nothing written, if a single graph cannot compute the method's logits (prompts for each
    image, several views, a memory, steps at test time), if a library is missing, or if `data` has classes unknown to
    the model. Without `int8`, also raises AdaptError if an output of the graph differs from the model's by more than
    1e-4 of the largest value.
    """
    if to not in FORMS:
        raise AdaptError(f"there is no export format {to!r}; {nearest(to, FORMS)}")
    if int8 and to not in ("onnx", "html"):
        raise AdaptError(f"int8 applies to onnx and html, not to {to}: leave out int8")
    if runtime is not None and to != "html":
        raise AdaptError(f"a runtime applies to html, not to {to}: leave out the runtime")
    check_installed(f"--to {to}", "openvino" if to == "openvino" else "export", *forms.LIBRARIES.get(to, ()))
    page_runtime = forms.read_runtime(runtime) if to == "html" else None
    classifier = tracing.exportable(model)
    if not model.decides:
        told = f"this {model.method.name} had too few good images for a threshold, so that its logits decide nothing"
        if to == "html":
            raise AdaptError(f"{told}, and a page would call every image normal: train it with more good images")
        logger.warning("%s, and call every image normal: read the map alone", told)
    _check_names(classifier, data)
    size = classifier.backbone.preprocess.size
    images = torch.randn(max(_BATCHES), 3, size, size, generator=torch.Generator().manual_seed(1))
    own = _outputs(classifier, images)
    record = described(classifier, to, FORMS[to], int8) | _sets(classifier, int8)
    with warnings.catch_warnings(), new_folder(folder) as new:
        warnings.simplefilter("ignore", FutureWarning)  # torch warns about its own code
        program = tracing.traced(classifier)
        if to in ("torch", "openvino"):
            run = (forms.write_torch if to == "torch" else forms.write_openvino)(program, new, [*own])
        else:
            run = forms.write_onnx(program, new, [*own], int8)
        difference = _difference(own, run, images)
        if difference > TOLERANCE and not int8:
            raise AdaptError(
                f"the exported model's outputs differ from the adapter's by {difference:.1e} of the largest; expected "
                f"at most {TOLERANCE:g}. Nothing was written. Use another format, or report the problem with "
                f"{model.method.name}"
            )
        record["difference"] = difference
        if data:
            record["measured"] = _measured(classifier, run, singles(data))
        if page_runtime is not None:
            forms.write_page(new, record, page_runtime)
        write_json(new / RECORD, record)
    return Path(folder)


def described(model: ImageModel, to: str, file: str, int8: bool) -> dict[str, object]:
    """Return the content of export.json without measurements. Raises AdaptError if the preprocessing is custom code."""
    size = model.backbone.preprocess.size
    number = {"name": NUMBER, "type": "float32", "shape": ["batch"]}
    drawn = {"name": MAP, "type": "float32", "shape": ["batch", size, size], "threshold": pixel_threshold(model)}
    return {
        "format": FORMAT,
        "to": to,
        "file": file,
        "int8": int8,
        **({"compile": PRECISE} if to == "openvino" else {}),
        "input": {"name": INPUT, "type": "float32", "shape": ["batch", 3, size, size]},
        "output": {"name": LOGITS, "type": "float32", "shape": ["batch", len(model.class_names)]},
        **({"number": number} if has_trait(model.method, Grades) else {}),
        **({"map": drawn} if model.draws_maps else {}),
        "class_names": list(model.class_names),
        "probabilities": "sigmoid" if model.answers.several else "softmax",
        "preprocess": _preprocess(model.backbone),
        "method": model.method.name,
        "backbone": model.backbone.name,
        "versions": versions(),
    }


def _sets(model: ImageModel, int8: bool) -> dict[str, object]:
    """Return what export.json says of calibrated sets: their score, and its limits and the promise at some levels.

    Nothing, with a warning, for sets that are not of single images, each by itself, and for 8-bit weights.
    """
    sets, levels = model.answers.sets, list[dict[str, object]]()
    if sets is None:
        return {}
    try:
        if int8 or sets.together or sets.crossed:
            of_others = "each member of the average" if sets.crossed else "images answered together"
            raise AdaptError(f"they were calibrated for {'other weights' if int8 else of_others}")
        for level in LEVELS:
            limits = [limit if limit < math.inf else None for limit in model.sets_at(level).limits(level)]
            levels.append({"level": level, "limits": limits, "promise": sets.promise(level, model.class_names)})
    except AdaptError as error:
        if not levels:
            logger.warning("the export gives no sets: %s", error)
            return {}
    return {"sets": {"score": sets.score, **(RAPS if sets.score.startswith("raps") else {}), "levels": levels}}


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


def _difference(own: Mapping[str, Tensor], run: Graph, images: Tensor) -> float:
    """Return the largest difference of an output of the export from the model's `own`, relative to its largest."""
    with torch.no_grad():
        return max(
            float((output - own[name][:count]).abs().max()) / max(1.0, float(own[name].abs().max()))
            for count in _BATCHES
            for name, output in run(images[:count]).items()
        )


def _check_names(model: ImageModel, data: Sequence[Item]) -> None:
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
def _measured(model: ImageModel, run: Graph, data: Sequence[Item]) -> dict[str, Any]:
    """Return the accuracies of the export and of the model, and the share of images with the same prediction.

    The accuracy of the export has its interval at 95 %. Of numbers, the mean absolute errors are returned as well.
    """
    names = [name for name in (LOGITS, NUMBER) if name == LOGITS or has_trait(model.method, Grades)]
    batches = [(run(pixels), _outputs(model, pixels)) for pixels in model.pixels_of(data, _AT_ONCE)]
    exported, own = ({name: torch.cat([each[name] for each in side]) for name in names} for side in zip(*batches))
    labels, own_labels = exported[LOGITS].argmax(-1), own[LOGITS].argmax(-1)
    actual = torch.tensor([model.class_names.index(item.class_names[0]) for item in data])
    result = {
        "images": len(data),
        "accuracy": _same(labels, actual),
        "accuracy_interval": [*of_share(labels == actual, [item.kept_with for item in data])],
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
    """Return what the exported graph of `model` computes, by the model itself and by the names of the outputs."""
    with evaluating(model), torch.no_grad():
        return tracing.outputs(ImageStep(model, images))
