"""Sources of backbones (bundled folder, local folder, hub), and the errors of the libraries that load them.

Models that bring their own code are refused: settings that would make a library run it raise AdaptError.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from adapt.common import hub
from adapt.common.errors import AdaptError

HF_HUB = "hf-hub:"  # open_clip's prefix for a hub repository
TIMM = "timm/"  # the owner of the hub's repositories with timm's own weights
BUNDLED = ("mini-clip", "mini-clip-half", "mini-lm", "mini-vilt", "mini-vlm")
READINGS = ("vision", "embed", "last", "heads")  # of a whole model, before its name
PACKAGED = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")  # in packages of their own
OFFLINE = (
    "or take what needs no hub: --backbone efficientnet-lite0 (of the extra lite: trained on photographs, reads no "
    "words) or --backbone mini-clip (trained on drawings, reads words)"
)

# what torch raises for a damaged pickle, besides the libraries' errors
OF_PICKLES: tuple[type[Exception], ...] = (struct.error, EOFError, pickle.UnpicklingError)


def bundled(name: str = "mini-clip") -> Path:
    """Return the folder of the bundled checkpoint `name`, which is in the installed package or in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_checkpoints" / name, package.parent / "checkpoints" / name):
        if (folder / "tokenizer.json").is_file():
            return folder
    raise AdaptError(f"the bundled backbone {name!r} is missing from this installation; reinstall adapt")


def _models(spec: str) -> list[str]:
    """Return the names of the models that the backbone name `spec` combines, or of which it takes a half."""
    return [re.sub(f"^({'|'.join(READINGS)}):", "", part) for part in re.split("[+&]", spec)]


def hub_names(spec: str | None) -> list[str]:
    """Return the hub repositories that the backbone name `spec` refers to, none for folders and random weights."""
    return [name for part in _models(spec or "") if (name := _hub_name(part)) is not None]


def is_portable(spec: str | None) -> bool:
    """Return whether the backbone name `spec` refers to the same model on any machine (bundled or on the hub)."""
    return spec is not None and all(part in BUNDLED + PACKAGED or _hub_name(part) for part in _models(spec))


def is_bundled(spec: str) -> bool:
    """Return whether the backbone name `spec` is of the small models that are installed with adapt, and no others."""
    return all(part in BUNDLED for part in _models(spec))


def is_here(spec: str) -> bool:
    """Return whether the backbone named `spec` is of installed models or local folders, and needs no network."""
    parts = [spec] if os.path.isdir(spec) else _models(spec)  # False for a name too long for a file
    return all(part in BUNDLED + PACKAGED or os.path.isdir(part.removeprefix("hf:")) for part in parts)


def _hub_name(spec: str) -> str | None:
    kind, _, rest = spec.partition(":")
    if kind == "hf":
        return rest if rest and not Path(rest).is_dir() else None
    if kind == "timm":
        own = rest.endswith(".safetensors") or Path(rest).is_dir()
        return None if own else rest if "/" in rest else f"{TIMM}{rest}"
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


# the files that transformers, open_clip and peft read; in a folder, one of them may name any other JSON file
_FILES = (
    "config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json",
    "generation_config.json", "adapter_config.json",
)  # fmt: skip
_VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json"}  # their keys are words of any language
_KERNELS = ("attn_implementation", "experts_implementation")  # a value with a / is the name of a repository with code
_READERS = ("AutoTokenizer", "AutoImageProcessor", "AutoProcessor", "AutoFeatureExtractor")
# keys of open_clip's own configurations; it passes any other key to transformers
_TOKENIZER_KEYS = {"additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token"}


def check_source(source: str | Path) -> None:
    """Raise AdaptError if a config file of the model `source` (folder or hub name) would let foreign code run."""
    for path in _configurations(source):
        if path.name == "adapter_config.json":
            raise AdaptError(
                f"{path} would make transformers load a peft adapter, and peft imports the modules that this file "
                "names: give a model folder without this file, and load the adapter with adapt.load(FOLDER, backbone)"
            )
        check_configuration(read_configuration(path), str(path))


def _configurations(source: str | Path) -> list[Path]:
    if Path(source).is_dir():
        return sorted(path for path in Path(source).glob("*.json") if path.name not in _VOCABULARIES)
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    files = [cached_file(str(source), name, _raise_exceptions_for_gated_repo=False, **quiet) for name in _FILES]
    return [Path(path) for path in files if path is not None]


def read_configuration(path: Path) -> Any:
    """Return the parsed content of a model's JSON file. Raises AdaptError if the file cannot be parsed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise AdaptError(f"{path} is damaged ({error}); fetch the folder again") from error


def check_configuration(configuration: object, source: str, place: str = "") -> None:
    """Raise AdaptError if a key of `configuration`, at any depth, would make a library run foreign code."""
    if isinstance(configuration, list):
        for value in configuration:
            check_configuration(value, source, place)
    if not isinstance(configuration, Mapping):
        return
    for key, value in configuration.items():
        where = f"{place}.{key}" if place else str(key)
        if key == "trust_remote_code" and value not in (False, None):
            raise _refused(source, where, value, "run the model's own code")
        if str(key).lstrip("_").removesuffix("_internal") in _KERNELS and "/" in json.dumps(value):
            raise _refused(source, where, value, "run code of a repository")
        if key == "quantization_config" and value is not None:
            raise _refused(source, where, value, "run another library's quantiser (adapt's own is quantize=...)")
        # an entry for a model is ignored
        if key == "auto_map" and (not isinstance(value, Mapping) or any(each.startswith(_READERS) for each in value)):
            raise _refused(source, where, value, "prepare inputs with the model's own code")
        if key == "tokenizer_kwargs" and isinstance(value, Mapping):
            for unknown in sorted(value.keys() - _TOKENIZER_KEYS - {"trust_remote_code"}):
                known = ", ".join(sorted(_TOKENIZER_KEYS))
                raise _refused(
                    source, f"{where}.{unknown}", value[unknown], f"be passed to transformers; expected {known}"
                )
        check_configuration(value, source, where)


def _refused(source: str, where: str, value: object, would: str) -> AdaptError:
    return AdaptError(
        f"{source} is refused because its key {where} is {value!r} and would {would}. adapt runs no code that comes "
        "with a model: if you trust the rest of the model, remove the key"
    )


@contextmanager
def no_questions() -> Iterator[None]:
    """Make transformers raise an error in the `with` block, instead of asking the user, if a model needs custom code.

    Transformers asks at the terminal if its caller, such as open_clip, does not pass `trust_remote_code=False`.
    """
    from transformers import dynamic_module_utils

    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def needs_code(error: Exception, source: str | Path) -> AdaptError | None:
    """Return an AdaptError if a library's `error` means that a model needs custom code; None for other errors."""
    if "custom code" not in str(error) and "trust_remote_code" not in str(error):
        return None
    named = ", ".join(path.name for path in _configurations(source) if "auto_map" in path.read_text(encoding="utf-8"))
    return AdaptError(
        f"{source} needs custom code (auto_map in {named or 'its configuration'}), but adapt runs no code that comes "
        "with a model: choose a model whose classes are part of transformers"
    )
