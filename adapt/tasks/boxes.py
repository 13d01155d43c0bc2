"""Boxes: where in a picture a thing is, which native models answer in the words of their family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from adapt.backbones.box_texts import Boxed, Edges, Size, plain_text
from adapt.chats import Chat
from adapt.common.errors import AdaptError
from adapt.common.shown import spread
from adapt.data.item import Cell, Item, labels_of
from adapt.tasks.conversations import Conversation, Conversations

if TYPE_CHECKING:
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Step
    from adapt.models.base import Adapted
    from adapt.models.native_vlm import ChatModel, ChatStep

T = TypeVar("T")


@dataclass(frozen=True)
class BoxLabel(Conversation):
    """All boxes of the thing `name` in a picture of some size, perhaps none; the chat's answer has them as JSON.

    `examples` are the same of other pictures, which the chat begins with and which follow the item's own.
    """

    name: str
    boxes: tuple[Edges, ...]
    size: Size
    examples: tuple[Boxed, ...] = ()
    thing: str = ""
    """The name by which answers are scored and listed, if the chat has another."""
    crowds: tuple[Edges, ...] = ()
    """Boxes around many of the thing, in which a found box is not wrong."""


class Boxes(Conversations):
    """The task of boxes: a question where a thing is, whose answer the model's family words."""

    name = "boxes"
    title = "boxes of things in images"
    example = ""  # other tasks stand for native models
    label_type: ClassVar[type[BoxLabel]] = BoxLabel
    needs = frozenset({"boxes"})
    noun = "questions"
    items_are = "questions where things are"
    mixes_texts = False
    has_summed_loss = True

    def read(self, cells: Mapping[str, Cell], where: str) -> BoxLabel:
        if isinstance(cells["boxes"], str):
            raise AdaptError(f"{where}: a column 'boxes' cannot hold boxes: write x0,y0,x1,y1, and read boxes:FILE")
        name, boxes, size, crowds, *examples = cast("Any", cells["boxes"])
        chat = _asked(name, boxes).after(_asked(name, own) for own, _ in examples)
        return BoxLabel(chat, name, tuple(boxes), tuple(size), tuple(examples), crowds=tuple(crowds))

    def facts(self, items: Sequence[Item]) -> Sequence[str]:
        counts = [len(label.boxes) for label in labels_of(items, BoxLabel)]
        return (f"{spread(counts)} boxes of a thing, {counts.count(0):,} questions about things that are not there",)

    def step(self, model: Adapted, items: Sequence[Item], inputs: object) -> Step:
        of_chats = [self.images_of_chats(*each)[0] for each in zip(items, cast("Sequence[Any]", inputs), strict=True)]
        step, labels = cast("ChatStep", super().step(model, items, of_chats)), labels_of(items, BoxLabel)
        step.chats = [
            step.model.backbone.located(label.name, label.boxes, label.size, label.examples) for label in labels
        ]
        return step

    def images_of_chats(self, item: Item, images: Sequence[T]) -> Sequence[Sequence[T]]:
        return [[*images[1:], *images[:1]]]  # examples come first in the chat, and last in the item, named by its own

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        from adapt.evaluation.boxes import BoxScores
        from adapt.evaluation.scores import scored

        labels, speaker = labels_of(items, BoxLabel), cast("ChatModel", model).backbone
        scores = scored(items, inference.of_batches(model, items, model.decide))
        read = [speaker.found(text, label.size) for text, label in zip(scores.predicted, labels, strict=True)]
        found = [None if boxes is None else tuple(box.edges for box in boxes) for boxes in read]
        told = [
            text if boxes is None else plain_text(label.name, boxes)
            for text, label, boxes in zip(scores.predicted, labels, found, strict=True)
        ]
        names = tuple(label.thing or label.name for label in labels)
        own = vars(scores) | {"predicted": tuple(told), "questions": names}
        true, crowds = (tuple(getattr(label, name) for label in labels) for name in ("boxes", "crowds"))
        return BoxScores(**own, boxes=true, crowds=crowds, found=tuple(found))


def _asked(name: str, boxes: Sequence[Edges]) -> Chat:
    return Chat.about(f"where is the {name}?", plain_text(name, boxes))
