"""LoRA in peft's own layout: plain peft reads what adapt writes, and adapt reads it back."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_backbones
import tiny_natives
import torch
import transformers
from checks import contents, perturb, scaled
from hub_stand_in import Repository, StandIn
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone
from adapt.chats import Chat
from adapt.formats import peft_import, peft_layout
from adapt.formats.merge import merged_model

NAMES = ("goldfish", "red_panda", "sea cucumber")


def lora(backbone: Backbone, **config: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return perturb(adapt.wrap(backbone, adapt.methods.LoRA(**config), NAMES)).eval()


@pytest.mark.parametrize("backbone", ["open_clip", "hf_clip"], indirect=True)
@pytest.mark.parametrize("projections", ["qkv", ("out", "fc1", "fc2")], ids=str)
def test_plain_peft_gives_the_adapted_features(
    backbone: Backbone, projections: Any, images: Tensor, tmp_path: Path
) -> None:
    model = lora(backbone, projections=projections, blocks=(1, 3))
    peft_layout.export(model, tmp_path / "peft")
    copied = copy.deepcopy(backbone.model)
    plain = adapt.split_attention(copied) if hasattr(copied, "encode_image") else copied
    loaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "peft")).eval().base_model.model
    texts = backbone.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    if hasattr(loaded, "encode_image"):
        features = loaded.encode_image(images), loaded.encode_text(texts)
    else:
        features = (
            loaded.get_image_features(pixel_values=images).pooler_output,
            loaded.get_text_features(input_ids=texts).pooler_output,
        )
    expected = model.image_features(images), model.class_features()
    for value, adapted in zip(features, expected):
        assert scaled(torch.nn.functional.normalize(value, dim=-1), adapted) < 1e-5


@pytest.mark.parametrize("backbone", ["open_clip", "open_clip_timm", "hf_clip", "hf_siglip"], indirect=True)
def test_a_round_trip_keeps_every_tensor(backbone: Backbone, images: Tensor, tmp_path: Path) -> None:
    model = lora(backbone, rank=3, alpha=2.0, projections=("q", "fc1"), towers=("vision",), blocks=(0, 1))
    loaded = peft_import.load(peft_layout.export(model, tmp_path / "peft"), backbone, NAMES)
    state, expected = loaded.method.state_dict(), model.method.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert scaled(loaded(images), model(images)) < 1e-6


def test_the_plain_scaling_of_peft_is_kept(hf_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    """A folder that plain peft wrote, whose scaling is alpha / rank."""
    plain = copy.deepcopy(hf_clip.model)
    trained = peft.get_peft_model(plain, peft.LoraConfig(r=4, lora_alpha=6, target_modules=r".*\.(q|v)_proj"))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    trained.save_pretrained(tmp_path / "peft")
    model = peft_import.load(tmp_path / "peft", hf_clip, NAMES)
    expected = trained.eval().base_model.model.get_image_features(pixel_values=images).pooler_output
    assert scaled(model.image_features(images), torch.nn.functional.normalize(expected, dim=-1)) < 1e-5


@pytest.mark.parametrize(
    "kind", [{"use_dora": True}, {"use_rslora": True}, {"use_dora": True, "use_rslora": True}], ids=str
)
def test_dora_and_rslora_of_peft_are_read(
    kind: dict[str, bool], hf_clip: Backbone, images: Tensor, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": r".*\.(q_proj|v_proj|fc1)"}
    theirs = trained_by_peft(hf_clip.model, tmp_path / "peft", **settings, **kind)
    model = peft_import.load(tmp_path / "peft", hf_clip, NAMES)
    assert model.method.config.alpha == pytest.approx(5 if "use_rslora" in kind else 5 / 3**0.5)
    expected = theirs.get_image_features(pixel_values=images).pooler_output
    assert scaled(model.image_features(images), torch.nn.functional.normalize(expected, dim=-1)) < 1e-5


def comes_back(model: Any, folder: Path) -> bool:
    """Whether the adapter in peft's `folder` has each tensor and setting of `model`."""
    back = adapt.load(folder, model.backbone)
    state, expected = back.method.state_dict(), model.method.state_dict()
    assert (back.method.config, state.keys()) == (model.method.config, expected.keys())
    return all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
