"""The function `wrap(backbone, method, class_names)`, which joins a frozen backbone and a method in one module."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack, overload

from adapt.backbones.base import Backbone, DualEncoder, outside_inference_mode
from adapt.common.errors import AdaptError
from adapt.methods.base import Method
from adapt.models.base import Adapted
from adapt.models.building import build, within_memory

if TYPE_CHECKING:
    from adapt.backbones.fusion import FusionEncoder
    from adapt.backbones.native import NativeVLM
    from adapt.backbones.vision_encoder import VisionEncoder
    from adapt.backbones.vision_llm import VisionLLM
    from adapt.models.dual_encoder import AdaptedModel
    from adapt.models.fusion_encoder import AnsweringModel
    from adapt.models.native_vlm import ChatModel
    from adapt.models.vision_encoder import VisionModel
    from adapt.models.vision_llm import SpeakingModel

    Model: TypeAlias = AdaptedModel | VisionModel | AnsweringModel | SpeakingModel | ChatModel
else:
    Model = Adapted  # each kind's class is imported when it is used

_Names: TypeAlias = Sequence[str]
_MODELS = {  # by the backbone's kind, which names the file as well
    "dual encoder": "AdaptedModel",
    "vision encoder": "VisionModel",
    "fusion encoder": "AnsweringModel",
    "vision LLM": "SpeakingModel",
    "native VLM": "ChatModel",
}


class _More(TypedDict, total=False):
    """The keyword options of `wrap` but for `fast`."""

    checkpointing: bool
    text_memory: int | None


@overload
def wrap(
    backbone: DualEncoder, method: Method, class_names: _Names = ..., fast: bool | None = ..., **more: Unpack[_More]
) -> AdaptedModel: ...


@overload
def wrap(
    backbone: VisionEncoder, method: Method, class_names: _Names = ..., fast: bool | None = ..., **more: Unpack[_More]
) -> VisionModel: ...


@overload
def wrap(
    backbone: FusionEncoder, method: Method, class_names: _Names = ..., fast: bool | None = ..., **more: Unpack[_More]
) -> AnsweringModel: ...


@overload
def wrap(
    backbone: VisionLLM, method: Method, class_names: _Names = ..., fast: bool | None = ..., **more: Unpack[_More]
) -> SpeakingModel: ...


@overload
def wrap(
    backbone: NativeVLM, method: Method, class_names: _Names = ..., fast: bool | None = ..., **more: Unpack[_More]
) -> ChatModel: ...


@overload
def wrap(
    backbone: Backbone, method: Method, class_names: _Names = ..., fast: bool | None = ..., **more: Unpack[_More]
) -> Model: ...
def wrap(
    backbone: Backbone,
    method: Method,
    class_names: Sequence[str] = (),
    fast: bool | None = None,
    *,
    checkpointing: bool = False,
    text_memory: int | None = None,
) -> Model:
    """Return a model that joins `method` with the frozen `backbone`, after creating the method's parameters.

    The result is an `AdaptedModel`, `VisionModel`, `AnsweringModel`, `SpeakingModel` or `ChatModel` for a dual encoder,
    vision encoder, fusion encoder, vision LLM or native vision-language model. `class_names` are the classes, or the
    answers of a fusion encoder. Leave `class_names` out for pairs of images and texts, and for models that answer in
    free text.

    With `fast` None, the fast exact paths of text, vision and native models are used where applicable; True raises
    AdaptError where they are not, and False uses the library's own forward. `checkpointing` recomputes the blocks of
    edited towers in the backward pass. `text_memory` limits the text side's activations in bytes (default: half of the
    free memory).

    Raises AdaptError for an object that is not a backbone, a method that is already built, invalid class names, a
    backbone that the method does not support, and settings that need more memory than is available.
    """
    _check_parts(backbone, method)
    with within_memory(backbone.device, method.name):
        names = build(backbone, method, class_names)
    return assemble(backbone, method, names, fast, checkpointing=checkpointing, text_memory=text_memory)


def assemble(
    backbone: Backbone,
    method: Method,
    names: tuple[str, ...],
    fast: bool | None,
    *,
    checkpointing: bool = False,
    text_memory: int | None = None,
) -> Model:
    """Return the adapted model for a method already built on `backbone`; its class depends on the backbone's kind."""
    options: dict[str, Any] = {"checkpointing": checkpointing}
    if isinstance(backbone, DualEncoder):
        options |= {"fast": fast, "text_memory": text_memory}
    elif backbone.kind in ("vision encoder", "native VLM"):
        options["fast"] = fast
    module = import_module(f"adapt.models.{backbone.kind.lower().replace(' ', '_')}")
    kind: type[Any] = getattr(module, _MODELS[backbone.kind])
    with outside_inference_mode():
        model: Model = kind(backbone, method, names, **options)
    return model


def _check_parts(backbone: object, method: object) -> None:
    """Raise AdaptError, with advice, if `backbone` is not a backbone or `method` is not a method."""
    if not isinstance(backbone, Backbone):
        given = f"the name {backbone!r}" if isinstance(backbone, str) else f"a {type(backbone).__name__}"
        raise AdaptError(
            f"wrap got {given}; expected a backbone: call adapt.load_backbone(NAME), "
            "Backbone.from_open_clip(model, tokenizer) or Backbone.from_transformers(model, processor)"
        )
    if not isinstance(method, Method):
        given = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        raise AdaptError(f"wrap got {given} as method; expected an object such as adapt.methods.CoOp()")
