"""Sources of backbones (bundled folder, local folder, hub), and the errors of the libraries that load them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from adapt.common import hub
from adapt.common.errors import AdaptError

HF_HUB = "hf-hub:"  # open_clip's prefix for a hub repository
TIMM = "timm/"  # the owner of the hub's repositories with timm's own weights
BUNDLED = ("mini-clip", "mini-clip-half", "mini-lm", "mini-vilt", "mini-vlm")


def bundled(name: str = "mini-clip") -> Path:
    """Return the folder of the bundled checkpoint `name`, which is in the installed package or in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_checkpoints" / name, package.parent / "checkpoints" / name):
        if (folder / "tokenizer.json").is_file():
            return folder
    raise AdaptError(f"the bundled backbone {name!r} is missing from this installation; reinstall adapt")


def _models(spec: str) -> list[str]:
    """Return the names of the models that the backbone name `spec` combines, or of which it takes a half."""
    return [part.removeprefix("vision:").removeprefix("embed:") for part in re.split("[+&]", spec)]


def hub_names(spec: str | None) -> list[str]:
    """Return the hub repositories that the backbone name `spec` refers to, none for folders and random weights."""
    return [name for part in _models(spec or "") if (name := _hub_name(part)) is not None]


def is_portable(spec: str | None) -> bool:
    """Return whether the backbone name `spec` refers to the same model on any machine (bundled or on the hub)."""
    return spec is not None and all(part in BUNDLED or _hub_name(part) for part in _models(spec))


def is_here(spec: str) -> bool:
    """Return whether the backbone named `spec` consists of bundled models or local folders, and needs no network."""
    parts = [spec] if os.path.isdir(spec) else _models(spec)  # False for a name too long for a file
    return all(part in BUNDLED or os.path.isdir(part.removeprefix("hf:")) for part in parts)


def _hub_name(spec: str) -> str | None:
    kind, _, rest = spec.partition(":")
    if kind == "hf":
        return rest if rest and not Path(rest).is_dir() else None
    if kind == "timm":
        return None if Path(rest).is_dir() else rest if "/" in rest else f"{TIMM}{rest}"
    if kind != "open_clip" or not rest:
        return None
    if rest.startswith(HF_HUB):
        return rest.removeprefix(HF_HUB)
    import open_clip

    architecture, _, pretrained = rest.partition("/")
    repository = str(open_clip.get_pretrained_cfg(architecture, pretrained).get("hf_hub") or "")
    return "/".join(repository.split("/")[:2]) or None  # a file name may follow


@contextmanager
def fetching(source: str) -> Iterator[None]:
    """Convert transformers' errors in the `with` block, which loads `source`, to AdaptError; refuse custom code."""
    from adapt.backbones.foreign_code import check_source, needs_code, no_questions

    with nullcontext() if os.path.isdir(source) else hub.asked_once():
        check_source(source)
        try:
            with no_questions():
                yield
        except library_errors() as error:
            raise needs_code(error, source) or AdaptError(
                f"cannot load {source!r} with transformers: {reason(error)}. Connect to the internet, or give a local "
                "folder"
            ) from error
        except errors_of_data() as error:
            raise AdaptError(
                f"{source!r} is damaged and transformers cannot load the model: {reason(error)}. Fetch the model again"
            ) from error


def errors_of_data() -> tuple[type[Exception], ...]:
    """Return the exception classes that libraries raise for an invalid configuration."""
    from huggingface_hub.errors import StrictDataclassError

    return TypeError, LookupError, AttributeError, ArithmeticError, ImportError, StrictDataclassError


def library_errors() -> tuple[type[Exception], ...]:
    """Return the exception classes that libraries raise for missing or damaged files."""
    from safetensors import SafetensorError

    return SafetensorError, RuntimeError, OSError, ValueError, AssertionError


def reason(error: Exception) -> str:
    """Return the first line of an exception's message, or the first two lines if the first line ends in a colon."""
    lines = str(error).strip().splitlines() or [""]
    message = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
    named = isinstance(error, RuntimeError | OSError | ValueError) and message
    return message if named else f"{type(error).__name__} {message}".rstrip()
