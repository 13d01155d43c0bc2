"""The adapter file: what it keeps, and what is refused without losing anything."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny_backbones
import tiny_llms
import torch
from checks import perturb
from safetensors import safe_open

import adapt
from adapt import AdaptedModel, AdaptError, Backbone
from adapt.formats import COMPACT_WEIGHTS, tensor_file
from adapt.formats.adapter import FORMAT, read_header, read_tensors
from adapt.formats.rebuild import load_tensors

NAMES = ("goldfish", "red_panda", "sea cucumber")
CoOp, LoRA = adapt.methods.CoOp, adapt.methods.LoRA


@pytest.fixture
def model(open_clip: Backbone) -> AdaptedModel:
    return perturb(adapt.wrap(open_clip, CoOp(n_ctx=4), NAMES))


@pytest.fixture
def saved(model: AdaptedModel, tmp_path: Path) -> Path:
    return model.save(tmp_path / "a.safetensors")


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> Path:
    """Writes the adapter again with its tensors and its header changed, and a checksum that fits."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = safetensors.torch.load_file(path)
    change(tensors, header)
    header.pop(tensor_file.CHECKSUM, None)
    tensor_file.write(tensors, path, header)
    return path


def refused(path: Path, backbone: Backbone | None, message: str, **options: Any) -> None:
    """Loading raises `message`, names the file, and leaves the file as it is."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(AdaptError, match=message) as caught:
        adapt.load(path, backbone, **options)
    assert str(path) in str(caught.value) or "class names" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_the_header_says_what_loading_needs(model: AdaptedModel, tmp_path: Path) -> None:
    model.metadata = {"recipe": {"method": {"name": "coop"}}, "seed": 3, "metrics": {"accuracy": 0.5}}
    header = read_header(model.save(tmp_path / "a.safetensors"))
    assert header.format == (2, 0)
    assert (header.method, header.class_names) == ("coop", NAMES)
    assert header.config["n_ctx"] == 4
    assert header.preprocess["size"] == tiny_backbones.IMAGE
    assert header.logit_scale == pytest.approx(model.backbone.logit_scale)
    assert (header.seed, header.metrics) == (3, {"accuracy": 0.5})
    assert header.versions["adapt"] == adapt.__version__


def test_what_the_file_records_survives_a_round_trip(model: AdaptedModel, tmp_path: Path) -> None:
    model.metadata = {"recipe": {"a": 1}, "seed": 3, "metrics": {"accuracy": 0.5}}
    first = model.save(tmp_path / "a.safetensors")
    second = adapt.load(first, model.backbone).save(tmp_path / "b.safetensors")
    assert read_header(second) == read_header(first)
    assert second.stat().st_size == first.stat().st_size


def test_saving_and_loading_leave_the_random_state_alone(model: AdaptedModel, tmp_path: Path) -> None:
    torch.manual_seed(5)
    adapt.load(model.save(tmp_path / "a.safetensors"), model.backbone)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_a_folder_that_holds_it_is_enough(saved: Path, open_clip: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "handed over"
    folder.mkdir()
    shutil.copy(saved, folder / "adapter.safetensors")
    assert adapt.load(folder, open_clip).method.name == adapt.load(saved, open_clip).method.name
    with pytest.raises(AdaptError, match=r"no adapter in the folder .*: expected adapter\.safetensors"):
        adapt.load(tmp_path / "handed over" / "..")


def test_other_class_names(saved: Path, open_clip: Backbone, model: AdaptedModel, images: torch.Tensor) -> None:
    other = adapt.load(saved, open_clip, class_names=["toy", "goldfish"])
    assert other.class_names == ("toy", "goldfish")
    assert torch.allclose(other(images)[:, 1], model.eval()(images)[:, 0], atol=1e-5)


def test_a_coop_adapter_is_small(open_clip: Backbone, tmp_path: Path) -> None:
    """Of as many numbers as 16 tokens of ViT-B/16's width have."""
    model = adapt.wrap(open_clip, CoOp(n_ctx=64), [f"quite a long class name number {i}" for i in range(100)])
    assert model.method.ctx.numel() == 16 * 512
    assert model.save(tmp_path / "a.safetensors").stat().st_size <= 40 * 1000


