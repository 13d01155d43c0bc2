"""The function `adapt.load`, which loads adapted models (a backbone and an adapter) of any file format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from adapt.backbones.base import Backbone
from adapt.common import hub, plain
from adapt.common.devices import AUTO, chosen
from adapt.common.errors import AdaptError, about
from adapt.common.shown import brief
from adapt.formats import COMPACT_WEIGHTS, PEFT_CONFIG
from adapt.formats.adapter import NAME, Header, check_backbone, check_scale, read_header, read_parts, sets_of
from adapt.formats.rebuild import build_for, method_called, named_backbone, note_quantization
from adapt.methods.base import Method, trait
from adapt.methods.base.traits import ChecksAdapter, skipped_blocks
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.prediction import Answers
from adapt.models.wrap import Model

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import DualEncoder
    from adapt.backbones.fusion import FusionEncoder
    from adapt.backbones.native import NativeVLM
    from adapt.backbones.vision_encoder import VisionEncoder
    from adapt.backbones.vision_llm import VisionLLM
    from adapt.models.fusion_encoder import AnsweringModel
    from adapt.models.native_vlm import ChatModel
    from adapt.models.vision_encoder import VisionModel
    from adapt.models.vision_llm import SpeakingModel


class _Options(TypedDict, total=False):
    """The keyword options of `load`."""

    fast: bool | None
    device: str | torch.device


@overload
def load(
    path: str | Path, backbone: DualEncoder, class_names: Sequence[str] | None = ..., **options: Unpack[_Options]
) -> AdaptedModel: ...


@overload
def load(
    path: str | Path, backbone: VisionEncoder, class_names: Sequence[str] | None = ..., **options: Unpack[_Options]
) -> VisionModel: ...


@overload
def load(
    path: str | Path, backbone: FusionEncoder, class_names: Sequence[str] | None = ..., **options: Unpack[_Options]
) -> AnsweringModel: ...


@overload
def load(
    path: str | Path, backbone: VisionLLM, class_names: Sequence[str] | None = ..., **options: Unpack[_Options]
) -> SpeakingModel: ...


@overload
def load(
    path: str | Path, backbone: NativeVLM, class_names: Sequence[str] | None = ..., **options: Unpack[_Options]
) -> ChatModel: ...


@overload
def load(
    path: str | Path,
    backbone: Backbone | None = ...,
    class_names: Sequence[str] | None = ...,
    **options: Unpack[_Options],
) -> Model: ...
def load(
    path: str | Path,
    backbone: Backbone | None = None,
    class_names: Sequence[str] | None = None,
    *,
    fast: bool | None = None,
    device: str | torch.device = AUTO,
) -> Model:
    """Load the adapted model that was saved at `path`, in evaluation mode.

    Without `backbone`, the backbone that the adapter names is loaded onto `device`, which is by default this process's
    accelerator if there is one. A given backbone is not moved. `class_names` replaces the recorded classes. `path` may
    be an adapter file, a folder with an `adapter.safetensors` (such as a run directory), an adapter on the hub
    (`hf://user/name` or `hf://user/name@revision`), a folder in peft's layout with a LoRA adapter, or a compact folder
    with its own backbone (`adapt.formats.compact`).

    Raises AdaptError if the file does not fit the backbone, if the file is missing, damaged or not an adapter, and if
    the hub has no such adapter or cannot be reached.
    """
    if not (backbone is None or isinstance(backbone, Backbone)):
        raise AdaptError(f"backbone is {brief(backbone)}; expected a backbone, such as adapt.load_backbone(NAME)")
    path = located(path)
    if not path.is_dir():
        return _of_file(path, backbone, class_names, fast, device)
    if (path / PEFT_CONFIG).is_file():
        from adapt.formats import peft_import

        return peft_import.load(path, backbone, class_names, fast=fast, device=device)
    file = _in_compact(path)
    if backbone is not None:
        raise AdaptError(f"{path} is a compact folder, which contains its own backbone: leave backbone out")
    from adapt.formats import compact

    backbone, skipped = compact.backbone_of(path)
    model = _of_file(file, backbone.to(chosen(device)), class_names, fast, device)
    if skipped_blocks(model.method) != skipped:
        raise AdaptError(
            f"the blocks that the backbone in {path} lacks are not the blocks that its adapter skips: export the "
            "compact folder again"
        )
    return model


def load_many(
    paths: Sequence[str | Path],
    backbone: Backbone | None = None,
    class_names: Sequence[str] | None = None,
    *,
    fast: bool | None = None,
    device: str | torch.device = AUTO,
) -> list[Model]:
    """Load several adapted models as `load` does, with one copy in memory of a backbone that several models name."""
    if isinstance(paths, str | Path):
        raise AdaptError(f"load_many got {str(paths)!r}; expected a list of paths: for a single path call load")
    shared: dict[str, Backbone] = {}
    models = []
    for place in map(located, paths):
        name = backbone_key(place)
        models.append(load(place, backbone or shared.get(name or ""), class_names, fast=fast, device=device))
        if name is not None:
            shared.setdefault(name, models[-1].backbone)
    return models


def backbone_key(path: str | Path) -> str | None:
    """Return a key that identifies an adapter's backbone and preprocessing; None for a folder or unnamed backbone."""
    place = located(path)
    described = None if place.is_dir() else read_header(place)
    if described is None or described.backbone is None:
        return None
    read = dict(described.preprocess)
    del read["turned"]  # adapters that share a backbone may differ in this
    return plain.dump([described.backbone, described.quantization, read])


