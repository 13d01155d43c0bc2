"""What open_clip says of names and weights reaches the user, as one line of ours."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny_backbones
import torch
from click.testing import CliRunner

import adapt
from adapt.backbones.families import open_clip_models
from adapt.cli import main


@pytest.fixture(autouse=True)
def _tiny_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name gives the tiny CLIP, with the warning that open_clip gives."""

    def create(architecture: str, pretrained: str | None = None, **_: Any) -> tuple[Any, None, None]:
        warnings.warn("QuickGELU mismatch between final model config and pretrained tag", UserWarning, stacklevel=1)
        return tiny_backbones.native_clip(), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)


def test_weights_of_another_activation(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    adapt.load_backbone("open_clip:ViT-B-32/openai")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages == [
        "the weights 'openai' were trained with QuickGELU, and ViT-B-32 computes GELU: features and accuracy differ "
        "from the published ones; take open_clip:ViT-B-32-quickgelu/openai"
    ]
    assert [str(each.message) for each in recwarn if "QuickGELU" in str(each.message)] == []  # once is enough


@pytest.mark.parametrize("spec", ["ViT-B-32-quickgelu/openai", "ViT-B-32/laion2b_s34b_b79k", "ViT-B-32"])
def test_weights_of_the_same_activation(spec: str, caplog: pytest.LogCaptureFixture) -> None:
    adapt.load_backbone(f"open_clip:{spec}")
    assert caplog.messages == []


def test_every_tag_that_open_clip_warns_of(caplog: pytest.LogCaptureFixture) -> None:
    for architecture, tag in open_clip.list_pretrained():
        quick = open_clip.get_model_config(architecture).get("quick_gelu", False)
        caplog.clear()
        open_clip_models._warn_of_activation(architecture, tag, quick)
        other = quick != open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
        assert len(caplog.messages) == other, (architecture, tag)
        if other and "quickgelu" in caplog.text:
            better = caplog.messages[0].rpartition("open_clip:")[2].split("/")
            assert better[1] in open_clip.list_pretrained_tags_by_model(better[0])


def test_the_command_line_says_it_too(five_classes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    monkeypatch.setattr(logging.root, "handlers", [])
    command = ["zeroshot", "--data", str(five_classes), "--backbone", "open_clip:ViT-B-32/openai"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    named, said = result.stderr.splitlines()
    assert named == "backbone   open_clip:ViT-B-32/openai"
    assert said.startswith("the weights 'openai' were trained with QuickGELU")


@pytest.mark.parametrize("content", [b"hello\n", b"\x80\x02junk", b"root:x:0:0:root\n" * 9])
def test_a_file_that_holds_no_weights_is_named(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's reader of pickles raises nearly anything."""

    def create(architecture: str, pretrained: str | None = None, **_: Any) -> tuple[Any, None, None]:
        return torch.load(str(pretrained), weights_only=True), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(adapt.AdaptError, match=r"the weights '.*bad\.pt' of ViT-B-32 are damaged"):
        adapt.load_backbone(f"open_clip:ViT-B-32/{tmp_path / 'bad.pt'}")
