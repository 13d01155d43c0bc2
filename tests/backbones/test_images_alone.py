"""Backbones of images alone by their names, folders and objects; the tests of every method are in tests/contract."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import tiny_llms
import tiny_vision
import torch
import transformers
from click.testing import CliRunner
from timm.models import save_for_hf

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.backbones.vision_llm import VisionLLM
from adapt.cli import main
from adapt.engine import vision
from adapt.formats import peft_layout
from adapt.formats.export.tracing import traced

PIXELS = torch.randn(2, 3, tiny_vision.SIZE, tiny_vision.SIZE, generator=torch.Generator().manual_seed(1))
NAMES = ("cat", "dog")


def saved(kind: str, folder: Path) -> Path:
    """A model and its image processor, as transformers saves them."""
    tiny_vision.model(kind).save_pretrained(folder)
    tiny_vision.image_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit", "convnext", "radio", "siglip"])
def test_a_folder_of_transformers_loads(kind: str, tmp_path: Path) -> None:
    backbone = adapt.load_backbone(f"hf:{saved(kind, tmp_path)}", "cpu")
    assert (backbone.kind, backbone.embed_dim) == ("vision encoder", 64 if kind == "radio" else 32)
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(PIXELS), tiny_vision.backbone(kind).encode_image(PIXELS))


def test_an_adapter_loads_with_the_backbone_that_it_names(tmp_path: Path) -> None:
    backbone = adapt.load_backbone(str(saved("dinov2", tmp_path / "eyes")), "cpu")
    model = adapt.wrap(backbone, methods.LoRA(towers=["vision"]), NAMES).eval()
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), device="cpu")
    assert torch.equal(loaded(PIXELS), model(PIXELS))


def test_a_folder_of_timm_loads_and_pickles_are_not_read(tmp_path: Path) -> None:
    net = tiny_vision.model("timm_vit")
    save_for_hf(net, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"] = {"img_size": tiny_vision.SIZE, "reg_tokens": 2, "init_values": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = adapt.load_backbone(f"timm:{tmp_path}", "cpu")
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(PIXELS), net(PIXELS))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(
        AdaptError, match=r"has no model.safetensors: give .* timm:FOLDER, which timm.models.save_for_hf"
    ):
        adapt.load_backbone(f"timm:{tmp_path}", "cpu")


def test_the_image_half_of_a_clip_has_its_features_and_no_texts() -> None:
    whole, half = adapt.load_backbone("mini-clip", "cpu"), adapt.load_backbone("vision:mini-clip", "cpu")
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(half.encode_image(pixels), whole.encode_image(pixels))
    assert list(half.towers) == ["vision"]
    with pytest.raises(AdaptError, match="mini-vilt is a fusion encoder; expected a CLIP or SigLIP after vision:"):
        adapt.load_backbone("vision:mini-vilt", "cpu")


def test_positions_with_the_offset_of_dinov2_are_another_model(tmp_path: Path) -> None:
    """Features differ at other sizes than that of the weights, so that an adapter does not pass for the other's."""
    folder = saved("dinov2", tmp_path / "dino")
    plain, published = (adapt.load_backbone(f"{reading}hf:{folder}", "cpu") for reading in ("", "offset:"))
    assert isinstance(plain, VisionEncoder)
    assert isinstance(published, VisionEncoder)
    larger = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(published.encode_image(PIXELS), plain.encode_image(PIXELS))
        features = published.encode_image(larger)
        assert (features - plain.encode_image(larger)).abs().max() > 1e-4
        assert torch.equal(copy.deepcopy(published).encode_image(larger), features)
    adapt.wrap(published, methods.LinearProbe(strength=1.0), NAMES).save(tmp_path / "a.safetensors")
    assert adapt.load(tmp_path / "a.safetensors", device="cpu").backbone.name == f"offset:hf:{folder}"
    with pytest.raises(AdaptError, match=r"another configuration: embeddings\.position_offset"):
        adapt.load(tmp_path / "a.safetensors", plain)
    with pytest.raises(AdaptError, match="mini-clip is no DINOv2 of transformers; expected hf:NAME of one after"):
        adapt.load_backbone("offset:mini-clip", "cpu")


