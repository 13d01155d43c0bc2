"""Building of a method on a backbone: its tensors are allocated, and its edits are checked against the towers.

The memory that building may allocate is limited, so that a file or a setting cannot ask for too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from adapt.backbones.base import Backbone, ImageEncoder, in_single_precision, outside_inference_mode
from adapt.backbones.locks import alone, frozen
from adapt.common.devices import free_bytes
from adapt.common.errors import AdaptError
from adapt.common.shown import readable_bytes
from adapt.engine.plan import plan
from adapt.methods.base import Context, Method
from adapt.methods.base.traits import OwnClassifier, OwnWeights, ReadsHeads, has_trait, trait
from adapt.prompts import check_class_names, check_first_token

if TYPE_CHECKING:
    from adapt.backbones.fusion import FusionEncoder
    from adapt.backbones.vision_encoder import VisionEncoder
    from adapt.backbones.vision_llm import VisionLLM


_TIMES = 4  # building may draw its tensors more than once, such as for copies
_BESIDE = 2**22  # more numbers, for computing such as the features of one image
_LEAST = 512  # numbers that a tensor counts at least: many empty ones take time as well
_BYTES = 4  # bytes of a number


class _Bounded(TorchDispatchMode):
    """A context manager that raises AdaptError before the total number of elements of new tensors exceeds `bound`."""

    def __init__(self, bound: int, message: str) -> None:
        super().__init__()
        self.left, self.message = bound, message

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes a second, to keep it out of this

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        size = _new_size(func, args, kwargs or {})
        if size is not None:
            self.left -= max(_LEAST, math.prod(size))
            if self.left < 0:
                raise AdaptError(self.message)
        return func(*args, **kwargs or {})


def _new_size(func: OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> Sequence[int] | None:
    """Return the size of the tensor that `func`, such as zeros, allocates (() on the meta device), or else None."""
    arguments = func._schema.arguments
    names = [argument.name for argument in arguments]
    of_tensors = any(str(argument.type) == "Tensor" for argument in arguments)
    if "size" not in names or (of_tensors and not func._schema.name.startswith("aten::new_")):
        return None  # a tensor computed from others is bounded by them
    if str(kwargs.get("device")) == "meta":
        return ()
    position = names.index("size")
    size = args[position] if position < len(args) else kwargs.get("size")
    return size if isinstance(size, list | tuple) else None


def at_most(numbers: int) -> TorchDispatchMode:
    """Return a context manager that limits the total elements of new tensors to a small multiple of `numbers`.

    `numbers` is the number of elements in a file. Raises AdaptError in the `with` block before the limit is exceeded.
    """
    return _Bounded(
        _TIMES * numbers + _BESIDE,
        f"its settings ask for far more than the {numbers:,} numbers that its tensors hold; the file is damaged, or "
        "was made by hand",
    )


def within_memory(device: torch.device, what: str) -> TorchDispatchMode:
    """Return a context manager that limits the total size of new tensors to the free memory of `device`.

    Raises AdaptError in the `with` block before the limit is exceeded; `what` names the object to build in the message.
    """
    free = free_bytes(device)
    return _Bounded(
        free // _BYTES,
        f"the settings of {what} ask for more than the {readable_bytes(free)} of memory that are free: give smaller "
        "ones",
    )


def build(backbone: Backbone, method: Method, class_names: Sequence[str]) -> tuple[str, ...]:
    """Check the names of classes or answers, allocate the parameters of `method`, and return the names as a tuple.

    Raises AdaptError in the cases that `wrap` lists.
    """
    if method.built:
        raise AdaptError(
            f"this {method.name} already belongs to a model: make a new one, or use model.with_classes(...)"
        )
    if has_trait(method, ReadsHeads) and not (isinstance(backbone, ImageEncoder) and backbone.heads):
        raise AdaptError(
            f"{method.name} reads attention heads, which are not the features of {backbone.describe()}: use "
            "heads:BACKBONE, such as heads:mini-vlm"
        )
    for part in method.parts.values():
        if backbone.kind not in part.serves:
            raise AdaptError(
                f"{part.name} adapts a {' or a '.join(part.serves)}, and {backbone.describe()} is a {backbone.kind}"
                f": {backbone.instead}"
            )
    if backbone.kind in ("vision LLM", "native VLM") and (method.views or type(method).infer is not Method.infer):
        raise AdaptError(
            f"{method.name} adapts class logits at test time, but a {backbone.kind} answers in words: use a backbone "
            "that classifies images"
        )
    needs_none = backbone.kind == "vision LLM"
    if not (needs_none or len(class_names)):  # none are given, and the method's task may be one without
        from adapt.methods.base.objective import without_classes

        needs_none = backbone.kind == "native VLM" or (backbone.kind == "dual encoder" and without_classes(method))
    names = () if needs_none else check_class_names(class_names)
    model = backbone.model  # frozen, so that building changes no batch statistics
    outlined = torch.device("meta") if backbone.device.type == "meta" else nullcontext()
    with outside_inference_mode(), in_single_precision(), alone(model), frozen(model):
        with outlined:
            method.build(backbone, names)
        _check_edits(backbone, method, len(names), blocks=not has_trait(method, OwnWeights))
        if backbone.kind == "fusion encoder":
            add_head(cast("FusionEncoder", backbone), method, names)
        if backbone.kind == "vision encoder":
            add_classifier(cast("VisionEncoder", backbone), method, len(names))
    method.built = True
    return names


def add_head(backbone: FusionEncoder, method: Method, answers: Sequence[str]) -> None:
    """Give `method` a trainable head over `answers`. Raises AdaptError if a new head would remain untrained."""
    if not method.touches and not backbone.knows(answers):
        raise AdaptError(
            f"{method.name} trains nothing, and {backbone.describe()} has no trained head for these answers: use a "
            "method that adapts a tower"
        )
    method.classifier = backbone.new_classifier(answers)


def add_classifier(backbone: VisionEncoder, method: Method, classes: int) -> None:
    """Give `method` a classifier by cosines with class vectors, unless the method has a classifier of its own."""
    if trait(method, OwnClassifier) is None:
        method.classifier = backbone.new_classifier(classes, trains_classifier(method))


def trains_classifier(method: Method) -> bool:
    """Return whether the class vectors are trained: those of a method with training steps and no logits of its own."""
    return method.takes_steps and all(type(part).logits is Method.logits for part in method.parts.values())


@torch.no_grad()
def _check_edits(backbone: Backbone, method: Method, classes: int, blocks: bool) -> None:
    """Raise AdaptError if a tower lacks `blocks` or does not support an edit of `method`, or if two edits conflict."""
    features: dict[str, Callable[[], Tensor]] = {}
    tokens: dict[str, Callable[[], Tensor]] = {}
    class_features = None
    if isinstance(backbone, ImageEncoder):
        features["vision"] = lambda: torch.zeros(1, backbone.embed_dim, device=backbone.device)
        tokens["vision"] = lambda: torch.zeros(1, 1, backbone.tower("vision").width, device=backbone.device)

        def class_features(templates: Sequence[str]) -> Tensor:
            return torch.zeros(classes, backbone.embed_dim, device=backbone.device)

    class_tokens: dict[str, Callable[[], Tensor]] = {}
    if backbone.kind == "vision LLM":
        patches = torch.zeros(1, *cast("VisionLLM", backbone).patch_shape(), device=backbone.device)
        tokens["vision"] = lambda: patches
        class_tokens["vision"] = lambda: patches[:, 0]
    for name in sorted(method.touches):
        tower = backbone.tower(name, blocks)
        planned = plan(tower, method.edits(tower, Context(features, tokens, class_features, class_tokens)))
        if name == "text" and planned.entering is not None and planned.entering.block is not None:
            check_first_token(backbone.tokenizer)
