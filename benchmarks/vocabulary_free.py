"""Drawings of the unseen style named by words from captions, against the word that names most of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch

import adapt
from adapt.data.emoji.bundled import concept_names
from adapt.methods import ZeroShot
from adapt.models.features import item_features
from adapt.retrieval.index import index_texts
from adapt.retrieval.vocabulary_free import VocabularyFree
from adapt.retrieval.words import plain_words
from benchmarks.descriptions import TEMPLATES
from benchmarks.drawings import backbone, drawings
from benchmarks.measure import Row


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report how many drawings are named by a word of their own name, in per cent."""
    items = drawings("emoji-concepts").test
    model = adapt.wrap(backbone(), ZeroShot(), ("object",)).eval()
    features = item_features(model, items, workers=2)
    names = [set(plain_words(item.answer)) for item in items]
    word, count = Counter(word for name in names for word in name).most_common(1)[0]
    yield _row(f"always {word!r}", count, items)
    concepts = [name for half in concept_names() for name in half]
    prompts = [each.replace("{}", name) for name in concepts for each in TEMPLATES]
    for kind, captions in (("names", concepts), ("names in four templates", prompts)):
        progress(kind)
        index = index_texts(model, captions)
        for least in (2, 1):
            named = VocabularyFree(backbone(), index, least=least).named(features)
            words = [each.words[int(torch.argmax(each.logits))] for each in named]
            right = sum(word in name for word, name in zip(words, names, strict=True))
            yield _row(f"{len(captions):,} captions, {kind}, words seen {least} times", right, items)


def _row(case: str, right: int, items: Sequence[object]) -> Row:
    share = right / len(items)
    return {"case": case, "right": share, "text": f"{100 * share:.1f} %"}