def test_a_lora_adapter_of_vit_b_16_is_small(tmp_path: Path) -> None:
    import open_clip

    vision = open_clip.CLIPVisionCfg(layers=12, width=768, image_size=32, patch_size=16, mlp_ratio=0.1)
    text = open_clip.CLIPTextCfg(layers=12, width=512, heads=8, mlp_ratio=0.1)
    with torch.device("meta"):
        model = open_clip.model.CLIP(512, vision, text)
    backbone = tiny_backbones.from_open_clip(model.to_empty(device="cpu").requires_grad_(False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    adapted = adapt.wrap(backbone, LoRA(rank=2), NAMES, fast=False)
    assert sum(p.numel() for p in adapted.method.parameters()) == 2 * 12 * 3 * 2 * (512 + 768)
    path = adapted.save(tmp_path / "a.safetensors")
    assert path.stat().st_size <= 0.8e6
    assert adapt.load(path, backbone, fast=False).method.sites == adapted.method.sites  # stand-ins take no memory


def test_a_missing_file(open_clip: Backbone, tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", open_clip, "there is no adapter at")


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -600, -1])
def test_a_truncated_file(keep: int, saved: Path, open_clip: Backbone) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    refused(saved, open_clip, "truncated")


def test_bytes_that_are_no_header(saved: Path, open_clip: Backbone) -> None:
    saved.write_bytes((8).to_bytes(8, "little") + b"\xffabcdefg")
    refused(saved, open_clip, "no readable header")


def test_trailing_bytes(saved: Path, open_clip: Backbone) -> None:
    saved.write_bytes(saved.read_bytes() + b"more")
    refused(saved, open_clip, "truncated or damaged")


@pytest.mark.parametrize("key", ["ctx", "__metadata__"])
def test_a_key_that_stands_twice(key: str, saved: Path, open_clip: Backbone) -> None:
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = (json.dumps(header)[:-1] + f', "{key}": {json.dumps(header[key])}}}').encode()
    saved.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    refused(saved, open_clip, "a key appears twice")


def _put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda tensors, header: tensors.__setitem__(name, tensor)


def _say(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda tensors, header: header.__setitem__(key, json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("ctx", torch.full((4, 128), float("nan"))), "'ctx' .* not finite"),
        (_put("ctx", torch.full((4, 128), float("inf"))), "'ctx' .* not finite"),
        (lambda tensors, header: tensors.pop("ctx"), "lacks ctx"),
        (_put("other", torch.zeros(2)), "has the unknown other"),
        (_put("ctx", torch.zeros(5, 128)), r"shape \(5, 128\); coop on this backbone expects \(4, 128\)"),
        (_put("ctx", torch.zeros(4, 128, dtype=torch.int32)), "is torch.int32; expected torch.float32"),
        (_say("format", [FORMAT[0] + 1, 0]), "format 3.0, but this adapt reads 2.1: upgrade adapt"),
        (_say("method", "cooop"), "unknown method 'cooop'; did you mean 'coop'"),
        (lambda tensors, header: header.pop("method"), "its header names no method"),
        (lambda tensors, header: header.pop("class_names"), "damaged header"),
        (lambda tensors, header: header.pop("versions"), "damaged header"),
        (lambda tensors, header: header.__setitem__("config", "{"), "damaged header"),
        (lambda tensors, header: header.clear(), "not an adapter"),
    ],
)
def test_a_file_that_does_not_fit(change: Any, message: str, saved: Path, open_clip: Backbone) -> None:
    path = rewrite(saved, change)
    with pytest.raises(AdaptError, match=message) as caught:
        adapt.load(path, open_clip)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("config", {"n_ctx": 4, "depth": 9}), ("config", [1]), ("class_names", []), ("fingerprint", {"values": [1.0]})],
)
def test_header_values_that_make_no_sense(key: str, value: Any, saved: Path, open_clip: Backbone) -> None:
    with pytest.raises(AdaptError):
        adapt.load(rewrite(saved, _say(key, value)), open_clip)


def test_a_newer_minor_format_may_add_keys(saved: Path, open_clip: Backbone, model: AdaptedModel) -> None:
    rewrite(saved, _say("format", [FORMAT[0], FORMAT[1] + 1]))
    rewrite(saved, _say("shoe_size", 43))
    assert torch.equal(adapt.load(saved, open_clip).method.ctx, model.method.ctx)


