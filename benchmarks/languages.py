"""Spanish and German names of drawings, learned from other names without an image, beside the English ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

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
    """Yield accuracy by the names of a language, and by English ones, before and after each language was learned.

    Drawings are of the style that the backbone does not know; half of the rows are of names that were not learned.
    """
    pairs, images = adapt.data.load(NAMES).train, drawings("emoji-concepts").test
    for language in dict.fromkeys(pair.label.columns["language"] for pair in pairs):
        own = [pair for pair in pairs if pair.label.columns["language"] == language]
        found: dict[str, dict[str, list[Tensor]]] = {}
        for seed in SEEDS:
            names = [pair.text for pair in own]
            Random(seed).shuffle(names)
            parts = {"other names": set(names[:TESTED]), "learned names": set(names[TESTED:])}
            recipe = read_recipe("lora/language", [("backbone", "mini-clip"), ("seed", seed)], str(NAMES))
            learned = tuple(pair for pair in own if pair.text in parts["learned names"])
            models = {
                "before": adapt.wrap(backbone(), ZeroShot()),
                "after": trained(recipe, replace(adapt.data.load(NAMES), train=learned)),
            }
            for (part, kept), (when, model) in product(parts.items(), models.items()):
                items = [item for item in images if item.answer in kept]
                for _, *scores in by_language(model, items, own):
                    for words, each in zip((language, "English"), scores, strict=True):
                        cells = found.setdefault(f"{language}, {part}", {})
                        cells.setdefault(f"{words} {when}", []).append(each.merits.double())
            for case, cells in found.items():
                progress(
                    f"{case}, seed {seed}: {', '.join(f'{name} {per_cent(each[-1:])}' for name, each in cells.items())}"
                )
        for case, cells in found.items():
            yield row_of(case, {name: f"{name} {per_cent(rights)}" for name, rights in cells.items()})
