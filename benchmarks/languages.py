"""Spanish and German names of drawings, learned from other names without an image, beside the English ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor

import adapt
from adapt.evaluation.evaluate import by_language
from adapt.methods import ZeroShot
from adapt.recipe import read_recipe
from benchmarks.drawings import backbone, drawings, per_cent, row_of, trained
from benchmarks.measure import Row

NAMES = Path(__file__).with_name("emoji_names.csv")  # of the concepts that the backbone knows, by Unicode's CLDR
SEEDS, TESTED = (1, 2, 3), 120  # names that are not learned, another draw for each seed


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield accuracy by English names, and by those of each language before and after, over drawings of each seed.

    Names that were not learned come first, then those that were, all on drawings in the style that the backbone does
    not know. Beside the accuracy is the paired difference to before.
    """
    pairs, images = adapt.data.load(NAMES), drawings("emoji-concepts").test
    found: dict[tuple[str, str, str], list[Tensor]] = {}
    for seed in SEEDS:
        names = sorted({pair.text for pair in pairs.train})
        tested = set(Random(seed).sample(names, TESTED))
        learned = replace(pairs, train=tuple(pair for pair in pairs.train if pair.text not in tested))
        progress(f"seed {seed}")
        recipe = read_recipe("lora/language", [("backbone", "mini-clip"), ("seed", seed)], str(NAMES))
        models = {"before": adapt.wrap(backbone(), ZeroShot()), "after": trained(recipe, learned)}
        for when, model in models.items():
            for part, kept in (("other names", tested), ("learned names", set(names) - tested)):
                items = [item for item in images if item.answer in kept]
                for language, own, english in by_language(model, items, pairs.train):
                    for name, scores in ((language, own), ("English", english)):
                        found.setdefault((part, name, when), []).append(torch.tensor(scores.right, dtype=torch.double))
    for (part, name, when), rights in found.items():
        yield row_of(f"{part}, {name}, {when}", {"accuracy": per_cent(rights)})
