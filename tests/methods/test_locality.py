"""Locality alignment: masks, what reaches the class token, the control, images without labels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from checks import flat, perturb
from click.testing import CliRunner
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, methods
from adapt.cli import main
from adapt.data import Item, Split
from adapt.methods.base import ImageStep
from adapt.methods.locality import hidden, masks_of
from adapt.training.loop import Trainer


def model_of(kind: str = "open_clip", fast: bool | None = None) -> AdaptedModel:
    torch.manual_seed(0)
    method = methods.Locality(rank=2, decoder_layers=1, decoder_width=12)
    model: AdaptedModel = adapt.wrap(tiny_backbones.backbone(kind), method, (), fast=fast)
    return model.eval()


def test_masks_show_some_patches_the_others_and_all() -> None:
    masks = masks_of(torch.rand(4000, 10, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(masks[:, 0], ~masks[:, 1])
    assert masks[:, 2].all()
    counts = masks[:, 0].sum(-1).bincount(minlength=10) / 4000
    assert (counts - 0.1).abs().max() < 0.02  # each number of patches, none and all included


def test_hidden_patches_are_zero_and_others_as_they_were() -> None:
    images = torch.rand(2, 3, 8, 8) + 1
    masks = torch.zeros(2, 1, 16, dtype=torch.bool)
    masks[0, 0, 5] = masks[1, 0, 3] = True
    [first], [second] = hidden(images, masks)
    assert torch.equal(first[:, 2:4, 2:4], images[0, :, 2:4, 2:4])
    assert torch.equal(second[:, 0:2, 6:8], images[1, :, 0:2, 6:8])
    assert (first == 0).sum() == (second == 0).sum() == 3 * (64 - 4)


@pytest.mark.parametrize("kind", tiny_backbones.WITH_VISION_BLOCKS)
def test_all_tokens_of_the_adapted_tower_on_both_paths(kind: str, images: Tensor) -> None:
    """As the hooks on its last block see them in the library's own forward."""
    fast, plain = (perturb(model_of(kind, fast)) for fast in (None, False))
    with torch.no_grad():
        tokens = plain.vision_tokens(images)
        assert (tokens - plain.image_tokens(images)).norm() > 0.01 * tokens.norm()  # LoRA is not at its start
        torch.testing.assert_close(fast.vision_tokens(images), tokens, rtol=1e-4, atol=1e-4)


def test_the_error_is_of_shown_tokens_alone(images: Tensor) -> None:
    """The rebuilt tokens of a mask depend on no token that it hides, nor on the class token."""
    model = model_of()
    method: Any = model.method
    rebuilder = method.aside["locality"]
    torch.nn.init.normal_(rebuilder.head[1].weight)
    tokens = torch.randn(2, 17, rebuilder.out.out_features, requires_grad=True)
    masks = masks_of(torch.rand(2, 17))
    rebuilder(tokens, method.seen(masks))[:, 0].square().sum().backward()
    assert tokens.grad is not None
    reached = tokens.grad.abs().sum(-1) > 0
    assert torch.equal(reached, F.pad(masks[:, 0], (1, 0)))


def test_the_control_learns_but_not_the_tower(images: Tensor) -> None:
    model = perturb(model_of()).train()
    method: Any = model.method
    step = ImageStep(model, images)
    terms = method.loss(step)
    terms["control"].backward()
    assert all(parameter.grad is None for parameter in method.parameters())
    assert all(parameter.grad is not None for parameter in method.aside["control"].parameters())
    assert all(parameter.grad is None for parameter in method.aside["locality"].parameters())


def test_targets_have_the_spread_one_and_a_resumed_run_keeps_their_scale(images: Tensor) -> None:
    model = model_of()
    method: Any = model.method
    masks = masks_of(torch.rand(len(images), 17))
    _, targets = method.targets(ImageStep(model, images), masks)
    assert targets.std().item() == pytest.approx(1, rel=1e-5)
    scale = method.training_state()["scale"].clone()
    method.targets(ImageStep(model, 3 * images), masks)
    assert method.training_state()["scale"] == scale


@pytest.mark.full
def test_a_run_on_images_without_labels(tiny_split: Split, tmp_path: Path) -> None:
    """It tells what the tower gained over the control, and its adapter holds LoRA alone."""
    rows = [f"{item.path},{part}" for part in ("train", "val") for item in getattr(tiny_split, part)]
    listed = tmp_path / "images.csv"
    listed.write_text("path,split\n" + "\n".join(rows) + "\n")
    settings = ["method.decoder_width=12", "train.epochs=1", "train.batch_size=4", "train.terms=null"]
    changes = [text for setting in settings for text in ("--set", setting)]
    run = ["train", "locality", "--data", str(listed), "--shots", "all", "--out", str(tmp_path / "run"), *changes]
    result = CliRunner().invoke(main, run)
    assert result.exit_code == 0, result.output
    assert "of masked held-out images, with the tower frozen" in result.output
    adapted = adapt.load(tmp_path / "run" / "adapter.safetensors")
    assert all("lora_" in name for name in adapted.method.state_dict())


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a dog\na cat\nthe sea\n")
    run = [
        "train",
        "locality",
        "--data",
        str(tmp_path / "captions.txt"),
        "--shots",
        "all",
        "--out",
        str(tmp_path / "x"),
    ]
    output = CliRunner().invoke(main, run).output
    assert "locality learns from images, but 'a dog' and others have none: give a .csv with the column path" in output
    with pytest.raises(AdaptError, match=r"towers is .*: expected \[vision\]"):
        methods.Locality(towers=("text",))
    with pytest.raises(AdaptError, match="vision"):
        model_of("open_clip_resnet")


