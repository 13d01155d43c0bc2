"""Operations of blocks: what skipping saves adds up, in every family of backbones."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_backbones
import tiny_fusion
import tiny_llms
from selection import by_turns

import adapt
from adapt import methods
from adapt.evaluation.flops import tower_flops
from adapt.methods.das.search import block_flops

_CASES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "clip": (lambda: tiny_backbones.backbone("open_clip"), ("text", "vision")),
    "vilt": (tiny_fusion.vilt, ("fusion",)),
    "bridgetower": (tiny_fusion.bridgetower, ("text_fusion", "vision_fusion")),
    "llama": (lambda: tiny_llms.vision_llm("llama"), ("decoder",)),
}


@by_turns("case", _CASES)
def test_what_skipped_blocks_save_adds_up(case: str, training_of) -> None:
    make, towers = _CASES[case]
    parts = [methods.DAS(skip=1, towers=towers), methods.LoRA(towers=towers, projections="q")]
    model = adapt.wrap(make(), methods.Compose(parts), ("red", "green"))
    das = model.method.parts["das"]
    whole, saved = block_flops(das, training_of(model))
    assert model.method.training  # as it was
    model.eval()
    assert list(saved) == list(das.blocks)
    assert 0 < sum(saved.values()) < whole
    names = [next(name for name in saved if name.startswith(tower)) for tower in towers]
    das.select(names)
    assert whole - tower_flops(model, towers) == pytest.approx(sum(saved[name] for name in names))


def test_blocks_of_a_tower_save_the_same_but_for_the_last_of_a_fast_text_path(training_of) -> None:
    make, towers = _CASES["clip"]
    model = adapt.wrap(make(), methods.DAS(skip=1, towers=towers), ("red", "green"))
    _, saved = block_flops(model.method, training_of(model))
    assert saved["text.0"] == saved["text.1"] > saved["text.2"]  # which computes end-of-text rows only
    assert saved["vision.0"] == saved["vision.1"] == saved["vision.2"]
