"""Candidate names from the words of captions, by the rules of CaSED (Conti et al., NeurIPS 2023).

Reference: vic `e31087f`, `src/data/components/transforms.py`. Deviation: parts of speech come from TextBlob's tagger,
which needs no download, in place of flair's; another tagger may be given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from adapt.common.errors import needing

if TYPE_CHECKING:
    from inflect import engine

Tag = Callable[[list[str]], list[str]]  # words of a text to their Penn Treebank tags

NAMING = frozenset(("NN", "NNS", "NNP", "NNPS", "JJ", "JJR", "JJS", "VBG", "VBN"))  # nouns, adjectives, participles
SHORTEST = 3  # letters of a word
NOTHING = "object"  # the candidate if no word is left
_OF_PICTURES = (
    "image", "photo", "picture", "thumbnail", "logo", "symbol", "clipart", "portrait", "painting", "illustration",
    "icon", "profile",
)  # fmt: skip
_TAKING_WORDS = "Extracting words from captions"
_NO_PLURALS = ("ss", "us", "is", "ies", "oes")


def candidates(captions: Sequence[str], least: int = 2, tag: Tag | None = None) -> list[str]:
    """Return the sorted nouns, adjectives and participles that occur at least `least` times in `captions`.

    If no word occurs `least` times, the most frequent words are used. Raises AdaptError if the library inflect or
    textblob is not installed.
    """
    words = frequent(plain_words(" ".join(captions)), least)
    tags = (tag or _tagged)(words) if words else []
    return sorted({word for word, own in zip(words, tags, strict=True) if own in NAMING}) or [NOTHING]


def plain_words(text: str) -> list[str]:
    """Return the words of `text` in lower case and singular form, without words for pictures such as `photo`."""
    text = re.sub(r"<.*?>", "", text)
    text = re.sub(r"http\S+", "", text)
    text = re.sub(r"[^\w\s\-.'&]", "", text)
    text = re.sub(r"\.\w+", "", text)  # file extensions
    text = re.sub(r"[_-]", " ", text)
    text = " ".join(word for word in text.split() if len(word) >= SHORTEST)
    words = [_singular(word) for word in re.sub(r"[^a-zA-Z\s]", "", text).lower().split()]
    return [word for word in words if word not in _OF_PICTURES]


def frequent(words: Sequence[str], least: int) -> list[str]:
    """Return the `words` that occur at least `least` times, or the most frequent words if no word occurs that often."""
    counts = Counter(words)
    needed = min(least, max(counts.values(), default=least))
    return [word for word in words if counts[word] >= needed]


@lru_cache(maxsize=65536)
def _singular(word: str) -> str:
    if not word.endswith("s") or word.endswith(_NO_PLURALS):
        return word
    return _inflection().singular_noun(word) or word


@lru_cache(maxsize=1)
def _inflection() -> engine:
    with needing(_TAKING_WORDS, "the library inflect", "words"):
        import inflect
    return inflect.engine()


def _tagged(words: list[str]) -> list[str]:
    with needing(_TAKING_WORDS, "the library textblob", "words"):
        from textblob.en import tag
    return [part for _, part in tag(" ".join(words), tokenize=False)]
