"""Visual question answering: questions about images, with an answer each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.chats import Chat
from adapt.data.item import Cell, Item, NamedLabel, filled, labels_of
from adapt.tasks.base import Task

if TYPE_CHECKING:
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Method, Step
    from adapt.models.base import Adapted


@dataclass(frozen=True)
class QuestionLabel(NamedLabel):
    """A question about an image, and the correct answer, which is stored as the name of a class."""

    question: str

    @property
    def columns(self) -> dict[str, str]:
        return {"question": self.question}


class Questions(Task):
    """The task of visual question answering, in which an image may have several questions, each with one answer."""

    name = "questions"
    title = "questions about images"
    example = "emoji-questions"
    label_type = QuestionLabel
    backbones = frozenset({"fusion encoder", "vision LLM", "native VLM"})
    needs = frozenset({"label", "question"})
    noun = "questions"
    items_are = "questions about images"
    classes_are = "answers"
    learns_unseen = True  # a model that answers in words may give an answer never seen in training
    once_an_image = False
    has_summed_loss = True
    comparable = "the methods compared classify with a CLIP or SigLIP: give images without questions"

    def read(self, cells: Mapping[str, Cell], where: str) -> QuestionLabel:
        return QuestionLabel(filled(cells, "label", where), filled(cells, "question", where))

    def validates(self, model: Adapted) -> bool:
        return bool(model.class_names)  # answering in words takes long

    def learned_by(self, method: Method | type[Method]) -> bool:
        return bool(self.backbones & set(method.serves))

    def chat(self, item: Item, question: str) -> Chat:
        [label] = labels_of([item], QuestionLabel)
        return Chat.about(label.question, label.name, len(item.paths))

    def class_names_for(self, kind: str, class_names: tuple[str, ...]) -> tuple[str, ...]:
        return class_names if kind == "fusion encoder" else ()

    def step(self, model: Adapted, items: Sequence[Item], inputs: object) -> Step:
        labels = labels_of(items, QuestionLabel)
        questions, answers = [label.question for label in labels], [label.name for label in labels]
        return model.question_step(inputs, questions, answers).of(self, items)

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        from adapt.evaluation.scores import QuestionScores, scored

        questions = tuple(label.question for label in labels_of(items, QuestionLabel))
        decisions = inference.of_batches(model, items, model.decide)
        return QuestionScores(**vars(scored(items, decisions)), questions=questions)
