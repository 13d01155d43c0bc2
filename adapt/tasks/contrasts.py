"""Minimal pairs: two images that differ in little, each with its own answer to one question (S-VCO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from adapt.common.errors import AdaptError
from adapt.data.item import Cell, Item, labels_of
from adapt.tasks.preferences import Preference, Preferences

if TYPE_CHECKING:
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.models.base import Adapted
    from adapt.models.native_vlm import ChatStep
    from adapt.models.svco import ContrastStep

T = TypeVar("T")


@dataclass(frozen=True)
class Contrast(Preference):
    """A conversation about the first half of the item's images, and the answer that the other half gets."""


class Contrasts(Preferences):
    """The task of minimal pairs: training raises each answer under its own images, and lowers it under the others."""

    name = "contrasts"
    title = "minimal pairs of images, each with its answer"
    example = "emoji-contrasts"
    label_type = Contrast
    needs = frozenset({"chat", "rejected", "rejected_images"})
    noun = "pairs of images"
    items_are = "minimal pairs of images, each with its answer"
    rows_of_chats = 3
    has_summed_loss = True
    _loss = "svco"

    def read(self, cells: Mapping[str, Cell], where: str) -> Contrast:
        read, others = super().read(cells, where), cells["rejected_images"]
        if read.chat.images == 0 or others != str(read.chat.images):
            raise AdaptError(
                f"{where}: the conversation has {read.chat.images} images, and {others} rejected images stand beside "
                "them; expected as many, at least one"
            )
        return Contrast(read.chat, read.rejected)

    def images_of_chats(self, item: Item, images: Sequence[T]) -> Sequence[Sequence[T]]:
        half = len(item.paths) // 2
        return images[:half], images[half:]

    def step(self, model: Adapted, items: Sequence[Item], inputs: object) -> ChatStep:
        from adapt.models.svco import ContrastStep

        others = [label.rejected for label in labels_of(items, Contrast)]
        return ContrastStep(model, inputs, others).of(self, items)

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        from adapt.evaluation.free_text import scored_pairs
        from adapt.models.svco import margins

        def compared(step: ContrastStep) -> list[tuple[float, float]]:
            return [(margin, 0.0) for margin in margins(step.sums).tolist()]

        return scored_pairs(items, inference.of_batches(model, items, compared))
