"""The family of open_clip's models, named by architecture and weights or by hub repository, or given as folders."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family
from adapt.backbones.sources import (
    HF_HUB,
    OF_PICKLES,
    OFFLINE,
    check_configuration,
    check_source,
    errors_of_data,
    library_errors,
    needs_code,
    no_questions,
    read_configuration,
    reason,
)
from adapt.common import hub
from adapt.common.errors import AdaptError, nearest
from adapt.common.plain import JsonObject
from adapt.common.shown import first_of

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone

logger = logging.getLogger("adapt")


class OpenCLIPModels(Family):
    name = "open_clip_models"
    prefix = "open_clip:"
    forms: ClassVar = {
        "open_clip:ARCH/PRETRAINED": "any open_clip model and weights, e.g. open_clip:ViT-B-16-quickgelu/openai",
        "open_clip:hf-hub:ORG/NAME": "an open_clip model of the hub, by its repository",
        "open_clip:ARCH": "an open_clip architecture with random weights",
    }

    def meant(self, spec: str) -> str | None:
        import open_clip

        architecture, _, tag = spec.partition("/")
        near = get_close_matches(architecture, open_clip.list_models(), n=1, cutoff=0.8)
        tags = open_clip.list_pretrained_tags_by_model(near[0]) if near else []
        named = tag if tag in tags else f"PRETRAINED with PRETRAINED one of {first_of(tags)}"
        return f"{self.prefix}{near[0]}/{named}" if tags else None

    def load(self, spec: str, device: torch.device) -> Backbone:
        rest, tensors = spec.removeprefix(self.prefix), device.type != "meta"
        if rest.startswith(HF_HUB):
            repository = rest.removeprefix(HF_HUB)  # pickles are not fetched
            weights = ["open_clip_model.safetensors"] if tensors else []
            folder = hub.snapshot(repository, ["*.json", "*.txt", "*.model", *weights])
            for needed in ("open_clip_config.json", *weights):
                if not (folder / needed).is_file():
                    raise AdaptError(
                        f"{repository} has no {needed}, which open_clip models need: choose another repository"
                    )
            return self.load_folder(folder, spec, tensors)
        return _pretrained(rest, spec, tensors)

    def claims_folder(self, path: Path) -> bool:
        return (path / "open_clip_config.json").is_file()

    def load_folder(self, path: Path, name: str | None, tensors: bool = True) -> Backbone:
        from adapt.backbones import plain_clip

        check_source(path)
        config = _configuration(path)
        try:
            return plain_clip.load(path, name, tensors) or _of_folder(path, name, tensors, config)
        except (*library_errors(), *errors_of_data()) as error:
            raise needs_code(error, path) or AdaptError(
                f"{path} cannot be loaded with open_clip: {reason(error)}; fetch the folder again"
            ) from error


def _of_folder(path: Path, name: str | None, tensors: bool, config: JsonObject) -> Backbone:
    import open_clip
    import torch

    from adapt.backbones import openclip

    text = config["text_cfg"]
    if text.get("hf_model_name"):
        check_source(text["hf_model_name"])
    how = {"load_weights": tensors, "require_pretrained": tensors, "weights_only": True, "pretrained_text": False}
    with _without_notes(), no_questions(), torch.device("cpu" if tensors else "meta") as place:
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{path}", device=place, **how)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{path}", **_tokenizer_options(text))
    return openclip.build(model.eval(), tokenizer, preprocess, name, config)


def _configuration(path: Path) -> JsonObject:
    """Return open_clip's configuration of the model in a folder. Raises AdaptError if it is damaged."""

    file = path / "open_clip_config.json"
    try:
        config: JsonObject = read_configuration(file)["model_cfg"]
        text, _ = config["text_cfg"].get, config["vision_cfg"].get
        if not isinstance(text("hf_model_name") or "", str):
            raise TypeError(f"hf_model_name is {text('hf_model_name')!r}; expected a name")
    except (KeyError, TypeError, AttributeError) as error:
        raise AdaptError(f"{file} is damaged ({error}); fetch the folder again") from error
    return config