def test_another_backbone_by_its_weights(saved: Path) -> None:
    torch.manual_seed(9)
    other = tiny_backbones.from_open_clip(tiny_backbones.native_clip())
    refused(saved, other, "same architecture, other weights")


def test_another_backbone_by_its_architecture(saved: Path, hf_clip: Backbone) -> None:
    refused(saved, hf_clip, "another architecture")


def test_a_backbone_without_a_name_must_be_given(saved: Path) -> None:
    with pytest.raises(AdaptError, match=r"call load\(path, backbone"):
        adapt.load(saved)


def test_a_class_specific_adapter_refuses_other_names(open_clip: Backbone, tmp_path: Path) -> None:
    path = adapt.wrap(open_clip, CoOp(n_ctx=4, class_specific=True), NAMES).save(tmp_path / "a.safetensors")
    refused(path, open_clip, "cannot serve other class names", class_names=["toy"])
    assert adapt.load(path, open_clip, class_names=NAMES).class_names == NAMES


def test_values_that_are_not_finite_are_not_saved(model: AdaptedModel, saved: Path) -> None:
    before = saved.read_bytes()
    model.method.ctx.data[0, 0] = float("nan")
    with pytest.raises(AdaptError, match="'ctx' of the model has values that are not finite"):
        model.save(saved)
    assert saved.read_bytes() == before


