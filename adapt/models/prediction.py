"""What a model says of images, and the batches that it says it in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adapt.errors import AdaptError

NOT_FINITE = (
    "the model's output is not finite: the adapter's values, or the backbone's, overflow. Train again at a lower rate, "
    "or use a precision with a wider range, such as bf16 or fp32"
)


def finite(logits: Tensor) -> Tensor:
    """`logits` as they are. AdaptError where one is no number, so that no answer could be told from it."""
    if not logits.isfinite().all():
        raise AdaptError(NOT_FINITE)
    return logits


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one image, or answer about it, and the best few with their probabilities.

    The most probable comes first.
    """

    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...]


def check_count(top_k: int) -> None:
    """AdaptError for a number of classes that cannot be shown."""
    if not isinstance(top_k, int) or top_k < 1:
        raise AdaptError(f"top_k is {top_k!r}; expected how many classes to give for an image, 1 or more")


def predictions(logits: Tensor, class_names: Sequence[str], top_k: int) -> Iterator[Prediction]:
    """The predictions that logits `(b, n)` of `n` classes make."""
    probabilities, indices = finite(logits).float().softmax(-1).topk(min(top_k, len(class_names)))
    for row, chosen in zip(probabilities.tolist(), indices.tolist()):
        top = tuple((class_names[index], probability) for index, probability in zip(chosen, row))
        yield Prediction(top[0][0], top[0][1], top)


def decided(logits: Tensor, class_names: Sequence[str]) -> tuple[list[str], list[float]]:
    """The most probable class of each row of `(b, n)`, and its probability."""
    best = finite(logits).float().softmax(-1).max(-1)
    return [class_names[label] for label in best.indices.tolist()], best.values.tolist()


def batches_of(images: Iterable[Any] | Any, size: int) -> Iterator[list[Any]]:
    """Lists of up to `size` images of an iterable, or of a single image."""
    from PIL import Image

    if isinstance(images, str | Path | Image.Image):
        images = [images]
    batch: list[Any] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
