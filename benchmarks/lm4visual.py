"""A language model's block behind the vision tower (LM4Visual), beside its maps alone and a block of random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from adapt.methods import lm4visual
from adapt.recipe import read_recipe
from benchmarks.drawings import SEEN, drawings, per_cent, right, trained
from benchmarks.measure import Row

SEEDS, SHOTS = (1, 2), 16


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report the accuracy on the test drawings with the block, without it, and with random weights in it."""
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


def _nothing(block: nn.Module, x: Tensor) -> Tensor:
    return x


def _random(seed: int) -> Callable[[str], PreTrainedModel]:
    """Return a loader of a language model of the usual form, whose weights are random."""
    load = lm4visual.language_model

    def drawn(spec: str) -> PreTrainedModel:
        config = load(spec).config
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            return made

    return drawn