def class_names_of(path: str | Path) -> Sequence[str]:
    """Return the class names that an adapter of any file layout records, without building a model."""
    place = located(path)
    if (place / PEFT_CONFIG).is_file():
        from adapt.formats import peft_import

        return peft_import.class_names_of(place)
    return read_header(_in_compact(place) if place.is_dir() else place).class_names


def located(path: str | Path) -> Path:
    """Return the adapter file that `path` refers to, where `path` may also be a run directory or a name on the hub.

    A compact folder, or a folder in peft's layout, is returned unchanged. An adapter on the hub is downloaded first.
    Raises AdaptError as `publishing.fetch` does, and for a run that is not finished.
    """
    if hub.is_name(path):
        from adapt.formats import publishing

        return publishing.fetch(path)
    path = Path(path)
    own_layout = any((path / name).is_file() for name in (COMPACT_WEIGHTS, PEFT_CONFIG))
    is_run = (path / "recipe.yaml").is_file()
    if is_run and not (path / NAME).is_file():
        why = "is not finished, and has no adapter yet: continue the run with --resume"
        if (path / "metrics.json").is_file():
            why = f"is finished, but its {NAME} is gone: put the file back, or train again"
        raise AdaptError(f"the run in {path} {why}")
    return path / NAME if is_run or (not own_layout and (path / NAME).is_file()) else path


def _in_compact(folder: Path) -> Path:
    """Return the adapter file in a compact folder (backbone and adapter). Raises AdaptError for any other folder."""
    if not (folder / COMPACT_WEIGHTS).is_file():
        raise AdaptError(f"there is no adapter in the folder {folder}: expected {NAME}, as in a run directory")
    return folder / NAME


def _of_file(
    path: Path,
    backbone: Backbone | None,
    class_names: Sequence[str] | None,
    fast: bool | None,
    device: str | torch.device,
) -> Model:
    described = read_header(path)
    parts = read_parts(path)
    method = method_of(described, path)
    if backbone is None:
        if described.backbone is None:
            raise AdaptError(f"{path} was trained on a backbone without a name: call load(path, backbone=...)")
        with about(str(path)):
            backbone = named_backbone(described.backbone, device, described.quantization, described.preprocess)
    note_quantization(described.quantization, backbone, path)
    backbone = backbone.turning(described.preprocess["turned"])
    check_backbone(described, backbone, path)
    model: Model = build_for(method, backbone, described.class_names, parts["method"], str(path), fast)
    check_scale(described, model, path)
    settings: dict[str, Any] = {**(described.answers or {})}
    model.answers = Answers(**settings, sets=sets_of(described, parts["sets"], path))
    if model.answers.blend < 1 and not isinstance(model, AdaptedModel):
        raise AdaptError(
            f"{path} blends its predictions with zero-shot predictions, which {backbone.describe()} cannot make: "
            "train the adapter again"
        )
    if described.watch:
        from adapt.models.watch import Watch

        model.watch = Watch.from_tensors(parts["watch"], path)
    model.metadata = {key: getattr(described, key) for key in ("recipe", "seed", "metrics")}
    if class_names is not None and tuple(class_names) != described.class_names:
        with about(str(path)):
            model = model.with_classes(class_names)
    return model.eval()


def method_of(described: Header, path: Path) -> Method:
    """Return the method that an adapter's header describes, with the recorded settings, not yet built on a backbone."""
    try:
        kind = method_called(described.method)
        method = kind(**described.config)
        if checks := trait(method, ChecksAdapter):
            checks.check_settings()
    except (TypeError, KeyError) as error:  # the method's own signature refuses the settings
        raise AdaptError(f"{path}: the recorded settings do not fit the method {described.method} ({error})") from error
    except AdaptError as error:
        raise AdaptError(f"{path}: {error}") from error
    return method
