"""A model's way from images to logits as one graph: its own computation, at the features that its classes have now."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from adapt.backbones.base import outside_inference_mode
from adapt.backbones.turns import alone
from adapt.engine.frozen import frozen
from adapt.errors import AdaptError
from adapt.methods.base import ImageStep, Method
from adapt.methods.base.traits import Stream, has_trait
from adapt.models.base import Adapted, evaluating
from adapt.models.classifier import AdaptedModel

_EXAMPLES = 2  # a graph of a single image would serve single images only
_MOST = 2**31  # images of a batch: one without an end is refused by torch 2.6, whose own graph leaves out 2**63 - 1


def exportable(model: Adapted) -> AdaptedModel:
    """`model` as it is. AdaptError, with the reason, where no one graph gives its logits of an image."""
    if reason := _reason_against(model):
        raise AdaptError(f"this {model.method.name} cannot be exported: {reason}")
    assert isinstance(model, AdaptedModel)  # or there is a reason
    return model


def _reason_against(model: Adapted) -> str | None:
    method, backbone = model.method, model.backbone
    if not isinstance(model, AdaptedModel):
        return f"{backbone.describe()} is a {backbone.family}, and only a dual encoder classifies by images alone"
    if not model.class_names:
        return "it learned from pairs and has no class names: give some, by --classes, or to adapt.load as class_names"
    if method.per_image:
        return "the features of its classes depend on the image, so that the text tower has to run for each image anew"
    if method.views:
        return f"it decides on {method.views + 1} random views of an image, which a graph of one image has not"
    if has_trait(method, Stream):
        return "its answer to an image depends on the images before it, which a graph does not remember"
    if type(method).infer is not Method.infer:
        return "it takes steps of its own at test time, which are no part of a graph"
    if backbone.quantization is not None:
        return f"{backbone.describe()} is quantised to {backbone.quantization}: load it without quantize"
    if (backbone.dtype, backbone.device.type) != (torch.float32, "cpu"):
        return f"its backbone is {backbone.dtype} on {backbone.device}: load it in float32 on the CPU"
    return None


def traced(model: AdaptedModel) -> ExportedProgram:
    """Images `(b, 3, h, w)`, prepared as the backbone reads them, to the model's logits `(b, n)`, for any b.

    It holds the tensors that images pass through, and no others. Raises AdaptError as `exportable` does, and where the
    method computes what no graph can hold, such as a decision by a value.
    """
    exportable(model)
    size, frozen_model = model.backbone.preprocess.size, model.backbone.model
    examples = torch.randn(_EXAMPLES, 3, size, size, generator=torch.Generator().manual_seed(0))
    with outside_inference_mode(), evaluating(model), alone(frozen_model), frozen(frozen_model), torch.no_grad():
        try:
            whole = _program(_ImagesToLogits(model, examples), examples).module()
            assert isinstance(whole, GraphModule)
            whole.graph.eliminate_dead_code()  # the text tower is read by none
            return _program(GraphModule(whole, whole.graph), examples)  # which has only what its graph reads
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise AdaptError(
                f"this {model.method.name} cannot be exported: torch cannot trace it ({reason})"
            ) from error


def _program(module: nn.Module, examples: Tensor) -> ExportedProgram:
    # not strict: the model is run as it is, with its turns and its edits, and only operations on tensors are kept
    return torch.export.export(module, (examples,), dynamic_shapes=({0: Dim("batch", max=_MOST)},), strict=False)


class _ImagesToLogits(nn.Module):
    """`model` on one batch, in which all that is of the classes alone is as the model finds it now.

    The model, its backbone and these values are parts of the module, so that their tensors are the graph's.
    """

    def __init__(self, model: AdaptedModel, examples: Tensor) -> None:
        super().__init__()
        self.model, self.backbone = model, model.backbone.model
        step = ImageStep(model, examples)
        model.answers.of(step)  # which finds what is asked of the classes
        found = enumerate(step.of_classes.items())
        self._of_classes = {key: self._held(str(number), value) for number, (key, value) in found}

    def _held(self, number: str, value: Any) -> Any:
        """The names of the buffers that keep a tensor, or several; a number as it is."""
        if isinstance(value, tuple):
            return tuple(self._held(f"{number}_{place}", each) for place, each in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        self.register_buffer(name := f"of_classes_{number}", value)
        return name

    def _found(self, held: Any) -> Any:
        if isinstance(held, tuple):
            return tuple(map(self._found, held))
        return self.get_buffer(held) if isinstance(held, str) else held

    def forward(self, images: Tensor) -> Tensor:
        step = ImageStep(self.model, images)
        step.of_classes |= {key: self._found(held) for key, held in self._of_classes.items()}
        return self.model.answers.of(step)