def test_what_is_written_has_the_scaling_that_all_read(
    options: dict[str, Any], hf_clip: Backbone, images: Tensor, tmp_path: Path
) -> None:
    """`lora_alpha` over `r`, by which peft alone gives the same features; and it all comes back."""
    model = lora(hf_clip, rank=3, alpha=5.0, projections=("q", "fc1"), options=options)
    folder = peft_layout.export(model, tmp_path / "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["use_rslora"]
    assert config["lora_alpha"] / config["r"] == pytest.approx(5 / 3**0.5)
    assert config["use_dora"] == bool(options)
    alone = peft.PeftModel.from_pretrained(copy.deepcopy(hf_clip.model), str(folder)).eval().base_model.model
    expected = alone.get_image_features(pixel_values=images).pooler_output
    assert scaled(model.image_features(images), torch.nn.functional.normalize(expected, dim=-1)) < 1e-5
    assert comes_back(model, folder)


def a_chat(backbone: Any, model: Any) -> Tensor:
    """Logits `(1, t, v)` of a conversation about a picture, by a model of the kind of the backbone's."""
    noise = torch.randint(0, 256, (56, 56, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    rows = backbone.rows([Chat.about("what is it?")], [[Image.fromarray(noise.numpy())]], asks=True)
    with torch.no_grad():
        logits: Tensor = model(**rows.inputs).logits
    return logits


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("projections", ["qkv", ("q", "v", "out", "fc1")], ids=str)
def test_a_fused_layer_is_one_to_peft(projections: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """Each of q, k and v has factors of its own; peft's one pair of `qkv` holds them side by side."""
    backbone = tiny_natives.backbone("qwen2_vl")
    torch.manual_seed(0)
    settings = {"rank": 2, "alpha": 3.0, "projections": projections, "towers": ("vision",), "options": options}
    model = perturb(adapt.wrap(backbone, adapt.methods.LoRA(**settings))).eval()
    folder = peft_layout.export(model, tmp_path / "peft")
    tensors = load_file(folder / "adapter_model.safetensors")
    layer = "base_model.model.model.visual.blocks.0.attn.qkv"
    assert tensors[f"{layer}.lora_A.weight"].shape[0] == tensors[f"{layer}.lora_B.weight"].shape[1] == 6
    alone = peft.PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folder)).eval().base_model.model
    logits = a_chat(backbone, alone)
    assert scaled(logits, a_chat(backbone, merged_model(model))) < 1e-5
    assert scaled(logits, a_chat(backbone, backbone.model)) > 1e-3
    assert comes_back(model, folder)


def test_a_damaged_fused_layer_is_refused(tmp_path: Path) -> None:
    backbone = tiny_natives.backbone("qwen2_vl")
    trained_by_peft(backbone.model, tmp_path / "peft", r=2, target_modules=r".*visual.*qkv")
    file, config = tmp_path / "peft" / "adapter_model.safetensors", tmp_path / "peft" / "adapter_config.json"
    tensors = load_file(file)
    name = next(each for each in tensors if "lora_B" in each)
    save_file({**tensors, name: tensors[name].flatten()}, file, {"format": "pt"})
    with pytest.raises(AdaptError, match=r"peft is damaged: .*lora_B.weight has the shape \(\d+,\); fetch it again"):
        adapt.load(tmp_path / "peft", backbone)
    save_file({**tensors, name: tensors[name][:5]}, file, {"format": "pt"})
    with pytest.raises(AdaptError, match="lora_B"):
        adapt.load(tmp_path / "peft", backbone)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 0}))
    with pytest.raises(AdaptError, match="r is 0"):
        adapt.load(tmp_path / "peft", backbone)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("targets", [r".*visual.*(qkv|fc1)", "all-linear"])
def test_one_pair_of_pefts_on_a_fused_layer_is_read(targets: str, use_dora: bool, tmp_path: Path) -> None:
    backbone = tiny_natives.backbone("qwen2_vl")
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 3, "target_modules": targets, "use_dora": use_dora}
    theirs = trained_by_peft(backbone.model, tmp_path / "peft", **settings)
    model = adapt.load(tmp_path / "peft", backbone)
    down = [model.method.state_dict()[f"vision.0.{letter}.lora_A.weight"] for letter in "qkv"]
    assert torch.equal(down[0], down[1])
    assert torch.equal(down[0], down[2])
    assert scaled(a_chat(backbone, merged_model(model)), a_chat(backbone, theirs)) < 1e-5


