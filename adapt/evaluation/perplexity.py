"""Training data by perplexity: the answers that a vision-language model finds least surprising are kept.

Paper: Liu et al., POINTS: Improving Your Vision-Language Model with Affordable Strategies, 2024, which keeps a fifth of
the captions for pre-training. Its code was not read: the perplexity of a caption is the exponential of the mean
negative log-probability of its tokens, the token that ends it included.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapt.common.errors import AdaptError
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.evaluation.inference import Inference
from adapt.models.native_vlm import ChatModel


def perplexities(model: ChatModel, items: Sequence[Item], inference: Inference) -> list[float]:
    """Return the perplexity of the answers of each item, as conversations."""
    batches = inference.of_batches(model, items, lambda step: step.perplexities.tolist())
    return [value for batch in batches for value in batch]


def check_ranked(split: Split) -> None:
    """Raise AdaptError if the training items of a split cannot be ranked, or not be written as conversations."""
    if split.task.rows_of_chats != 1:
        raise AdaptError(
            f"{split.name} has {split.task.items_are}, which have several answers each: give conversations, questions "
            "or classes"
        )
    if not split.task.scored:
        raise AdaptError(f"{split.name} has no answers to read, because its images have no labels: give labels")
    if not split.train:
        raise AdaptError(f"{split.name} has no training items: there is nothing to filter")


def lowest(values: Sequence[float], share: float) -> list[int]:
    """Return the places of the lowest `share` of values, at least one, in the order in which they were given."""
    ascending = sorted(range(len(values)), key=values.__getitem__)
    return sorted(ascending[: max(1, round(share * len(values)))])
