"""`adapt train --dry-run`: what a recipe would do, without training, and without weights."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import adapt
from adapt import AdaptError
from adapt.backbones.sources import bundled
from adapt.cli import main
from adapt.data import Item
from adapt.methods import LoRA
from adapt.methods.base.step import total
from adapt.models.native_vlm import ChatModel
from adapt.training import dry_run, step_memory
from adapt.training.step_memory import chat_bytes

CHATS = adapt.data.load("emoji-chats@fluent-3d")


def planned(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["train", *arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.full
def test_nothing_of_a_native_model_is_loaded_but_its_configuration(tmp_path: Path) -> None:
    folder = shutil.copytree(bundled("mini-vlm"), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    out = tmp_path / "run"
    lines = planned("lora/chats", "--backbone", str(folder), "--out", str(out)).splitlines()
    assert "350,208 trained parameters" in lines[1]
    assert lines[2] == "data       313 items learned, 50 chosen on, 313 tested, 0 left out"
    assert lines[4] == "tokens     79 to 180 (median 104) in a conversation, up to 31 of answers"
    assert "20.0 MiB of weights" in lines[5]  # stored in half precision, which the CPU computes in fp32
    assert not out.exists()


@pytest.mark.full
def test_quantised_weights_count_less(tmp_path: Path) -> None:
    """Those of the blocks: embeddings and the head stay as they are."""
    [mib] = re.findall(r"([\d.]+) MiB of weights", planned("lora/chats", "--set", "quantize=nf4"))
    assert 4 < float(mib) < 12


def test_a_start_is_checked(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["train", "lora/chats", "--set", f"start={tmp_path / 'no.safetensors'}", "--dry-run"]
    )
    assert "no.safetensors" in result.output
    assert "Error" in result.output


def test_a_named_architecture_needs_no_weights() -> None:
    """ViT-B/16 of open_clip, whose weights are not on this machine; 16 contexts of width 512."""
    found = planned("coop", "--data", "emoji", "--backbone", "open_clip:ViT-B-16-quickgelu/openai", "--shots", "4")
    lines = found.splitlines()
    assert lines[0] == "backbone   open_clip:ViT-B-16-quickgelu/openai, 149.6 million parameters"
    assert lines[1].endswith(f"coop, {512 * 16:,} trained parameters")
    assert lines[3] == "training   30 epochs, 90 steps on 32 images each"
    assert lines[4].startswith("tokens     197 of an image, ")
    assert "570.8 MiB of weights" in lines[5]
    assert "a step, which is estimated before the first one" in lines[6]


@pytest.mark.parametrize(
    ("recipe", "data", "bundled_name", "trained"),
    [
        ("das", "emoji-questions", "mini-vilt", 335_498),
        ("vlora", "emoji-questions", "mini-clip+mini-lm", 1_447_168),
        ("lora/vision", "emoji", "vision:mini-clip", None),
        ("lda", "emoji", "mini-clip", 6_168),
    ],
)
def test_each_kind_is_planned_on_an_outline_as_on_the_model(
    recipe: str, data: str, bundled_name: str, trained: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = planned(recipe, "--data", data).splitlines()
    assert bundled_name in lines[0]
    if trained is not None:
        assert f"{trained:,} trained parameters" in lines[1]
    usual = dry_run.load_backbone
    monkeypatch.setattr(dry_run, "load_backbone", lambda name, device: usual(name, "cpu"))
    loaded = planned(recipe, "--data", data).splitlines()
    assert loaded[:-2] == lines[:-2]  # the last two are of memory: buffers, and what is free


def test_an_outline_has_no_values() -> None:
    outline, model = adapt.load_backbone("mini-clip", "meta"), adapt.load_backbone("mini-clip", "cpu")
    assert {name: x.shape for name, x in outline.model.state_dict().items()} == {
        name: x.shape for name, x in model.model.state_dict().items()
    }
    assert all(each.is_meta for each in (*outline.model.parameters(), *outline.model.buffers()))
    assert math.isnan(outline.logit_scale)


def test_a_configuration_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AdaptError, match="cannot load 'dandelin/none-of-it'"):
        adapt.load_backbone("hf:dandelin/none-of-it", "meta")


def test_what_training_would_refuse_is_refused() -> None:
    result = CliRunner().invoke(main, ["train", "coop", "--backbone", "mini-vlm", "--data", "emoji", "--dry-run"])
    assert "coop adapts a dual encoder" in result.output
    assert result.exit_code != 0


def adapted(checkpointing: bool, *towers: str) -> ChatModel:
    lora = LoRA(rank=4, dropout=0.0, towers=towers, projections="all", input_gradient=True)
    return adapt.wrap(adapt.load_backbone("mini-vlm", "cpu"), lora, checkpointing=checkpointing).train()


def kept(model: ChatModel, items: list[Item]) -> int:
    """The bytes that a step saves for its backward pass."""
    saved: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.backbone.model.parameters(), *model.parameters())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    step = items[0].task.step(model, items, [[adapt.data.open_image(path) for path in item.paths] for item in items])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = total(model.losses(step)[0])
    assert loss.requires_grad
    return sum(size for address, size in saved.items() if address not in own)


@pytest.mark.parametrize("towers", [("decoder",), ("vision", "decoder")])
def test_the_formula_is_near_what_a_step_keeps(towers: tuple[str, ...]) -> None:
    model = adapted(False, *towers)
    items = [item for item in CHATS.train if len(item.paths) == 1][:1] * 4
    estimate = chat_bytes(model, items, "fp32").of(len(items))
    assert 0.5 < kept(model, items) / estimate < 1.0  # beside what is kept, one block and the head in working memory
    assert chat_bytes(adapted(True, *towers), items, "fp32").of(4) < 0.7 * estimate
    assert chat_bytes(model, items, "bf16").of(4) < 0.7 * estimate
    if towers == ("decoder",):
        last = LoRA(rank=4, dropout=0.0, towers=towers, blocks=(5, 6))
        assert (
            chat_bytes(adapt.wrap(adapt.load_backbone("mini-vlm", "cpu"), last), items, "fp32").of(4) < 0.5 * estimate
        )


def test_a_step_that_does_not_fit_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_memory, "free_bytes", lambda device: 50 * 2**20)
    with pytest.raises(
        AdaptError, match=r"over 8 conversations needs about .*: set train\.batch_size to \d and .*or set c"
    ):
        adapt.fit(adapted(False, "decoder"), CHATS.train[:8], epochs=1, batch_size=8, progress=False)
