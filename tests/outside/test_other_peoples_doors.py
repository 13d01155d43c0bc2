"""Families of backbones and readers of other people: the examples of docs/add_a_backbone.md and add_a_reader.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pages
import pytest
import torch
from click.testing import CliRunner
from selection import by_turns
from torch import nn

import adapt
from adapt import AdaptError, data, methods
from adapt.backbones.tower import LastProjection
from adapt.cli import main
from adapt.data import open_image
from adapt.testing import check_backbone, check_method

from .conftest import Install

FAMILY, READER = (
    "\n".join(str(each.parsed) for each in pages.document(pages.ROOT / "docs" / f"{page}.md").examples())
    for page in ("add_a_backbone", "add_a_reader")
)


@pytest.fixture
def words(install: Install) -> adapt.Backbone:
    install("their_model", FAMILY, "[adapt.backbones]\nwords = their_model:WordsFamily\n")
    return adapt.load_backbone("words", "cpu")


def _adapt(*arguments: Any) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_family_of_ones_own_is_described_as_it_computes(words: adapt.Backbone) -> None:
    assert check_backbone(words) == ["towers_are_parts_of_the_model", "paths_agree_and_nothing_stays_changed"]
    model = adapt.wrap(words, methods.CoOp(n_ctx=2), ("a", "b"))
    assert (model.text_path, model.vision_path) == ("fast", "fast")


@by_turns("method", ["coop", "maple", "lora", "gda", "das"])
def test_methods_adapt_a_family_of_ones_own(words: adapt.Backbone, method: str) -> None:
    check_method(methods.find(method), words)


def test_a_family_that_is_described_wrongly_is_told(install: Install) -> None:
    wrong = FAMILY.replace('pooling="class"', 'pooling="mean"').replace("vision.read, Last", "_mean, Last")
    wrong += "\n\ndef _mean(x: Any, norm: Any) -> Any:\n    return norm(x.mean(1))\n"
    install("their_model", wrong, "[adapt.backbones]\nwords = their_model:WordsFamily\n")
    backbone = adapt.load_backbone("words", "cpu")
    model = adapt.wrap(backbone, methods.ZeroShot(), ("a", "b"))
    assert model.vision_path == "plain"  # the fast path would compute something else, and is not taken


def test_a_model_without_a_logit_scale_is_told(install: Install) -> None:
    without = FAMILY.replace("        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))\n", "")
    install("their_model", without, "[adapt.backbones]\nwords = their_model:WordsFamily\n")
    with pytest.raises(AdaptError, match="words has the logit_scale None; expected a parameter of its model"):
        adapt.wrap(adapt.load_backbone("words", "cpu"), methods.ZeroShot(), ("a", "b"))


@pytest.mark.parametrize("as_parameter", [True, False])
def test_a_last_projection_is_called_and_names_its_place(as_parameter: bool) -> None:
    owner, pooled = nn.Module(), torch.randn(3, 4)
    linear = nn.Linear(4, 2, bias=False)
    owner.last = nn.Parameter(linear.weight.detach().T.clone()) if as_parameter else linear
    last = LastProjection(owner, "last")
    assert torch.equal(last.weight, linear.weight)
    torch.testing.assert_close(last(pooled), linear(pooled))


def test_an_adapter_finds_its_family_by_name(words: adapt.Backbone, five_classes: Path, tmp_path: Path) -> None:
    run, quick = tmp_path / "run", ("--set=train.epochs=1", "--set=train.workers=0")
    _adapt("train", "lora", "--data", five_classes, "--backbone", "words", "--shots", "1", "--out", run, *quick)
    accuracy = json.loads((run / "metrics.json").read_text())["adapted"]["accuracy"]
    measured = _adapt("eval", run / "adapter.safetensors", "--data", five_classes)
    assert measured.startswith(f"{100 * accuracy:.1f} %")
    assert "words" in _adapt("backbones")


@pytest.fixture
def seen(install: Install, tmp_path: Path) -> Path:
    """A list in a made-up format, of six drawings each of three groups."""
    install("their_lists", READER, "[adapt.readers]\nseen_lists = their_lists:SeenLists\n")
    split, lines = data.load("emoji").few_shot(10, 1), list[str]()
    for number, item in enumerate(item for item in split.train if item.answer in split.class_names[:3]):
        open_image(item).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png: {item.answer}\n")
    (tmp_path / "photos.seen").write_text("".join(lines))
    return tmp_path / "photos.seen"


def test_a_reader_of_ones_own_serves_commands(seen: Path, tmp_path: Path) -> None:
    split = data.load(seen)
    assert (len(split.class_names), len(list(split.items()))) == (3, 30)
    assert "3 classes; images: train 18, val 3, test 9" in _adapt("data", "check", seen)
    asked = ("--shots", "2", "--out", tmp_path / "run", "--set=train.epochs=1", "--set=train.workers=0")
    _adapt("train", "lora", "--data", seen, "--backbone", "mini-clip", *asked)


@pytest.mark.full
@pytest.mark.at_length
def test_recommend_reads_by_a_reader_of_ones_own(seen: Path, tmp_path: Path) -> None:
    _adapt("recommend", seen, "--backbone", "mini-clip", "--out", tmp_path / "advice")
    assert list((tmp_path / "advice").rglob("adapter.safetensors"))


def test_what_a_reader_refuses_names_the_line(seen: Path) -> None:
    seen.write_text("0.png; cat\n")
    with pytest.raises(AdaptError, match=r"photos.seen line 1: '0.png; cat'; expected IMAGE: CLASS"):
        data.load(seen)