def test_images_are_prepared_in_the_size_of_the_processor() -> None:
    """DINOv2's weights are of 518 pixels, and its processor crops 224 of 256."""
    crop = {"height": 24, "width": 24}
    processor = transformers.BitImageProcessor(size={"shortest_edge": 28}, crop_size=crop, do_center_crop=True)
    backbone = Backbone.from_transformers(tiny_vision.model("dinov2"), processor)
    assert (backbone.preprocess.size, backbone.preprocess.edge) == (24, 28)
    processor.crop_size = {"height": 24, "width": 32}
    with pytest.raises(AdaptError, match=r"makes images of the size .*; expected a square"):
        Backbone.from_transformers(tiny_vision.model("dinov2"), processor)


def test_timms_own_evaluation_decides_how_images_are_prepared() -> None:
    backbone = tiny_vision.backbone("timm_convnext")
    assert (backbone.preprocess.size, backbone.preprocess.edge) == (160, int(160 / 0.95))
    assert backbone.preprocess.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (torch.nn.Linear(2, 2), "from_timm got a Linear; expected the result of timm.create_model"),
        (timm.create_model("test_vit"), "ends in a classifier of 1000 classes; expected features"),
    ],
)
def test_what_is_no_image_model_of_timm_is_refused(net: torch.nn.Module, reason: str) -> None:
    with pytest.raises(AdaptError, match=reason):
        Backbone.from_timm(net)


def test_an_image_processor_is_needed() -> None:
    with pytest.raises(AdaptError, match="got no processor for the Dinov2Model, but needs its image processor"):
        Backbone.from_transformers(tiny_vision.model("dinov2"), None)


def test_two_vision_encoders_are_joined_side_by_side() -> None:
    joined = adapt.load_backbone("vision:mini-clip&vision:mini-clip-half", "cpu")
    assert (joined.kind, joined.towers) == ("vision encoder", {})
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        parts = joined.encode_image(pixels).split(joined.both.widths, dim=-1)
        for name, part in zip(("mini-clip", "mini-clip-half"), parts, strict=True):
            own = adapt.load_backbone(name, "cpu").encode_image(pixels)
            torch.testing.assert_close(part, torch.nn.functional.normalize(own, dim=-1))


@pytest.mark.parametrize(("kind", "prefix"), [("dinov2_with_registers", 3), ("dinov3_vit", 3), ("ijepa", 0)])
def test_they_are_eyes_of_a_language_model_that_reads_patches_alone(kind: str, prefix: int) -> None:
    backbone = VisionLLM(tiny_vision.backbone(kind), tiny_llms.llm("llama"), tiny_llms.tokenizer())
    patches = (tiny_vision.SIZE // (8 if kind.startswith("dinov2") else 16)) ** 2
    assert (backbone.first_patch, backbone.patch_shape()) == (prefix, (patches, 32))
    model = adapt.wrap(backbone, methods.Projector(kind="linear")).eval()
    assert len(model.predict(torch.zeros(3, tiny_vision.SIZE, tiny_vision.SIZE), question="what is it ?")) == 1


def test_a_classifiers_vit_loads_without_its_head_and_without_a_pooler(tmp_path: Path) -> None:
    """A classifier has no pooler; what is read is the class token."""
    vit = tiny_vision.model("vit")
    classifier = transformers.ViTForImageClassification(vit.config).eval()
    classifier.vit.load_state_dict({key: x for key, x in vit.state_dict().items() if not key.startswith("pooler")})
    classifier.save_pretrained(tmp_path)
    tiny_vision.image_processor().save_pretrained(tmp_path)
    backbone = adapt.load_backbone(str(tmp_path), "cpu")
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(PIXELS), tiny_vision.backbone("vit").encode_image(PIXELS))
    with pytest.raises(AdaptError, match="got a ViTForImageClassification; expected ViTModel"):
        Backbone.from_transformers(classifier, tiny_vision.image_processor())


