"""Tracing of a model from images to logits as one graph, in which the current class features are constants."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_unflatten

from adapt.backbones.base import outside_inference_mode
from adapt.backbones.locks import alone, frozen
from adapt.common.errors import AdaptError
from adapt.formats.export.forms import LOGITS, MAP, NUMBER
from adapt.methods.base import ImageStep, Method
from adapt.methods.base.traits import DrawsMaps, Stream, has_trait, trait
from adapt.models.base import Adapted, evaluating
from adapt.models.image_model import ImageModel

_EXAMPLES = 2  # a graph traced on a single image would accept single images only
_MOST = 2**31  # images in a batch: torch 2.6 refuses an unbounded size


def exportable(model: Adapted) -> ImageModel:
    """Return `model` unchanged. Raises AdaptError, with a reason, if a single graph cannot compute its logits."""
    backbone = model.backbone
    reason: str | None = f"{backbone.describe()} is a {backbone.kind}, which does not classify images by their features"
    if isinstance(model, ImageModel):
        reason = _reason_against(model)
        if reason is None:
            return model
    raise AdaptError(f"this {model.method.name} cannot be exported: {reason}")


def _reason_against(model: ImageModel) -> str | None:
    method, backbone = model.method, model.backbone
    if not model.class_names:
        return "it has no class names: give some, by --classes, or to adapt.load as class_names"
    if method.per_image:
        return "its class features depend on the image, so the text tower would have to run for each image"
    if method.views:
        return f"it predicts from {method.views + 1} random views of an image, and a graph has one image"
    if has_trait(method, Stream):
        return "its predictions depend on earlier images, which a graph does not remember"
    if type(method).infer is not Method.infer:
        return "it takes steps at test time, which a graph cannot contain"
    if backbone.as_decoded:
        return f"{backbone.describe()} prepares images by a processor, which a graph cannot contain"
    if backbone.quantization is not None:
        return f"{backbone.describe()} is quantised to {backbone.quantization}: load it without quantize"
    if (backbone.dtype, backbone.device.type) != (torch.float32, "cpu"):
        return f"its backbone is {backbone.dtype} on {backbone.device}: load it in float32 on the CPU"
    return None


def traced(model: ImageModel) -> ExportedProgram:
    """Return the graph from preprocessed images `(b, 3, h, w)` to the model's logits `(b, n)`, for any batch size b.

    Of a regression method, the graph also has the numbers `(b,)` as an output, and of a method that draws maps those.
    The graph contains only the tensors that images pass through, not the text tower. Raises AdaptError in the same
    cases as `exportable`, and if the method computes what a graph cannot contain, such as a branch on a value.
    """
    exportable(model)
    size, frozen_model = model.backbone.preprocess.size, model.backbone.model
    examples = torch.randn(_EXAMPLES, 3, size, size, generator=torch.Generator().manual_seed(0))
    with outside_inference_mode(), evaluating(model), alone(frozen_model), frozen(frozen_model), torch.no_grad():
        try:
            module = _program(_Traced(model, examples), examples).module()
            assert isinstance(module, GraphModule)
            module.graph.eliminate_dead_code()  # such as the text tower
            return _program(GraphModule(module, module.graph), examples)  # keeps only the tensors of its graph
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise AdaptError(
                f"this {model.method.name} cannot be exported: torch cannot trace it ({reason})"
            ) from error


def outputs(step: ImageStep) -> dict[str, Tensor]:
    """Return what an export computes of a batch: logits `(b, n)`, and numbers `(b,)` and maps `(b, h, w)` if any."""
    model, draws = step.model, trait(step.model.method, DrawsMaps)
    # first, as the pass for patches also gives features of images
    maps = draws.anomalies(step).float() if draws is not None and model.draws_maps else None
    logits = model.answers.of(step)
    found = {LOGITS: logits, NUMBER: model.grades(logits), MAP: maps}
    return {name: output for name, output in found.items() if output is not None}


def _program(module: nn.Module, examples: Tensor) -> ExportedProgram:
    # not strict: the model runs in Python with its locks and edits, and only operations on tensors are recorded
    return torch.export.export(module, (examples,), dynamic_shapes=({0: Dim("batch", max=_MOST)},), strict=False)


class _Traced(nn.Module):
    """A module from images to the `outputs` of `model`, in which values that depend only on classes are precomputed.

    The model and backbone are submodules and the precomputed values are buffers, so the graph includes all their
    tensors.
    """

    def __init__(self, model: ImageModel, examples: Tensor) -> None:
        super().__init__()
        self.model, self.backbone = model, model.backbone.model
        step = ImageStep(model, examples)
        outputs(step)  # fills step.of_classes
        values, self._layout = tree_flatten(step.of_classes)  # which has tuples, and dicts of the members of an average
        self._others = [None if isinstance(value, Tensor) else value for value in values]
        for number, value in enumerate(values):
            if isinstance(value, Tensor):
                self.register_buffer(f"of_classes_{number}", value)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        step = ImageStep(self.model, images)
        buffers = dict(self.named_buffers(recurse=False))
        values = [buffers.get(f"of_classes_{number}", other) for number, other in enumerate(self._others)]
        step.of_classes |= tree_unflatten(values, self._layout)
        first, *others = outputs(step).values()
        return (first, *others) if others else first
