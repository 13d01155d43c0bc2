"""Checkpoints as the published implementations save them give the published logits once they are imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dassl_files
import published
import pytest
from published import LIBRARIES
from selection import by_turns
from torch import Tensor

from adapt.formats.checkpoints import import_published

CASES: dict[str, tuple[str, Callable[..., dict[str, Tensor]]]] = {
    "cocoop4": ("cocoop", dassl_files.of_a_learner),
    "maple2_d3": ("maple", dassl_files.of_maple),
    "maple8_d2": ("maple", dassl_files.of_maple),
    "ivlp_2_3": ("ivlp", dassl_files.of_ivlp),
}


@by_turns("library", LIBRARIES)
@pytest.mark.parametrize("name", CASES)
def test_an_imported_checkpoint_gives_the_published_logits(name: str, library: str, tmp_path: Path) -> None:
    settings, expected = published.case(name)
    method, state_of = CASES[name]
    tensors = expected.under("param.")
    path = dassl_files.save(tmp_path / "model.pth.tar-5", state_of(tensors))
    model = import_published(path, method, published.backbone(library), settings["names"])
    expected.scaled("logits", model(expected["images"]))
