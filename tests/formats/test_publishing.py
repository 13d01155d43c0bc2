"""Adapters on the hub, against a stand-in of its HTTP interface."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import hub_stand_in
import pytest
import torch
from checks import contents, perturb
from hub_stand_in import Repository, StandIn
from huggingface_hub import ModelCard, constants
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError
from adapt.formats import publishing
from adapt.loading import located

NAMES = ("goldfish", "red_panda", "sea cucumber")


@pytest.fixture
def model(model_folder: Path) -> AdaptedModel:
    return made(model_folder)


def made(model_folder: Path, **config: Any) -> AdaptedModel:
    backbone = adapt.load_backbone(str(model_folder))
    return perturb(adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=2, **config), NAMES)).eval()


def test_there_and_back(hub: StandIn, model: AdaptedModel, images: Tensor) -> None:
    assert model.push_to_hub("user/coop", message="first") == f"{hub.address}/user/coop"
    assert hub.messages == ["first"]
    assert set(hub.repositories["user/coop"].files) == {"adapter.safetensors", "README.md"}
    for name in ("hf://user/coop", Path("hf://user/coop")):  # a Path folds the slashes
        loaded = adapt.load(name)
        assert torch.equal(loaded.method.ctx, model.method.ctx)
        assert torch.equal(loaded(images), model(images))


def test_a_file_goes_there_and_back_bit_for_bit(hub: StandIn, model: AdaptedModel, tmp_path: Path) -> None:
    file = model.save(tmp_path / "adapter.safetensors")
    publishing.push(model, "hf://user/coop", file=file)
    assert located("hf://user/coop").read_bytes() == file.read_bytes()
    assert hub.repositories["user/coop"].files["adapter.safetensors"] == file.read_bytes()


def test_an_earlier_adapter_stays_at_its_commit(hub: StandIn, model_folder: Path) -> None:
    first, second = made(model_folder), made(model_folder, class_position="front")
    first.push_to_hub("user/coop")
    commit = hub.repositories["user/coop"].head
    second.push_to_hub("user/coop")
    assert adapt.load("hf://user/coop").method.config.class_position == "front"
    assert adapt.load(f"hf://user/coop@{commit}").method.config.class_position == "end"


def test_files_of_ours_that_are_stale_go_and_others_stay(hub: StandIn, model: AdaptedModel) -> None:
    old = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "notes.md": b"mine", "README.md": b"old"}
    hub.repositories["user/coop"] = Repository()
    hub.repositories["user/coop"].add(old)
    model.push_to_hub("user/coop")
    assert set(hub.repositories["user/coop"].files) == {"adapter.safetensors", "README.md", "notes.md"}


def test_no_pickle_is_ever_fetched(hub: StandIn, model: AdaptedModel, tmp_path: Path) -> None:
    model.push_to_hub("user/coop")
    repository = hub.repositories["user/coop"]
    pickles = ("adapter_model.bin", "pytorch_model.bin", "training_args.bin", "optimizer.pt", "x.pkl")
    repository.add(repository.files | dict.fromkeys(pickles, b"pickle"))
    hub.requests.clear()
    adapt.load("hf://user/coop")
    assert not [request for request in hub.requests for name in pickles if name in request]
    assert {Path(name).name for name in contents(tmp_path / "hub") if "/snapshots/" in name} == {
        "adapter.safetensors", "README.md",
    }  # fmt: skip


def test_from_the_cache_without_a_network(hub: StandIn, model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.push_to_hub("user/coop")
    adapt.load("hf://user/coop")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert adapt.load("hf://user/coop").class_names == NAMES
    with pytest.raises(
        AdaptError, match=r"hf://user/other is not in the hub's local cache, and HF_HUB_OFFLINE forbids"
    ):
        adapt.load("hf://user/other")
    with pytest.raises(AdaptError, match="HF_HUB_OFFLINE forbids asking the hub: unset it"):
        model.push_to_hub("user/coop")
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert adapt.load("hf://user/coop").class_names == NAMES
    with pytest.raises(
        AdaptError, match=r"user/other is not in the hub's local cache, and the hub does not answer at http://127"
    ):
        adapt.load("hf://user/other")
    with pytest.raises(AdaptError, match="user/coop cannot be reached: the hub does not answer at"):
        model.push_to_hub("user/coop")


def test_a_private_repository_needs_a_token(hub: StandIn, model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.push_to_hub("user/coop", private=True)
    assert hub.repositories["user/coop"].private
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(AdaptError, match=r"no repository user/coop, or it is private: .* \(`hf auth login`, or the"):
        adapt.load("hf://user/coop")
    with pytest.raises(
        AdaptError, match=r"the hub refuses the request for hf://user/coop: .*give a token with write access"
    ):
        model.push_to_hub("user/coop")
    with pytest.raises(AdaptError, match="the hub refuses the request for "):
        model.push_to_hub("another/coop", token=hub_stand_in.TOKEN)
    assert model.push_to_hub("user/coop", token=hub_stand_in.TOKEN)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AdaptError, match="no repository user/coop, or it is private"):
        adapt.load("hf://user/coop")
    with pytest.raises(AdaptError, match="give a token with write access"):
        model.push_to_hub("user/new")


def test_refusals_of_the_hub(hub: StandIn, model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.push_to_hub("user/coop")
    with pytest.raises(AdaptError, match="user/coop has no revision 'v2': give one of its branches"):
        adapt.load("hf://user/coop@v2")
    hub.repositories["user/empty"] = Repository()
    with pytest.raises(
        AdaptError,
        match=r"hf://user/empty contains no adapter; expected the file adapter\.safetensors, or peft's files adapter",
    ):
        adapt.load("hf://user/empty")
    hub.refused_card = '"license" must be one of a list'
    with pytest.raises(AdaptError, match=r"user/coop: Invalid metadata in README\.md\. - \"license\" must be one"):
        model.push_to_hub("user/coop", license="mine")
    hub.repositories["user/coop"].gated = True
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AdaptError, match="hf://user/coop is gated: request access on its hub page"):
        adapt.load("hf://user/coop")


def test_a_hub_that_is_down(hub: StandIn, model: AdaptedModel) -> None:
    model.push_to_hub("user/coop")
    adapt.load("hf://user/coop")
    hub.down = True
    assert adapt.load("hf://user/coop").class_names == NAMES  # from the cache
    with pytest.raises(
        AdaptError,
        match="user/other is not in the hub's local cache, and the hub refuses the download: We are working on it",
    ):
        adapt.load("hf://user/other")
    with pytest.raises(AdaptError, match="the hub refuses the request for hf://user/coop: We are working on it"):
        model.push_to_hub("user/coop")


@pytest.fixture
def in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library writes 64 bytes at a time, and tries again at once."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.usefixtures("in_small_parts")
def test_a_download_that_breaks_off_goes_on(hub: StandIn, model: AdaptedModel) -> None:
    model.push_to_hub("user/coop")
    half = len(hub.repositories["user/coop"].files["adapter.safetensors"]) // 2
    hub.breaks = 2
    assert torch.equal(adapt.load("hf://user/coop").method.ctx, model.method.ctx)
    whole_parts = half // 64 * 64
    assert hub.ranges == ["", f"bytes={whole_parts}-", f"bytes={whole_parts}-"]


@pytest.mark.usefixtures("in_small_parts")
def test_a_download_that_never_ends_is_said_and_leaves_no_half_file(hub: StandIn, model: AdaptedModel) -> None:
    model.push_to_hub("user/coop")
    hub.breaks = 1000
    with pytest.raises(AdaptError, match="hf://user/coop"):
        adapt.load("hf://user/coop")
    assert not [*Path(constants.HF_HUB_CACHE).rglob("adapter.safetensors")]
    hub.breaks = 0
    assert torch.equal(adapt.load("hf://user/coop").method.ctx, model.method.ctx)


@pytest.mark.usefixtures("in_small_parts")
def test_an_upload_that_breaks_off_changes_nothing(hub: StandIn, model: AdaptedModel, model_folder: Path) -> None:
    model.push_to_hub("user/coop")
    before = hub.repositories["user/coop"].head
    other = made(model_folder, class_position="front")
    hub.breaks = 1000
    with pytest.raises(AdaptError, match="hf://user/coop"):
        other.push_to_hub("user/coop")
    assert hub.repositories["user/coop"].head == before
    hub.breaks = 0
    other.push_to_hub("user/coop")
    assert adapt.load("hf://user/coop").method.config.class_position == "front"


@pytest.mark.parametrize("name", ["coop", "user/coop/file", "user/", "../coop", "user/coop@", "user/a b", ""])
def test_other_names_name_no_repository(name: str, hub: StandIn, model: AdaptedModel) -> None:
    with pytest.raises(AdaptError, match="is not the name of a repository on the hub: expected hf://user/name"):
        adapt.load(f"hf://{name}")
    with pytest.raises(AdaptError, match="is not the name of a repository on the hub"):
        model.push_to_hub(name)
    assert hub.requests == []


def test_a_push_names_no_revision_and_no_other_licence(hub: StandIn, model: AdaptedModel) -> None:
    with pytest.raises(AdaptError, match="user/coop@main names a revision"):
        model.push_to_hub("user/coop@main")
    with pytest.raises(AdaptError, match="license is 'free for all'; expected an identifier"):
        model.push_to_hub("user/coop", license="free for all")
    assert hub.requests == []


def test_a_path_never_goes_online(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdaptError, match="there is no adapter at runs/first"):
        adapt.load("runs/first")
    assert hub.requests == []


def test_several_share_a_backbone(hub: StandIn, model: AdaptedModel, tmp_path: Path) -> None:
    model.push_to_hub("user/coop")
    first, second = adapt.load_many(["hf://user/coop", model.save(tmp_path / "here.safetensors")])
    assert first.backbone is second.backbone


def test_the_card_says_what_the_run_was(hub: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = adapt.load_backbone("mini-clip")
    model = adapt.wrap(backbone, adapt.methods.ZeroShot(), NAMES)
    model.metadata = {
        "recipe": {"data": {"source": str(tmp_path), "shots": 4}},
        "seed": 1,
        "metrics": {"zero_shot": {"accuracy": 0.25}, "adapted": {"accuracy": 0.5}},
    }
    with caplog.at_level(logging.WARNING, "adapt"):
        model.push_to_hub("user/words", license="cc-by-4.0")
    assert not [record for record in caplog.records if record.name == "adapt"]  # anybody has mini-clip
    card = ModelCard(hub.repositories["user/words"].files["README.md"].decode())
    assert (card.data.library_name, card.data.license) == ("adapt", "cc-by-4.0")
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.eval_results[0].metric_value == 0.5
    assert "Trained on 4 images a class of" in card.text
    assert str(tmp_path.parent) not in card.content  # where the author keeps files is nobody's business
    assert "| zero-shot | 25.0 % |\n| adapted | 50.0 % |" in card.text
    assert 'adapt.load("hf://user/words")' in card.text.replace("'", '"')


def test_the_base_model_is_named_as_the_hub_calls_it(hub: StandIn, model: AdaptedModel) -> None:
    from adapt.backbones.sources import hub_names

    assert hub_names("hf:openai/clip-vit-base-patch16") == ["openai/clip-vit-base-patch16"]
    assert hub_names("open_clip:ViT-B-32/laion2b_s34b_b79k") == ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K"]
    assert hub_names("open_clip:hf-hub:timm/some") == ["timm/some"]
    assert hub_names("open_clip:hf-hub:timm/some+hf:Qwen/Qwen2.5-0.5B") == ["timm/some", "Qwen/Qwen2.5-0.5B"]
    assert hub_names("mini-clip") == hub_names("open_clip:ViT-B-32") == hub_names(None) == []


def test_a_backbone_that_others_lack_is_said(
    hub: StandIn, model: AdaptedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "adapt"):
        model.push_to_hub("user/coop")
    assert "which is not on the hub" in caplog.text


def test_a_backbone_of_open_clip_on_the_hub(
    hub: StandIn, model_folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repositories["org/tiny"] = Repository()
    repository.add(contents(model_folder) | {"open_clip_pytorch_model.bin": b"pickle"})
    spec = "open_clip:hf-hub:org/tiny"
    found = adapt.load_backbone(spec)
    assert found.name == spec
    assert torch.equal(found.encode_image(images), adapt.load_backbone(str(model_folder)).encode_image(images))
    assert not [request for request in hub.requests if ".bin" in request]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert adapt.load_backbone(spec).name == spec
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    repository.add({"open_clip_config.json": b"{}", "open_clip_pytorch_model.bin": b"pickle"})
    with pytest.raises(AdaptError, match=r"org/tiny has no open_clip_model\.safetensors"):
        adapt.load_backbone(spec)
