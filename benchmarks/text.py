"""The text side of a CoOp step: the fast exact path against the library's own forward over 77 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, product

import torch

import adapt
from adapt.backbones.base import DualEncoder
from adapt.data.emoji.bundled import concept_names
from benchmarks.measure import Row, compared, in_fresh_process

ARCHITECTURE = "ViT-B-16-quickgelu"
N_CTX = 16
CHUNK = 100  # classes that the plain path takes at once; more are timed as a multiple of it
GIB = 2**30
_ADJECTIVES = (
    "red green blue black white golden small large old new wooden paper happy sad quiet loud soft hard bright dark"
)


def class_names(count: int) -> list[str]:
    """Return the bundled concepts' names, and then the same with an adjective in front."""
    known, held_out = concept_names()
    adjectives = ("", *(f"{word} " for word in _ADJECTIVES.split()))
    names = dict.fromkeys(f"{adjective}{name}" for adjective, name in product(adjectives, (*known, *held_out)))
    return list(islice(names, count))


def clip(architecture: str = ARCHITECTURE) -> DualEncoder:
    """Return a CLIP of open_clip with random weights."""
    backbone = adapt.load_backbone(f"open_clip:{architecture}", "cpu")
    assert isinstance(backbone, DualEncoder)
    return backbone


def coop_step(classes: int, fast: bool, memory: int | None) -> Callable[[], None]:
    """Return the forward and backward pass of CoOp's class features, with random weights of real shapes."""
    method = adapt.methods.CoOp(n_ctx=N_CTX)
    model = adapt.wrap(clip(), method, class_names(classes), fast, text_memory=memory)
    gradient = torch.randn(classes, 512)

    def step() -> None:
        model.method.zero_grad()
        model.class_features().backward(gradient)

    return step


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Compare the two paths at four sizes."""
    progress(f"plain path, {CHUNK} classes at once")
    plain = in_fresh_process(2, coop_step, CHUNK, False, None)
    for classes, memory in ((100, None), (1000, None), (1000, GIB), (10_000, GIB)):
        progress(f"fast path, {classes} classes{'' if memory is None else ' inside 1 GiB'}")
        fast = in_fresh_process(3 if classes <= 1000 else 1, coop_step, classes, True, memory)
        row = compared(plain.times(classes / CHUNK), fast, scaled=classes != CHUNK)
        if classes != CHUNK:
            row["plain_peak_bytes"] = None
        yield {"classes": classes, "budget_bytes": memory} | row
