"""A language model's block behind a vision tower (LM4Visual), which is frozen or learns everything from the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from adapt.edits import After
from adapt.methods import lm4visual
from adapt.methods.base import Context
from adapt.recipe import read_recipe
from benchmarks import anew
from benchmarks.drawings import SEEN, apart, backbone, drawings, per_cent, right, trained
from benchmarks.measure import Row

SEEDS, SHOTS = (1, 2), 16
ANEW = (1, 2, 3)  # seeds of towers that begin anew


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report the accuracy with the block, without it, and with random weights in it, behind either kind of tower."""
    cases: dict[str, Callable[[int], AbstractContextManager[object]]] = {
        "the last block of mini-lm": lambda seed: nullcontext(),
        "the maps alone": lambda seed: patch.object(lm4visual, "_looking_around", _nothing),
        "a block of random weights": lambda seed: patch.object(lm4visual, "language_model", _random(seed)),
    }
    for case, changed in cases.items():
        rights = list[Tensor]()
        for seed in SEEDS:
            progress(f"{case}, seed {seed}")
            few = drawings(SEEN).few_shot(SHOTS, seed)
            with changed(seed):
                rights.append(right(trained(read_recipe("lm4visual", [("seed", seed)], SEEN), few), few.test))
        yield {"case": case, "text": per_cent(rights)}
    progress("towers begun anew, nothing behind them")
    plain = [anew.learned(anew.tower(seed), seed) for seed in ANEW]
    yield {"case": "a tower begun anew, nothing behind it", "text": per_cent(plain)}
    for case, changed in cases.items():
        rights = []
        for seed in ANEW:
            progress(f"a tower begun anew, {case}, seed {seed}")
            vision = anew.tower(seed)
            with changed(seed):
                vision.transformer = nn.Sequential(vision.transformer, _behind(seed))
                rights.append(anew.learned(vision, seed))
        yield {
            "case": f"a tower begun anew, {case}",
            "text": f"{per_cent(rights)} ({apart(rights, plain, anew.things())})",
        }


def _behind(seed: int) -> nn.Module:
    """Return maps to be trained around a frozen block, whose output replaces the tokens, as in the reference."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = lm4visual.LM4Visual(residual=False)
        method.build(backbone(), ())
    [edit] = method.edits(backbone().tower("vision"), Context())
    assert isinstance(edit, After)
    return edit.module


def _nothing(block: nn.Module, x: Tensor) -> Tensor:
    return x


def _random(seed: int) -> Callable[[str, torch.device], PreTrainedModel]:
    """Return a loader of a language model of the usual form, whose weights are random."""
    load = lm4visual.language_model

    def drawn(spec: str, device: torch.device) -> PreTrainedModel:
        config = load(spec, device).config
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            return made

    return drawn