def _tokenizer_options(text: JsonObject) -> dict[str, int | None]:
    """Return arguments for open_clip's `get_tokenizer`, with `trust_remote_code=False` for transformers tokenizers."""
    options = {"context_length": text.get("context_length")}
    return options | {"trust_remote_code": False} if text.get("hf_tokenizer_name") else options


def _pretrained(spec: str, name: str, tensors: bool) -> Backbone:
    import open_clip
    import torch

    from adapt.backbones import openclip

    architecture, _, pretrained = spec.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        hint = nearest(architecture, known, "open_clip.list_models()")
        raise AdaptError(f"open_clip has no architecture {architecture!r}; {hint}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        hint = nearest(pretrained, tags, f"open_clip.list_pretrained_tags_by_model({architecture!r})")
        raise AdaptError(f"open_clip has no pretrained weights {pretrained!r} for {architecture}; {hint}")
    config = open_clip.get_model_config(architecture)
    check_configuration(config, f"open_clip's configuration of {architecture}")
    how: dict[str, Any] = {"pretrained": pretrained or None, "weights_only": True}
    if not tensors:  # with a tag, open_clip fetches the weights even where it does not load them
        pixels = open_clip.get_pretrained_cfg(architecture, pretrained)
        how = {f"image_{key}": pixels.get(key) for key in ("mean", "std", "interpolation", "resize_mode")}
    with hub.asked_once() if pretrained in tags else nullcontext() as silence:
        try:
            with _without_notes(), no_questions(), torch.device("cpu" if tensors else "meta") as place:
                model, _, preprocess = open_clip.create_model_and_transforms(
                    architecture, device=place, pretrained_text=False, **how
                )
                tokenizer = open_clip.get_tokenizer(architecture, **_tokenizer_options(config["text_cfg"]))
        except (*library_errors(), *errors_of_data(), *OF_PICKLES) as error:
            what = f"the weights {pretrained!r}" if tensors else "the parts beside the weights, such as the tokenizer,"
            raise needs_code(error, architecture) or AdaptError(
                f"{what} of {architecture} are damaged, or are not on this machine and cannot be "
                f"downloaded: {silence or reason(error)}. Connect to the internet, give a weight file as "
                f"open_clip:{architecture}/FILE or a local folder, {OFFLINE}"
            ) from error
    _warn_of_activation(architecture, pretrained, bool(config.get("quick_gelu")))
    return openclip.build(model.eval(), tokenizer, preprocess, name, config)


def _warn_of_activation(architecture: str, pretrained: str, quick: bool) -> None:
    """Warn if weights were trained with another activation function (GELU, QuickGELU) than the architecture uses."""
    import open_clip

    trained = bool(open_clip.get_pretrained_cfg(architecture, pretrained).get("quick_gelu")) if pretrained else quick
    if trained == quick or Path(pretrained).is_file():
        return
    names = {True: "QuickGELU", False: "GELU"}
    other = f"{architecture}-quickgelu" if trained else architecture.removesuffix("-quickgelu")
    known = other != architecture and pretrained in open_clip.list_pretrained_tags_by_model(other)
    logger.warning(
        "the weights %r were trained with %s, and %s computes %s: features and accuracy differ from the published ones"
        + f"; take open_clip:{other}/{pretrained}" * known,
        pretrained, names[trained], architecture, names[quick],
    )  # fmt: skip


@contextmanager
def _without_notes() -> Iterator[None]:
    """Silence libraries' log messages and open_clip's QuickGELU warning in the `with` block, which loads a model."""
    levels = {each: each.level for each in (logging.getLogger(), logging.getLogger("huggingface_hub"))}
    for each in levels:
        each.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # see _warn_of_activation
            yield
    finally:
        for each, level in levels.items():
            each.setLevel(level)