@pytest.mark.parametrize("other", [{"name": "ivlp", "depth_vision": 2, "depth_text": 2}, {"name": "mma", "dim": 4}])
def test_all_tokens_beside_other_edits_on_both_paths(other: dict[str, Any], images: Tensor) -> None:
    """Learned tokens are cut off, and what is added beside the last block is there."""
    parts = [{"name": "locality", "rank": 2, "decoder_layers": 1, "decoder_width": 12}, other]
    found = []
    for fast in (None, False):
        torch.manual_seed(0)
        method = methods.Compose(methods=parts)
        model = perturb(adapt.wrap(tiny_backbones.backbone("open_clip"), method, ("dog", "cat"), fast=fast)).eval()
        with torch.no_grad():
            found.append(model.vision_tokens(images))
    assert found[0].shape[1] == 17
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_a_run_without_labels_goes_on_and_is_drawn(tiny_split: Split, tmp_path: Path) -> None:
    """A cut run that is resumed ends as one that was not cut; a report and a plot need no accuracy."""
    listed = tmp_path / "images.csv"
    listed.write_text("path\n" + "\n".join(item.path for item in tiny_split.train) + "\n")
    words = ["train", "locality", "--data", str(listed), "--shots", "all", "--quiet"]
    settings = ["method.decoder_width=12", "train.epochs=2", "train.batch_size=4", "train.terms=null", "seed=1"]
    words += [text for setting in settings for text in ("--set", setting)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert CliRunner().invoke(main, [*words, "--out", str(whole)]).exit_code == 0
    with patch("adapt.methods.locality.Locality.epoch_done", side_effect=KeyboardInterrupt):
        CliRunner().invoke(main, [*words, "--out", str(cut)])
    result = CliRunner().invoke(main, [*words, "--out", str(cut), "--resume"])
    assert result.exit_code == 0, result.output
    assert (whole / "adapter.safetensors").read_bytes() == (cut / "adapter.safetensors").read_bytes()
    assert CliRunner().invoke(main, ["report", str(whole), "--out", str(tmp_path / "r.html")]).exit_code == 0


def test_without_held_out_images_the_missing_control_is_said(
    tiny_split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.Locality(rank=2, decoder_width=12), ())
    items = [Item.of(path=item.path) for item in tiny_split.train[:4]]
    adapt.fit(model, items, epochs=1, batch_size=4, augment="none", workers=0, progress=False)
    assert "there are no validation images, so that the run cannot tell" in caplog.text


def test_masks_fall_on_patches_where_the_tower_leaves_pixels_out() -> None:
    images = torch.ones(1, 3, 30, 30)
    masks = torch.zeros(1, 1, 9, dtype=torch.bool)
    masks[0, 0, 8] = True
    shown = hidden(images, masks)[0, 0, 0]
    assert shown[20:30, 20:30].all()
    assert shown.sum() == 100
    masks = torch.ones(1, 1, 16, dtype=torch.bool)  # patches of 7 pixels, and two left over
    shown = hidden(images, masks)[0, 0, 0]
    assert shown[:28, :28].all()
    assert not shown[28:].any()


def test_in_a_composition_the_decoders_learn_too(tiny_split: Split) -> None:
    parts = [{"name": "locality", "rank": 2, "decoder_layers": 1, "decoder_width": 12}, {"name": "ln_tuning"}]
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.Compose(methods=parts), tiny_split.class_names)
    adapt.fit(model, tiny_split.train, epochs=1, batch_size=4, augment="none", workers=0, progress=False)
    method: Any = model.method.parts["locality"]
    assert all(method.aside[name].head[1].weight.any() for name in ("locality", "control"))


def test_an_average_is_of_tower_and_decoder_alike(tiny_split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, epoch = list[Tensor](), Trainer._epoch

    def watched(trainer: Trainer) -> Any:
        yield from epoch(trainer)
        ends.append(flat(trainer.model.method.trains()).detach().clone())

    monkeypatch.setattr(Trainer, "_epoch", watched)
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.Locality(rank=2, decoder_width=12), ())
    items = [Item.of(path=item.path) for item in tiny_split.train]
    settings: dict[str, Any] = {"batch_size": 4, "augment": "none", "workers": 0, "progress": False}
    adapt.fit(model, items, epochs=3, average={"swa": {"start": 2}}, **settings)
    method: Any = model.method
    learned = flat(method.trains()).detach()
    assert len(learned) > len(flat(method.parameters()))  # the decoders are among them
    torch.testing.assert_close(learned, (ends[1] + ends[2]) / 2)
    assert not torch.allclose(learned, ends[2])