def test_a_full_disk_loses_nothing(model: AdaptedModel, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    perturb(model)
    with pytest.raises(AdaptError, match="No space left on device; an existing file is unchanged"):
        model.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_write_that_the_system_cuts_off_loses_nothing(model: AdaptedModel, saved: Path) -> None:
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # as a full disk, in safetensors' own writer
    try:
        with pytest.raises(AdaptError, match=r"cannot write .* existing file is unchanged"):
            model.save(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_run_directory_stands_for_its_adapter(model: AdaptedModel, tmp_path: Path) -> None:
    model.save(tmp_path / "adapter.safetensors")
    (tmp_path / "recipe.yaml").touch()
    assert torch.equal(adapt.load(tmp_path, model.backbone).method.ctx, model.method.ctx)


def test_a_folder_has_its_own_backbone(open_clip: Backbone, tmp_path: Path) -> None:
    refused(tmp_path, open_clip, "there is no adapter in the folder")
    (tmp_path / COMPACT_WEIGHTS).touch()
    refused(tmp_path, open_clip, "a compact folder, which contains its own backbone: leave backbone out")
    refused(tmp_path, None, r"is damaged \(compact\.json is missing\)")


@pytest.mark.parametrize("fast", [True, False])
def test_a_loaded_model_serves_by_the_path_that_is_asked_for(fast: bool, saved: Path, open_clip: Backbone) -> None:
    loaded = adapt.load(saved, open_clip, fast=fast)
    assert loaded.text_path == ("fast" if fast else "plain")
    assert not any(module.training for module in loaded.modules())


@pytest.mark.parametrize(
    ("trained", "given", "message"),
    [
        ("nf4", None, "was trained on a backbone with nf4, but the given backbone has no quantisation: results will"),
        (None, "int8", "was trained on a backbone with no quantisation, but the given backbone has int8"),
        (None, None, ""),
        ("nf4", "nf4", ""),
    ],
)
def test_another_quantisation_is_told(
    trained: str | None, given: str | None, message: str, saved: Path, open_clip: Backbone, caplog: Any
) -> None:
    path = rewrite(saved, _say("quantization", trained)) if trained else saved
    open_clip.quantization = given
    adapt.load(path, open_clip)
    assert (message in caplog.text) if message else (caplog.text == "")


def test_the_recorded_backbone_is_built_and_reads_as_it_did(
    saved: Path, open_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("adapt.formats.rebuild.load_backbone", lambda *args: asked.append(args) or open_clip)
    monkeypatch.setattr(type(open_clip), "read_as", lambda self, preprocess: asked.append(preprocess["size"]))
    adapt.load(rewrite(saved, _say("backbone", "tiny/one")))
    assert asked == [("tiny/one", "auto", None), tiny_backbones.IMAGE]


def test_another_preprocessing_is_refused(saved: Path, open_clip: Backbone) -> None:
    reading = read_header(saved).preprocess
    rewrite(saved, _say("preprocess", reading | {"size": 2 * reading["size"]}))
    refused(saved, open_clip, "has the preprocessing .*: give the backbone with the preprocessing")


def test_tensors_are_missing_or_unknown_by_name(model: AdaptedModel) -> None:
    before = model.method.ctx.detach().clone()
    for tensors, message in [
        ({"a": before, "b": before}, "^here lacks ctx and has the unknown a, b, and does not fit its method coop$"),
        ({"ctx": before, "b": before}, "^here has the unknown b, and"),
        ({"ctx": before[1:]}, r"^tensor 'ctx' of here has shape \(3, 128\)"),
    ]:
        with pytest.raises(AdaptError, match=message):
            load_tensors(model.method, tensors, "here")
    assert torch.equal(model.method.ctx, before)


_COMPUTING = ("torch", "torchvision", "pillow", "open_clip_torch", "transformers", "peft", "timm", "safetensors")


def test_the_versions_of_all_libraries_that_compute_are_kept(saved: Path) -> None:
    expected = {name: version(name) for name in (*_COMPUTING, "bitsandbytes")}
    assert read_header(saved).versions == {"adapt": adapt.__version__} | expected


def test_an_extra_that_is_not_installed_has_no_version(
    model: AdaptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_bitsandbytes(name: str) -> str:
        if name == "bitsandbytes":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("adapt.formats.adapter.version", without_bitsandbytes)
    versions = read_header(model.save(tmp_path / "a.safetensors")).versions
    assert versions.keys() == {"adapt", *_COMPUTING}


def test_tensors_are_refused_where_they_are_read(saved: Path) -> None:
    rewrite(saved, _put("ctx", torch.full((4, 128), float("nan"))))
    with pytest.raises(AdaptError, match=r"'ctx' of .*a\.safetensors has values that are not finite"):
        read_tensors(saved)


def test_what_does_not_fit_is_refused_before_the_model_is_put_together(
    saved: Path, open_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapt.formats.rebuild.assemble", lambda *args: pytest.fail("it was put together"))
    refused(rewrite(saved, _put("ctx", torch.zeros(5, 128))), open_clip, r"shape \(5, 128\)")


def test_an_adapter_that_answers_questions_takes_no_class_names(tmp_path: Path) -> None:
    backbone = tiny_llms.vision_llm("llama")
    path = adapt.wrap(backbone, LoRA(rank=2, towers=("decoder",))).save(tmp_path / "a.safetensors")
    refused(
        path, backbone, "answers questions about images and has no classes: leave class_names out", class_names=["toy"]
    )


def test_parts_without_a_name_are_refused(saved: Path, open_clip: Backbone) -> None:
    rewrite(saved, _say("method", "compose"))
    refused(
        rewrite(saved, _say("config", {"methods": [{"skip": 1}, {"name": "lora"}]})),
        open_clip,
        "expected name and",
    )


def test_another_scale_than_the_models_own_is_refused(saved: Path, open_clip: Backbone) -> None:
    own = read_header(saved).logit_scale
    adapt.load(rewrite(saved, _say("logit_scale", own * (1 + 1e-6))), open_clip)
    refused(rewrite(saved, _say("logit_scale", 2 * own)), open_clip, "records the logit scale .* by hand")


def test_a_model_without_zero_shot_answers_blends_with_none(tmp_path: Path) -> None:
    backbone = tiny_llms.vision_llm("llama")
    path = adapt.wrap(backbone, LoRA(rank=2, towers=("decoder",))).save(tmp_path / "a.safetensors")
    rewrite(path, _say("answers", {"blend": 0.5, "template": ["a {}"], "temperature": 1.0}))
    refused(path, backbone, "blends its predictions with zero-shot predictions, which .* cannot make")


def test_equal_models_are_equal_files(model: AdaptedModel, tmp_path: Path) -> None:
    """In whatever order safetensors would write what the header says."""
    files = {model.save(tmp_path / f"{number}.safetensors").read_bytes() for number in range(8)}
    assert len(files) == 1
