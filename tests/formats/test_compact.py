"""Compact folders: the same logits bit for bit, without the skipped blocks' parameters on disk or in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip as open_clip_library
import pytest
import tiny_backbones
import tiny_fusion
import torch
from checks import perturb
from safetensors.torch import load_file, save_file
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.backbones.families.open_clip_models import OpenCLIPModels
from adapt.backbones.tower import Absent
from adapt.formats import COMPACT_WEIGHTS, adapter, compact

NAMES = ("goldfish", "red_panda", "sea cucumber")
DAS, LoRA = methods.DAS, methods.LoRA


def _timm_folder(folder: Path) -> str:
    """An open_clip folder whose vision tower is a ViT of timm."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}
    config = {"embed_dim": 32, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    model = open_clip_library.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return str(folder)


@pytest.fixture(params=["open_clip", "timm", "hf_clip", "hf_siglip"])
def whole(request: pytest.FixtureRequest, model_folder: Path, tmp_path: Path) -> Backbone:
    """A backbone whose format is known, of every kind that has blocks to skip."""
    make = {
        "open_clip": lambda: adapt.load_backbone(str(model_folder)),
        "timm": lambda: adapt.load_backbone(_timm_folder(tmp_path / "timm")),
        "hf_clip": lambda: tiny_backbones.backbone("hf_clip"),
        "hf_siglip": lambda: tiny_backbones.backbone("hf_siglip"),
    }
    return make[request.param]()


@pytest.fixture
def tiny(model_folder: Path) -> Backbone:
    return adapt.load_backbone(str(model_folder))


def light(backbone: Backbone, *skipped: str, parts: tuple[methods.Method, ...] = ()) -> AdaptedModel:
    das = DAS(skipped=skipped, towers=("text", "vision"))
    return perturb(adapt.wrap(backbone, methods.Compose([das, *parts]) if parts else das, NAMES)).eval()


def parameters(backbone: Backbone) -> int:
    return sum(parameter.numel() for parameter in backbone.model.parameters())


@by_turns("skipped", [("vision.1",), ("text.0", "vision.0"), ("text.1", "vision.1")])
def test_it_computes_the_same_without_the_blocks(
    whole: Backbone, images: Tensor, tmp_path: Path, skipped: tuple[str, ...]
) -> None:
    model = light(whole, *skipped)
    loaded = adapt.load(compact.export(model, tmp_path / "light"))
    assert torch.equal(loaded(images), model(images))
    assert (loaded.text_path, loaded.class_names) == (model.text_path, NAMES)
    blocks = [whole.tower(name.split(".")[0]).blocks[int(name.split(".")[1])].module for name in skipped]
    saved = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    assert parameters(whole) - parameters(loaded.backbone) == saved > 0
    written = sum(x.numel() for x in load_file(tmp_path / "light" / COMPACT_WEIGHTS).values() if x.is_floating_point())
    buffers = sum(x.numel() for x in whole.model.buffers() if x.is_floating_point())
    assert written == parameters(loaded.backbone) + buffers


@pytest.mark.parametrize(
    ("make", "skipped"),
    [(tiny_fusion.vilt, ("fusion.1",)), (tiny_fusion.bridgetower, ("text_fusion.0", "vision_fusion.1"))],
)
def test_models_that_answer_questions(make: Any, skipped: tuple[str, ...], images: Tensor, tmp_path: Path) -> None:
    backbone, towers = make(), tuple(name.split(".")[0] for name in skipped)
    model = perturb(adapt.wrap(backbone, DAS(skipped=skipped, towers=towers), ("red", "green"))).eval()
    loaded = adapt.load(compact.export(model, tmp_path / "light"))
    questions = ["what is it?"] * len(images)
    assert torch.equal(loaded(images, questions), model(images, questions))
    assert parameters(loaded.backbone) < parameters(backbone)


def test_the_file_shrinks_by_the_blocks(tiny: Backbone, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", compact.export(light(tiny, "vision.0", "text.1"), tmp_path / "light")
    tiny.export(whole, tiny.model)
    sizes = [(whole / "open_clip_model.safetensors").stat().st_size, (folder / COMPACT_WEIGHTS).stat().st_size]
    blocks = tiny.tower("vision").blocks[0].module, tiny.tower("text").blocks[1].module
    saved = 4 * sum(parameter.numel() for block in blocks for parameter in block.parameters())
    mask = 4 * tiny.model.attn_mask.numel()  # which open_clip computes when it builds the model
    assert sizes[0] - sizes[1] == pytest.approx(saved - mask, abs=4096)  # names and shapes apart
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    left = {path.name for path in folder.iterdir()}
    assert left == {adapter.NAME, COMPACT_WEIGHTS, "compact.json", "open_clip_config.json"}


def test_values_that_are_exact_in_half_precision_are_kept_so(tiny: Backbone, images: Tensor, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter.copy_(parameter.half())
    model = light(tiny, "vision.0")
    folder = compact.export(model, tmp_path / "light")
    assert {x.dtype for x in load_file(folder / COMPACT_WEIGHTS).values()} == {torch.float16}
    loaded = adapt.load(folder)
    assert loaded.backbone.dtype == torch.float32
    assert torch.equal(loaded(images), model(images))


def test_the_blocks_never_get_memory(tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, made = compact.export(light(tiny, "vision.1"), tmp_path / "light"), []

    usual = OpenCLIPModels.load_folder

    def hollow_and_kept(*arguments: Any, tensors: bool) -> Backbone:
        assert not tensors
        backbone = usual(*arguments, tensors)
        made.append(backbone.towers["vision"].blocks[1].module)
        assert all(tensor.is_meta for tensor in [*backbone.model.parameters(), *backbone.model.buffers()])
        return backbone

    monkeypatch.setattr(OpenCLIPModels, "load_folder", hollow_and_kept)
    loaded = adapt.load(folder)
    block = loaded.backbone.towers["vision"].blocks[1]
    assert isinstance(block.module, Absent)
    assert list(block.module.state_dict()) == []
    assert {parameter.untyped_storage().nbytes() for parameter in made[0].parameters()} == {4}


@pytest.mark.parametrize(
    "parts",
    [(LoRA(dropout=0),), (methods.CoOp(n_ctx=2),), (methods.CoCoOp(),), (methods.MaPLe(depth=2),)],
    ids=lambda parts: parts[0].name,
)
def test_other_parts_come_along(tiny: Backbone, images: Tensor, tmp_path: Path, parts: Any) -> None:
    model = light(tiny, "vision.1", "text.0", parts=parts)
    loaded = adapt.load(compact.export(model, tmp_path / "light"))
    assert loaded.method.config == model.method.config
    assert torch.equal(loaded(images), model(images))


def test_what_was_loaded_can_do_what_others_can(tiny: Backbone, images: Tensor, tmp_path: Path) -> None:
    model = light(tiny, "vision.0", "text.0")
    loaded = adapt.load(compact.export(model, tmp_path / "light"), class_names=["apple pie", "goldfish"])
    assert torch.equal(loaded(images), model.with_classes(["apple pie", "goldfish"])(images))
    again = adapt.load(loaded.save(tmp_path / "again.safetensors"), tiny)  # an adapter for the whole backbone
    assert torch.equal(again(images), loaded(images))
    in_double = loaded.to(torch.float64)(images.double())
    assert torch.allclose(in_double.float(), again(images), atol=1e-4)


def test_the_folder_is_no_backbone(tiny: Backbone, images: Tensor, tmp_path: Path) -> None:
    folder = compact.export(light(tiny, "vision.0"), tmp_path / "light")
    for spec in (str(folder), f"hf:{folder}"):
        with pytest.raises(AdaptError, match=r"not a complete backbone, .* were removed.*adapt\.load"):
            adapt.load_backbone(spec)
    with pytest.raises(AdaptError, match="is a compact folder, which contains its own backbone: leave backbone out"):
        adapt.load(folder, tiny)
    loaded = adapt.load(folder)
    other = adapt.wrap(loaded.backbone, LoRA(), NAMES)
    with pytest.raises(AdaptError, match=r"the block vision\.0 was removed from this compact backbone"):
        other(images)
    with pytest.raises(AdaptError, match="loaded from a compact folder: copy the folder"):
        compact.export(loaded, tmp_path / "again")


def test_what_cannot_be_cut_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    for method in (LoRA(), DAS(skip=0), DAS(skip=1)):
        with pytest.raises(AdaptError, match=f"this {method.name} adapter skips no block"):
            compact.export(adapt.wrap(tiny, method, NAMES), tmp_path / "light")
    model = light(tiny, "vision.0")
    tiny.quantization = "nf4"
    with pytest.raises(AdaptError, match="is quantised, and cannot be exported: load the backbone without quantize"):
        compact.export(model, tmp_path / "light")
    assert not (tmp_path / "light").exists()


def test_nothing_is_overwritten_and_no_part_is_left(tiny: Backbone, open_clip: Backbone, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="exists already; name a new folder"):
        compact.export(light(tiny, "vision.0"), tmp_path)
    with pytest.raises(AdaptError, match="its file format is not known"):
        compact.export(light(open_clip, "vision.0"), tmp_path / "light")
    assert list(tmp_path.iterdir()) == []


def _change(folder: Path, **tensors: Tensor | None) -> None:
    kept = load_file(folder / COMPACT_WEIGHTS)
    for name, tensor in tensors.items():
        kept.pop(name) if tensor is None else kept.update({name: tensor})
    save_file(kept, folder / COMPACT_WEIGHTS)


def _rewrite(folder: Path, **values: Any) -> None:
    path = folder / "compact.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_another_backbone_is_found_out(tiny: Backbone, tmp_path: Path) -> None:
    """The fingerprint is read off the tensors that are there, and off the record for those that are not."""
    folder = compact.export(light(tiny, "vision.0"), tmp_path / "light")
    kept = load_file(folder / COMPACT_WEIGHTS)
    _change(folder, **{name: x + 1 for name, x in kept.items() if x.dtype == torch.float32})
    with pytest.raises(AdaptError, match="same architecture, other weights"):
        adapt.load(folder)
    _change(folder, **kept)
    record = json.loads((folder / "compact.json").read_text())
    _rewrite(folder, cut={name: value + 1 for name, value in record["cut"].items()})
    with pytest.raises(AdaptError, match="same architecture, other weights"):
        adapt.load(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: _change(folder, logit_scale=None),
            r"damaged \(tensor logit_scale is missing\): export the folder again",
        ),
        (
            lambda folder: _change(folder, surprise=torch.ones(1)),
            r"damaged \(tensor surprise is unknown\): export the folder again",
        ),
        (lambda folder: _change(folder, logit_scale=torch.ones(2)), r"logit_scale has shape \(2,\); expected \(\)"),
        (lambda folder: _rewrite(folder, format=2), "has compact format 2, but this adapt reads 1: upgrade adapt"),
        (lambda folder: (folder / "compact.json").write_text("{"), r"compact\.json is damaged"),
        (lambda folder: (folder / "compact.json").write_text("{}"), r"compact\.json is damaged"),
        (lambda folder: (folder / "compact.json").unlink(), r"damaged \(compact\.json is missing\): export"),
        (lambda folder: (folder / adapter.NAME).unlink(), "there is no adapter at"),
        (lambda folder: (folder / COMPACT_WEIGHTS).write_bytes(b"x"), "is truncated"),
    ],
)
def test_a_damaged_folder(tiny: Backbone, tmp_path: Path, damage: Any, message: str) -> None:
    folder = compact.export(light(tiny, "vision.0"), tmp_path / "light")
    damage(folder)
    with pytest.raises(AdaptError, match=message):
        adapt.load(folder)


def test_another_adapter_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    folder = compact.export(light(tiny, "vision.0"), tmp_path / "light")
    light(tiny, "vision.1").save(folder / adapter.NAME)
    with pytest.raises(AdaptError, match="are not the blocks that its adapter skips"):
        adapt.load(folder)


@pytest.mark.full
def test_a_configuration_of_a_million_blocks_is_refused_before_they_are_made(tiny: Backbone, tmp_path: Path) -> None:
    folder = compact.export(light(tiny, "vision.1"), tmp_path / "light")
    configuration = folder / "open_clip_config.json"
    changed = json.loads(configuration.read_text())
    changed["model_cfg"]["vision_cfg"]["layers"] = 10**6
    configuration.write_text(json.dumps(changed))
    with pytest.raises(AdaptError, match="ask for far more than the"):
        adapt.load(folder)