def test_only_lora_and_dora_have_the_layout(open_clip: Backbone, tmp_path: Path) -> None:
    for method in (adapt.methods.CoOp(n_ctx=2), adapt.methods.LoRA(tuner="loha")):
        with pytest.raises(AdaptError, match="only LoRA and DoRA can be written in peft's layout"):
            peft_layout.export(adapt.wrap(open_clip, method, NAMES), tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_folder_without_a_config(open_clip: Backbone, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"has no adapter_config.json"):
        peft_import.load(tmp_path, open_clip, NAMES)


@pytest.mark.parametrize("change", [{"peft_type": "LOHA"}, {"fan_in_fan_out": True}])
def test_another_peft_method_is_refused(change: dict[str, Any], open_clip: Backbone, tmp_path: Path) -> None:
    folder = peft_layout.export(lora(open_clip), tmp_path / "peft")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(AdaptError, match=r"only LoRA .*can be imported"):
        peft_import.load(folder, open_clip, NAMES)


def test_modules_of_another_model_are_named(open_clip: Backbone, tmp_path: Path) -> None:
    folder = peft_layout.export(lora(tiny_backbones.backbone("hf_clip")), tmp_path / "peft")
    with pytest.raises(AdaptError, match=r"adapts 'text_model.encoder.*, which is not a projection of CLIP"):
        peft_import.load(folder, open_clip, NAMES)


def test_scale_and_template_come_back_too(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    """Of a folder that plain peft wrote, the scale is the backbone's own."""
    open_clip.model.logit_scale.data.fill_(math.log(42.0))
    model = adapt.wrap(open_clip, adapt.methods.LoRA(logit_scale=None, template="a drawing of a {}."), NAMES).eval()
    folder = peft_layout.export(perturb(model), tmp_path / "peft")
    back = peft_import.load(folder, open_clip, NAMES)
    assert torch.allclose(back(images), model(images), atol=1e-4)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    assert peft_import.load(folder, open_clip, NAMES).method.config.logit_scale is None


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """transformers' CLIP in its own folder format."""
    folder = tmp_path / "clip"
    tiny_backbones.hf_clip_model().eval().save_pretrained(folder)
    tiny_backbones.hf_clip_processor().save_pretrained(folder)
    return folder


def without_adapt(code: str, folder: Path, **variables: str) -> dict[str, Tensor]:
    """What a fresh process, in which adapt cannot be imported, saves to `found.safetensors`."""
    barred = "import sys\nsys.modules['adapt'] = None\n"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | variables
    command = [sys.executable, "-c", barred + code]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return load_file(folder / "found.safetensors")


FEATURES = """
import torch
from peft import {kind}
from safetensors.torch import load_file, save_file
inputs = load_file("inputs.safetensors")
with torch.no_grad():
    model = {kind}.from_pretrained({place!r}).eval()
    image = model.get_image_features(pixel_values=inputs["images"]).pooler_output
    text = model.get_text_features(input_ids=inputs["texts"]).pooler_output
save_file({{"image": image, "text": text}}, "found.safetensors")
"""


def inputs_of(backbone: Backbone, images: Tensor, folder: Path) -> None:
    texts = backbone.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    save_file({"images": images, "texts": texts}, folder / "inputs.safetensors")


def agree(found: dict[str, Tensor], model: AdaptedModel, images: Tensor) -> None:
    for name, expected in (("image", model.image_features(images)), ("text", model.class_features())):
        assert scaled(torch.nn.functional.normalize(found[name], dim=-1), expected) < 1e-5


@pytest.mark.full
@by_turns("kind", ["AutoPeftModel", "AutoPeftModelForFeatureExtraction"])
def test_peft_finds_the_backbone_by_itself(kind: str, clip_folder: Path, images: Tensor, tmp_path: Path) -> None:
    model = lora(adapt.load_backbone(f"hf:{clip_folder}"), rank=3, projections=("q", "v", "fc1"))
    peft_layout.export(model, tmp_path / "peft")
    inputs_of(model.backbone, images, tmp_path)
    agree(without_adapt(FEATURES.format(kind=kind, place=str(tmp_path / "peft")), tmp_path), model, images)


@pytest.mark.full
def test_the_snippet_of_the_card_classifies(clip_folder: Path, tmp_path: Path) -> None:
    backbone = adapt.load_backbone(f"hf:{clip_folder}")
    model = lora(backbone, template="a drawing of a {}.", logit_scale=42.0)
    peft_layout.export(model, tmp_path / "peft")
    noise = torch.randint(0, 256, (40, 56, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "photo.png")
    card = (tmp_path / "peft" / "README.md").read_text(encoding="utf-8")
    snippet = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[1]
    saved = '\nfrom safetensors.torch import save_file\nsave_file({"p": probabilities}, "found.safetensors")'
    found = without_adapt(snippet + saved, tmp_path)["p"][0]
    expected = dict(model.predict(str(tmp_path / "photo.png"))[0].top)
    assert dict(zip(NAMES, found.tolist())) == pytest.approx(expected, abs=1e-4)


@pytest.mark.full
def test_what_adapt_wrote_tells_backbone_and_classes(clip_folder: Path, images: Tensor, tmp_path: Path) -> None:
    model = lora(adapt.load_backbone(f"hf:{clip_folder}"))
    loaded = adapt.load(peft_layout.export(model, tmp_path / "peft"))
    assert (loaded.backbone.name, loaded.class_names) == (f"hf:{clip_folder}", NAMES)
    assert torch.equal(loaded(images), model(images))
    assert adapt.load(tmp_path / "peft", class_names=["sky"]).class_names == ("sky",)


def trained_by_peft(model: Any, folder: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    trained = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    trained.save_pretrained(folder)
    return trained.eval().base_model.model


def test_what_peft_wrote_names_its_backbone(clip_folder: Path, images: Tensor, tmp_path: Path) -> None:
    base = transformers.CLIPModel.from_pretrained(clip_folder)
    theirs = trained_by_peft(base, tmp_path / "peft", r=4, target_modules=["q_proj", "v_proj"])
    with pytest.raises(AdaptError, match="records no class names: give class names"):
        adapt.load(tmp_path / "peft")
    model = adapt.load(tmp_path / "peft", class_names=NAMES)
    assert model.backbone.name == f"hf:{clip_folder}"
    expected = theirs.get_image_features(pixel_values=images).pooler_output
    assert scaled(model.image_features(images), torch.nn.functional.normalize(expected, dim=-1)) < 1e-5


def test_a_vision_tower_that_peft_adapted_alone(clip_folder: Path, images: Tensor, tmp_path: Path) -> None:
    """`CLIPVisionModel` names its modules without the tower."""
    alone = transformers.CLIPVisionModel.from_pretrained(clip_folder)
    theirs = trained_by_peft(alone, tmp_path / "peft", r=2, target_modules=["q_proj", "out_proj"])
    model = adapt.load(tmp_path / "peft", adapt.load_backbone(f"hf:{clip_folder}"), NAMES)
    assert model.method.config.towers == ("vision",)
    projected = model.backbone.model.visual_projection(theirs(pixel_values=images).pooler_output)
    assert scaled(model.image_features(images), torch.nn.functional.normalize(projected, dim=-1)) < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank_pattern": {"q_proj": 2}}, "a LoRA with rank_pattern = "),
        ({"bias": "all"}, "a LoRA with bias = 'all'"),
        ({"modules_to_save": ["visual_projection"]}, "a LoRA with modules_to_save"),
        ({"a_setting_of_tomorrow": 3}, "a LoRA with a_setting_of_tomorrow = 3"),
        ({"init_lora_weights": "pissa"}, "was trained from weights that init_lora_weights = 'pissa' had changed"),
        ({"revision": "v2"}, "names revision 'v2' of"),
        ({"base_model_name_or_path": None}, "names no backbone"),
    ],
)
def test_settings_that_change_the_meaning_are_refused(
    change: dict[str, Any], words: str, clip_folder: Path, tmp_path: Path
) -> None:
    base = transformers.CLIPModel.from_pretrained(clip_folder)
    trained_by_peft(base, tmp_path / "peft", r=2, target_modules=["q_proj"])
    config = tmp_path / "peft" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(AdaptError, match=words):
        adapt.load(tmp_path / "peft", class_names=NAMES)


def test_a_pickle_of_pefts_is_not_read(hf_clip: Backbone, tmp_path: Path) -> None:
    folder = peft_layout.export(lora(hf_clip), tmp_path / "peft")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdaptError, match=r"has a pickle, adapter_model\.bin, which is not read"):
        adapt.load(folder, hf_clip)


@pytest.mark.full
def test_a_folder_on_the_hub_loads_with_peft_alone(
    hub: StandIn, clip_folder: Path, images: Tensor, tmp_path: Path
) -> None:
    """Base model and adapter are both on the hub; the process has neither adapt nor a file of either."""
    base = hub.repositories["org/clip"] = Repository()
    base.add(contents(clip_folder))
    model = lora(adapt.load_backbone("hf:org/clip"), rank=3)
    model.push_to_hub("user/lora")
    files = hub.repositories["user/lora"].files
    assert set(files) == {"adapter.safetensors", "adapter_config.json", "adapter_model.safetensors", "README.md"}
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.base_model_relation) == (["org/clip"], "adapter")
    inputs_of(model.backbone, images, tmp_path)
    elsewhere = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    code = FEATURES.format(kind="AutoPeftModel", place="user/lora")
    agree(without_adapt(code, tmp_path, **elsewhere, HF_HUB_DISABLE_XET="1"), model, images)
    theirs = {name: content for name, content in files.items() if name != "adapter.safetensors"}
    hub.repositories["user/peft"] = Repository()
    hub.repositories["user/peft"].add(theirs)
    assert torch.equal(adapt.load("hf://user/peft")(images), model(images))