def test_clips_own_projection_is_kept(tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(**tiny_vision.PLAIN, projection_dim=16)
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    tiny_vision.image_processor().save_pretrained(tmp_path)
    backbone = adapt.load_backbone(str(tmp_path), "cpu")
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(PIXELS), model(pixel_values=PIXELS).image_embeds)
        assert vision.reason_against(backbone) is None
        torch.testing.assert_close(vision.encode(backbone, PIXELS, []), backbone.encode_image(PIXELS))


def test_a_processor_of_another_size_is_refused_where_positions_have_one() -> None:
    size = {"height": 48, "width": 48}
    with pytest.raises(AdaptError, match="makes images of 48 pixels, but this ViTModel reads 32"):
        Backbone.from_transformers(tiny_vision.model("vit"), transformers.ViTImageProcessor(size=size))


def test_how_the_second_model_prepares_images_belongs_to_a_joined_backbone(tmp_path: Path) -> None:
    folder = saved("dinov2", tmp_path / "dino")
    name = f"vision:mini-clip&{folder}"
    before = adapt.load_backbone(name, "cpu")
    model = adapt.wrap(before, methods.LinearProbe(strength=1.0), NAMES)
    model.save(tmp_path / "a.safetensors")
    adapt.load(tmp_path / "a.safetensors", device="cpu")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.2, 0.2, 0.2]}))
    assert adapt.load_backbone(name, "cpu").content() != before.content()
    with pytest.raises(AdaptError, match=r"a\.safetensors"):
        adapt.load(tmp_path / "a.safetensors", device="cpu")


def test_three_models_are_not_joined() -> None:
    with pytest.raises(AdaptError, match="names more than two models: expected FIRST&SECOND"):
        adapt.load_backbone("mini-clip&vision:mini-clip&vision:mini-clip-half", "cpu")


@pytest.mark.parametrize("kind", ["linear_probe", "knn", "lora"])
def test_their_logits_are_one_graph(kind: str) -> None:
    settings: dict[str, Any] = {"knn": {"rows": 6}, "lora": {"towers": ["vision"]}}.get(kind, {})
    model = adapt.wrap(tiny_vision.backbone("dinov2"), methods.find(kind)(**settings), NAMES).eval()
    graph = traced(model).module()
    torch.testing.assert_close(graph(torch.cat([PIXELS, PIXELS])), model(torch.cat([PIXELS, PIXELS])))


def lora(value: float) -> adapt.VisionModel:
    model = adapt.wrap(tiny_vision.backbone("dinov2"), methods.LoRA(towers=["vision"]), NAMES)
    model.method.classifier.weight.data.fill_(value)
    return model


def test_class_vectors_are_averaged_in_a_soup_and_have_no_place_in_pefts_layout(tmp_path: Path) -> None:
    paths = [lora(value).save(tmp_path / f"{value}.safetensors") for value in (1.0, 3.0)]
    mixed = adapt.soup(paths, backbone=tiny_vision.backbone("dinov2"))
    assert torch.equal(mixed.method.classifier.weight, torch.full((2, 32), 2.0))
    with pytest.raises(AdaptError, match="no place for the class vectors that this lora on Dinov2Model"):
        peft_layout.export(lora(1.0), tmp_path / "peft")


@pytest.mark.parametrize(("protocol", "more"), [("base-to-new", ()), ("domain-generalisation", ("--to", "emoji"))])
def test_protocols_of_other_classes_are_refused_before_training(
    protocol: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    result = CliRunner().invoke(main, [protocol, "lora/vision", "--data", "emoji", "--out", out, *more])
    assert "vision:mini-clip knows classes by their training images" in result.output
