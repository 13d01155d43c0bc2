"""Conversations about images: several turns, each of words and any number of images, that end with an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adapt.chats import Chat
from adapt.common.errors import AdaptError
from adapt.common.shown import spread
from adapt.data.item import Cell, Item, Label, labels_of
from adapt.tasks.base import Task

if TYPE_CHECKING:
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Method
    from adapt.models.base import Adapted


@dataclass(frozen=True)
class Conversation(Label):
    """A conversation, whose images are those of its item, in order."""

    chat: Chat

    @property
    def stratum(self) -> str:
        return ""  # almost every answer occurs once

    @property
    def words(self) -> str:
        return self.chat.answer

    @property
    def columns(self) -> dict[str, str]:
        return {"question": self.chat.question.turns[-1].text}


class Conversations(Task):
    """The task of conversations: training learns every answer, and the test asks for the last one."""

    name = "conversations"
    title = "conversations about images"
    example = "emoji-chats"
    label_type: ClassVar[type[Label]] = Conversation
    backbones = frozenset({"native VLM"})
    needs = frozenset({"chat"})
    noun = "conversations"
    items_are = "conversations about images"
    classes_are = ""
    mixes_texts = True
    once_an_image = False
    divisible = False
    one_class = False
    learns_from_features = False
    comparable = "the methods compared classify with a CLIP or SigLIP: give images with classes"

    def read(self, cells: Mapping[str, Cell], where: str) -> Conversation:
        chat = cells["chat"]
        if not isinstance(chat, Chat):
            raise AdaptError(f"{where}: a column 'chat' cannot hold a conversation: list {self.name} in a .jsonl file")
        return Conversation(chat)

    def facts(self, items: Sequence[Item]) -> Sequence[str]:
        chats = [label.chat for label in labels_of(items, Conversation)]
        turns, images = spread([len(chat.turns) for chat in chats]), spread([chat.images for chat in chats])
        return (f"{turns} turns and {images} images in a conversation",)

    def check_learnt(self, method: Method, items: Sequence[Item]) -> None:
        blind = [item for item in items if not item.paths]
        if blind and method.touches and "decoder" not in method.touches:  # items without an image could teach nothing
            raise AdaptError(
                f"{len(blind):,} of {len(items):,} conversations have no image, such as {blind[0].name!r}, and "
                f"{method.name} adapts only the {' and the '.join(sorted(method.touches))}: take them out, or adapt "
                "the decoder"
            )
        for item in items:
            [label] = labels_of([item], Conversation)
            if not any(turn.role == "assistant" and turn.learned for turn in label.chat.turns):
                raise AdaptError(f"{item.name!r} has no answer to learn: take it out, or set learned for one")

    def validates(self, model: Adapted) -> bool:
        return False  # answering in words takes long

    def learned_by(self, method: Method | type[Method]) -> bool:
        return method.learns_any_step and bool(self.backbones & set(method.serves))

    def chat(self, item: Item, question: str) -> Chat:
        [label] = labels_of([item], Conversation)
        return label.chat

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        from adapt.evaluation.free_text import WordScores
        from adapt.evaluation.scores import scored

        questions = tuple(item.label.columns["question"] for item in items)
        decisions = inference.of_batches(model, items, model.decide)
        return WordScores(**vars(scored(items, decisions)), questions=questions)
