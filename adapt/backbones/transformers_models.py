"""Loading of transformers models, and the choice of backbone class for each type of model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from adapt.backbones import families
from adapt.backbones.base import Backbone
from adapt.backbones.sources import fetching
from adapt.common.errors import AdaptError, nearest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from adapt.backbones.families.base import Family


def load(source: str, name: str | None, tensors: bool = True) -> Backbone:
    """Load the backbone `source`, a hub name or a folder, from safetensors only and without running remote code.

    `name` becomes the backbone's name. If `tensors` is false, the model is created on the meta device, from its
    configuration alone. Raises AdaptError if the type of model is not supported, or if transformers cannot load the
    model.
    """
    import torch
    import transformers

    with fetching(source):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        known = families.of_model_types()
        if config.model_type not in known and "CausalLM" in str(config.architectures):
            raise AdaptError(f"{source} is a language model: combine it with a vision tower, as in mini-clip+hf:NAME")
        if config.model_type == "timm_wrapper":
            raise AdaptError(f"{source} is a model of timm: name it timm:{source}")
        if config.model_type not in known:
            chats = ", ".join(kind for kind, family in known.items() if family.whole_processor)
            answers = "ForConditionalGeneration" in str(config.architectures)
            hint = f"its chat models are {chats}" if answers else nearest(config.model_type, known)
            raise AdaptError(f"{source} is a {config.model_type} model, which adapt cannot load; {hint}")
        family = known[config.model_type]
        family.check_libraries(config.model_type)
        classes = family.model_types[config.model_type]
        named = next((each for each in classes if each in (config.architectures or ())), classes[-1])
        kind: Any = family.model_class(named)
        options = family.options.get(config.model_type, {})
        if tensors:
            model = whole(kind, source, exact=family.exact, **options)
        else:
            with torch.device("meta"):
                model = kind._from_config(config, **options)
        processor = _processor(source, family)
    return build(model.eval(), processor, name)


def reads_texts(source: str) -> bool:
    """Return whether the model `source`, a hub name or a folder, reads texts, by its configuration alone."""
    import transformers

    with fetching(source):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    family = families.of_model_types().get(config.model_type)
    return family is None or family.reads_texts


def _processor(source: str, family: Family) -> Any:
    """Return the processor of a model: the whole one, which also joins text and images, or its parts."""
    import transformers

    def read(kind: Any) -> Any:
        return kind.from_pretrained(source, trust_remote_code=False)

    if family.whole_processor:
        return read(transformers.AutoProcessor)
    image_processor = read(transformers.AutoImageProcessor)
    if not family.reads_texts:
        return image_processor
    return SimpleNamespace(image_processor=image_processor, tokenizer=read(transformers.AutoTokenizer))


def whole(kind: Any, source: str, *, exact: bool = False, **options: object) -> PreTrainedModel:
    """Load and return the transformers model of class `kind` from `source`, after checking that no weight is missing.

    Raises AdaptError for a missing tensor, which transformers would fill with random values, and, if `exact`, for a
    tensor that the model has no place for.
    """
    native = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    model, report = kind.from_pretrained(source, **native, **options)
    if missing := sorted(report["missing_keys"]):
        raise AdaptError(
            f"{source} lacks {len(missing)} of its tensors, such as {missing[0]}, so configuration and weights belong "
            "to different models. Fetch the model again"
        )
    if exact and (surplus := sorted(report["unexpected_keys"])):
        raise AdaptError(
            f"{source} has tensors that do not belong to its configuration, such as {surplus[0]}, so configuration and "
            "weights belong to different models. Fetch the model again"
        )
    loaded: PreTrainedModel = model
    return loaded


def build(model: nn.Module, processor: Any, name: str | None = None) -> Backbone:
    """Wrap a transformers model and its processor as a backbone. Raises AdaptError for an unsupported type of model.

    The processor is that of transformers, or any other object with a `tokenizer` and an `image_processor`; for a model
    of images alone, the image processor is enough.
    """
    kind: str | None = getattr(getattr(model, "config", None), "model_type", None)
    known = families.of_model_types()
    if kind not in known:
        raise AdaptError(
            f"from_transformers got a {type(model).__name__}; expected a model of type {', '.join(sorted(known))} (for "
            "open_clip models use Backbone.from_open_clip)"
        )
    given = "no processor" if processor is None else f"a {type(processor).__name__}"
    if known[kind].reads_texts:
        missing = [part for part in ("tokenizer", "image_processor") if getattr(processor, part, None) is None]
        advice = (
            "transformers.AutoProcessor.from_pretrained(NAME), or any object with a tokenizer and an image_processor"
        )
    else:
        if type(model).__name__ not in (classes := known[kind].model_types[kind]):
            raise AdaptError(
                f"from_transformers got a {type(model).__name__}; expected {' or '.join(classes)}: load the model by "
                "that class, without its head"
            )
        processor = getattr(processor, "image_processor", processor)
        missing = [] if hasattr(processor, "image_mean") else ["its image processor"]
        advice = "transformers.AutoImageProcessor.from_pretrained(NAME)"
    if missing:
        raise AdaptError(
            f"from_transformers got {given} for the {type(model).__name__}, but needs {' and '.join(missing)}: give "
            f"{advice}"
        )
    return known[kind].build(model, processor, name)