def test_a_decoder_goes_there_and_back_too(tmp_path: Path) -> None:
    model = adapt.wrap(adapt.load_backbone("mini-clip+mini-lm"), adapt.methods.LoRA(towers=("decoder",)))
    folder = peft_layout.export(perturb(model), tmp_path / "peft")
    assert 'question="what is it?"' in (folder / "README.md").read_text(encoding="utf-8")
    state, expected = adapt.load(folder).method.state_dict(), model.method.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def changed_note(folder: Path, **changes: Any) -> None:
    """Puts `changes` into what adapt noted beside the tensors; None takes a key out."""
    file = folder / "adapter_model.safetensors"
    with safe_open(file, "pt") as opened:
        noted = json.loads(opened.metadata()["adapt"])
    kept = {key: value for key, value in (noted | changes).items() if value is not None or key not in changes}
    save_file(load_file(file), file, {"format": "pt", "adapt": json.dumps(kept)})


def test_quantisation_comes_back(model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = lora(adapt.load_backbone(str(model_folder), quantize="int8"), projections=("q", "fc1"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    folder = peft_layout.export(model, tmp_path / "peft")
    back = adapt.load(folder)
    assert back.backbone.quantization == "int8"
    assert torch.equal(back(images), model(images))
    assert not caplog.records
    adapt.load(folder, adapt.load_backbone(str(model_folder)))
    (record,) = caplog.records
    assert "was trained on a backbone with int8, but the given backbone has no quantisation" in record.getMessage()


def test_how_a_decoder_is_asked_comes_back(tmp_path: Path) -> None:
    backbone = adapt.load_backbone("mini-clip+mini-lm")
    backbone.prompt, backbone.patch_block = "<image>\nQ: {}\nA:", -2
    model = adapt.wrap(backbone, adapt.methods.LoRA(towers=("decoder",)))
    back = adapt.load(peft_layout.export(perturb(model), tmp_path / "peft"))
    assert (back.backbone.prompt, back.backbone.patch_block) == (backbone.prompt, -2)
    with pytest.raises(AdaptError, match=r"peft was trained with the preprocessing .*'patch_block': -2"):
        adapt.load(tmp_path / "peft", adapt.load_backbone("mini-clip+mini-lm"))


def test_another_preprocessing_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = peft_layout.export(lora(adapt.load_backbone(str(model_folder))), tmp_path / "peft")
    backbone = adapt.load_backbone(str(model_folder))
    backbone.preprocess = replace(backbone.preprocess, interpolation="bilinear")
    with pytest.raises(AdaptError, match=r"was trained with the preprocessing .*'bicubic'"):
        adapt.load(folder, backbone)


@pytest.mark.parametrize(
    "change",
    [
        {"quantization": "nf3"},
        {"preprocess": 3},
        {"preprocess": {"size": 0, "turned": False}},
        {"preprocess": {"size": 8}},
        {"quantization": None},  # left out
    ],
    ids=str,
)
def test_a_damaged_note_is_refused(change: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    folder = peft_layout.export(lora(adapt.load_backbone(str(model_folder))), tmp_path / "peft")
    changed_note(folder, **change)
    with pytest.raises(
        AdaptError, match=r"adapter_model\.safetensors is damaged .*the key adapt of its header has no valid settings"
    ):
        adapt.load(folder)
