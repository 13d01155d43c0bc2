"""The text side of a CoOp step: the fast exact path against the library's own forward over 77 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Measured, in_fresh_process

if TYPE_CHECKING:
    from adapt.backbones.base import DualEncoder

ARCHITECTURE = "ViT-B-16-quickgelu"
N_CTX = 16
CHUNK = 100  # classes that the plain path takes at once; more are timed as a multiple of it
GIB = 2**30
Row = dict[str, Any]


def class_names(count: int) -> list[str]:
    """The bundled concepts' names, and then the same with an adjective in front."""
    from adapt.data.emoji.bundled import concept_names

    known, held_out = concept_names()
    concepts = [*known, *held_out]
    words = (
        "red green blue black white golden small large old new wooden paper happy sad quiet loud soft hard bright dark"
    )
    adjectives = ("", *(f"{word} " for word in words.split()))
    names = dict.fromkeys(f"{adjective}{concept}" for adjective, concept in product(adjectives, concepts))
    return list(islice(names, count))


def clip(architecture: str = ARCHITECTURE) -> DualEncoder:
    """A CLIP of open_clip at random weights."""
    import adapt
    from adapt.backbones.base import DualEncoder

    backbone = adapt.load_backbone(f"open_clip:{architecture}", "cpu")
    assert isinstance(backbone, DualEncoder)
    return backbone


def coop_step(classes: int, fast: bool, memory: int | None) -> Callable[[], None]:
    """Forward and backward of the class features of CoOp, at random weights of real shapes."""
    import torch

    import adapt

    backbone = clip()
    model = adapt.wrap(backbone, adapt.methods.CoOp(n_ctx=N_CTX), class_names(classes), fast, text_memory=memory)
    gradient = torch.randn(classes, 512)

    def step() -> None:
        model.method.zero_grad()
        model.class_features().backward(gradient)

    return step


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """The four comparisons; a row is yielded when it is measured."""
    progress(f"plain path, {CHUNK} classes at once")
    plain = in_fresh_process(coop_step, CHUNK, False, None, repeats=2)
    for classes, memory in ((100, None), (1000, None), (1000, GIB), (10_000, GIB)):
        progress(f"fast path, {classes} classes{'' if memory is None else ' inside 1 GiB'}")
        fast = in_fresh_process(coop_step, classes, True, memory, repeats=3 if classes <= 1000 else 1)
        yield _row(classes, memory, plain, fast)


def _row(classes: int, memory: int | None, plain: Measured, fast: Measured) -> Row:
    plain_seconds = plain.seconds * classes / CHUNK
    return {
        "classes": classes,
        "budget_bytes": memory,
        "plain_seconds": plain_seconds,
        "plain_scaled": classes != CHUNK,
        "fast_seconds": fast.seconds,
        "ratio": plain_seconds / fast.seconds,
        "fast_peak_bytes": fast.peak_bytes,
        "plain_peak_bytes": plain.peak_bytes if classes == CHUNK else None,
    }
